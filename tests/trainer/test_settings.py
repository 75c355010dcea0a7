"""Settings: every field says in one sentence what it is; defaults are the published method's."""

from collections.abc import Iterator

import pytest
from bestiary.trainer.settings import Section, TrainPartsSettings
from pydantic import ValidationError
from pydantic.fields import FieldInfo


def fields_of(model: type[Section], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield f"{path}{name}", field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields_of(field.annotation, f"{path}{name}.")


@pytest.mark.parametrize(("name", "field"), list(fields_of(TrainPartsSettings)), ids=lambda value: str(value)[:40])
def test_every_field_says_what_it_is(name: str, field: FieldInfo) -> None:
    assert field.description, name
    assert field.description.endswith("."), name
    numeric = field.annotation in (int, float)
    assert not numeric or any(letter.isdigit() for letter in field.description), f"{name} states no range"


def test_defaults_are_the_published_method() -> None:
    ours = TrainPartsSettings()
    assert (ours.attention_loss.weight, ours.attention_loss.form, ours.method.min_snr) == (0.01, "bce", 5.0)
    assert (ours.lora.rank, ours.optimizer.lora_lr, ours.optimizer.weight_decay) == (4, 1e-4, 1e-2)
    assert ours.optimizer.batch_size * ours.optimizer.accumulation == 8
    assert (ours.captions.templates, ours.captions.shuffle, ours.images.flip) == (0.5, True, False)


def test_settings_cannot_be_changed_behind_a_run() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainPartsSettings().run.seed = 5
