"""Settings: every field says in one sentence what it is; defaults are the published method's."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.parts.settings import TrainPartsSettings, load_recipe
from bestiary.trainer.learning.run.run_settings import Section
from bestiary.trainer.learning.spectrum.spectrum_settings import load_spectrum_recipe
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
    assert (ours.attention_loss.weight, ours.attention_loss.form, ours.method.min_snr) == (0.01, "bce", None)
    assert (ours.lora.rank, ours.optimizer.lora_lr, ours.optimizer.weight_decay) == (4, 1e-4, 1e-2)
    assert ours.optimizer.batch_size * ours.optimizer.accumulation == 8
    assert (ours.captions.templates, ours.captions.shuffle, ours.images.flip) == (0.5, True, False)


def test_settings_cannot_be_changed_behind_a_run() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainPartsSettings().run.seed = 5


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a\\b", "C:evil", "..", "  ", "line\nbreak", "long" * 60])
def test_a_name_stays_in_the_folder_of_its_run(name: str, tmp_path: Path) -> None:
    """Whether it comes as a flag, in a recipe, or in the settings of a run from elsewhere."""
    for load in (load_recipe, load_spectrum_recipe):
        with pytest.raises(BestiaryError, match=r"run\.name = "):
            load(None, {"run": {"name": name}})
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(f"[run]\nname = {json.dumps(name)}\n")
        for of_run in (False, True):
            with pytest.raises(BestiaryError, match=r"run\.name = "):
                load(recipe, of_run=of_run)
    assert load_recipe(None, {"run.name": "my parts (2).v1"}).run.name == "my parts (2).v1"


@pytest.mark.parametrize(
    "cache", ["/var/cache", "../beside", "a/../../b", "C:\\latents", "\\\\host\\share", "~/latents"]
)
def test_a_recipe_does_not_say_where_latents_go_outside_of_the_working_folder(cache: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"[images]\ncache = {json.dumps(cache)}\n")
    for load in (load_recipe, load_spectrum_recipe):
        with pytest.raises(
            BestiaryError, match=r"images\.cache = .* is outside the working folder.*--set images\.cache="
        ):
            load(recipe)
        # whoever types it may
        assert load(None, {"images.cache": cache}).images.cache == Path(cache)
    recipe.write_text('[images]\ncache = "kept/latents"\n')
    assert load_recipe(recipe).images.cache == Path("kept/latents")
