"""From settings to what the loop needs: the words vectors start from, sizes, rates, and the spectrum that comes out."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.stage_table import ProspectNetwork
from bestiary.trainer.learning.denoiser.prompt_encoding import PromptEncoding
from bestiary.trainer.learning.parts.token_start import word_spread
from bestiary.trainer.learning.pictures.latent_cache import LatentCache
from bestiary.trainer.learning.spectrum.spectrum_objective_setup import (
    SpectrumTraining,
    build_spectrum,
    set_up_spectrum,
    word_start,
)
from bestiary.trainer.learning.spectrum.spectrum_settings import load_spectrum_recipe

NAMES = tuple(f"{number}.png" for number in range(60))


@pytest.fixture
def set_up(tiny_denoiser: Callable) -> Callable[..., SpectrumTraining]:
    """`set_up(**{"method.stages": 3})` -> a training on random moments of 60 pictures, seed 7."""
    moments = np.random.default_rng(0).standard_normal((len(NAMES), 1, 2, 4, 8, 8)).astype(np.float16)

    def build(**changes: object) -> SpectrumTraining:
        values = {"images.size": 64, "method.initial_words": "red bird", "run.seed": 7, **changes}
        with torch.random.fork_rng():
            return set_up_spectrum(
                load_spectrum_recipe(None, values), tiny_denoiser("sd15"), NAMES, LatentCache(moments)
            )

    return build


def test_vectors_start_around_the_words(set_up, tiny_denoiser) -> None:
    training = set_up(**{"method.vectors": 2, "method.initial_noise": 0.0})
    start = word_start(tiny_denoiser("sd15"), "red bird", 2)["clip_l"]
    assert torch.equal(training.start, start) and start.shape == (2, 32)
    assert torch.allclose(training.objective.table.matrix(), start.expand(10, -1, -1), atol=1e-6)
    noisy = set_up(**{"method.vectors": 2, "method.norm": "free"}).objective.table.matrix().detach() - start
    assert float(noisy.std()) == pytest.approx(0.2 * word_spread(tiny_denoiser("sd15")), rel=0.1)


def test_common_words_where_none_are_given(tiny_denoiser) -> None:
    denoiser = tiny_denoiser("sdxl")
    start = word_start(denoiser, "", 1)
    assert {name: tuple(own.shape) for name, own in start.items()} == {"clip_l": (1, 32), "clip_g": (1, 64)}
    # each text encoder keeps its own usual norm
    for part, own in zip(
        start.values(),
        denoiser.text.word_vectors("photo picture animal bird object thing large small bright dark red orange green blue white black").values(),
        strict=True,
    ):  # fmt: skip
        assert float(part.norm()) == pytest.approx(float(own.norm(dim=-1).mean()), rel=1e-4)


def test_words_that_the_tokenizer_does_not_know_are_told() -> None:
    from bestiary.trainer.model.backbones import load_denoiser

    denoiser = load_denoiser("demo", device="cpu", dtype="fp32")
    assert denoiser.text.unknown_words("a creature zebra qux") == ["zebra", "qux"]
    assert word_start(denoiser, "red creature", 1)["clip_l"].shape == (1, 128)
    with pytest.raises(
        BestiaryError, match="initial words: bestiary-demo does not know 'zebra'; name what the pictures"
    ):
        word_start(denoiser, "zebra creature", 1)


def test_byte_level_vocabularies_know_every_word(tiny_denoiser) -> None:
    assert tiny_denoiser("sdxl").text.unknown_words("zebra ünïcode 123") == []
    assert issubclass(type(tiny_denoiser("sd15").text), PromptEncoding)


@pytest.mark.parametrize(("size", "margin", "cached"), [(64, 0.0, 64), (64, 0.25, 80), (64, 0.1, 72), (None, 0, 128)])
def test_the_margin_is_whole_latent_cells(tiny_denoiser, size: int | None, margin: float, cached: int) -> None:
    settings = load_spectrum_recipe(None, {"images.size": size, "images.margin": margin})
    assert settings.images.training_size(tiny_denoiser("sd15").backbone) == (size or 128)
    assert settings.images.cached_size(tiny_denoiser("sd15").backbone) == cached


def test_rates_are_in_units_of_the_words(set_up, tiny_denoiser) -> None:
    (group,) = set_up(**{"optimizer.vector_lr": 0.5}).groups
    assert group.learning_rate == pytest.approx(0.5 * word_spread(tiny_denoiser("sd15")))
    assert group.weight_decay == 0 and len(group.parameters) == 10


def test_the_published_network_has_its_own_rate_and_decays(set_up) -> None:
    changes = {"method.parameterisation": "reference", "optimizer.network_lr": 1e-3, "optimizer.weight_decay": 0.3}
    training = set_up(**changes)
    (group,) = training.groups
    assert isinstance(training.objective.table, ProspectNetwork) and training.objective.table.training
    assert (group.learning_rate, group.weight_decay) == (1e-3, 0.3)
    # drawn from the run's seed
    assert torch.equal(training.objective.table.matrix(), set_up(**changes).objective.table.matrix())


def test_batches_follow_the_settings(set_up) -> None:
    training = set_up(
        **{"optimizer.batch_size": 3, "optimizer.accumulation": 2, "captions.templates": ["a {}", "{} b"]}
    )
    plan = training.batches.plan
    assert (plan.batch_size, plan.step_size, plan.latent_size, plan.seed) == (3, 6, 8, 7)
    assert len(plan.prompts) == 2 and plan.bounds is training.bounds
    assert training.batches.draw(0, 0).moments.shape == (3, 2, 4, 8, 8) and training.image_size == 64


def test_recomputing_is_switched_on(set_up) -> None:
    on = [set_up(**{"base.checkpointing": value}).denoiser.unet.is_gradient_checkpointing for value in (True, False)]
    assert on == [True, False]


def test_the_spectrum_says_where_it_comes_from(set_up) -> None:
    training = set_up(**{"method.stages": 3, "optimizer.batch_size": 2})
    spectrum = build_spectrum(training, 12)
    assert torch.equal(spectrum.matrix(), training.objective.table.matrix().detach())
    assert torch.equal(spectrum.neutral_matrix(), training.start) and spectrum.initial_words == "red bird"
    facts = spectrum.provenance
    assert (facts["made_by"], facts["base"], facts["steps"]) == ("bestiary train spectrum", "demo", 12)
    assert (facts["image_size"], facts["batch"], facts["seed"], facts["norm"]) == (64, 2, 7, "keep")
    assert facts["pictures"] == list(NAMES[:50]) and facts["templates"] == ["a photo of a {}"]
    other = build_spectrum(training, 1, made_by="another program", base="its model").provenance
    assert (other["made_by"], other["base"]) == ("another program", "its model")
