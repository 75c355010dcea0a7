"""Settings of spectrum trainings: defaults, what they mean, what they refuse."""

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.spectrum.spectrum_settings import TrainSpectrumSettings, load_spectrum_recipe


def test_defaults_are_the_published_training() -> None:
    settings = TrainSpectrumSettings()
    assert (settings.kind, settings.method.stages, settings.method.vectors) == ("spectrum", 10, 1)
    assert settings.captions.templates == ("a photo of a {}",) and settings.method.min_snr == 0
    assert not settings.images.flip and settings.images.masks is None  # a mirrored layout is another layout
    assert settings.method.bounds(1000).edges == tuple(range(1000, -1, -100))


def test_boundaries_replace_equal_stages() -> None:
    settings = load_spectrum_recipe(None, {"method.stages": 7, "method.boundaries": [0.25]})
    assert settings.method.bounds(1000).edges == (1000, 750, 0)
    assert load_spectrum_recipe(None, {"method.stages": 1}).method.bounds(1000).stages == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"method.stages": 251}, "method.stages = 251"),
        ({"method.boundaries": [0.2, 0.2]}, "stage edges"),
        ({"captions.templates": ["{} and {}"]}, "each template needs {} exactly once"),
        ({"optimizer.betas": [-0.1, 0.9]}, "each beta must be from 0 to below 1, got -0.1 and 0.9"),
        ({"optimizer.steps": 5, "optimizer.warmup": 5}, "optimizer.warmup 5 must be below optimizer.steps 5"),
        ({"method.parameterisation": "reference", "optimizer.network_lr": 0}, "optimizer.network_lr is 0"),
        ({"images.size": 100}, "images.size = 100"),
        ({"run.name": ""}, "run.name = ''"),
        ({"lora.rank": 4}, "lora: no such key"),
    ],
)
def test_what_is_out_of_range_is_told_by_its_key(override: dict, message: str) -> None:
    with pytest.raises(BestiaryError) as raised:
        load_spectrum_recipe(None, override)
    assert message in str(raised.value)


def test_the_rate_that_is_not_used_may_be_zero() -> None:
    assert load_spectrum_recipe(None, {"optimizer.network_lr": 0}).optimizer.network_lr == 0
    values = {"method.parameterisation": "reference", "optimizer.vector_lr": 0}
    assert load_spectrum_recipe(None, values).optimizer.vector_lr == 0


def test_all_faults_come_in_one_message() -> None:
    with pytest.raises(BestiaryError, match=r"2 error\(s\)") as raised:
        load_spectrum_recipe(None, {"method.vectors": 0, "optimizer.ema": 1.0})
    assert "method.vectors = 0" in str(raised.value) and "optimizer.ema = 1.0" in str(raised.value)
