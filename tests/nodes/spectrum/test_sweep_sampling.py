"""A sweep on the embedded model: the same noise every time, decoded pictures, a sheet of them."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError


def sampler(**fields: object) -> object:
    from bestiary.nodes.spectrum.sweep_sampling import SweepSampler

    return SweepSampler(**{"seed": 3, "steps": 2, "cfg": 2.0, "sampler": "euler", "scheduler": "simple", **fields})


def encoded(loaded: object, text: str) -> list:
    return loaded.clip.encode_from_tokens_scheduled(loaded.clip.tokenize(text))


def test_every_run_starts_from_the_same_noise(demo_model):
    from bestiary.nodes.spectrum.sweep_sampling import sampling_of

    # an empty latent of another model's channels, as Empty Latent Image gives it
    sample = sampling_of(demo_model.model, torch.zeros(2, 4, 16, 16), sampler())
    red, empty = encoded(demo_model, "a red bird"), encoded(demo_model, "")
    first, other, again = sample(red, empty), sample(empty, empty), sample(red, empty)
    assert first.shape == (2, 8, 16, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    different = sampling_of(demo_model.model, torch.zeros(2, 4, 16, 16), sampler(seed=4))
    assert not torch.equal(different(red, empty), first)


def test_it_equals_the_sampler_of_the_core(demo_model):
    from bestiary.nodes.spectrum.sweep_sampling import sampling_of

    import nodes

    red, empty = encoded(demo_model, "a red bird"), encoded(demo_model, "")
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    (theirs,) = nodes.common_ksampler(demo_model.model, 3, 2, 2.0, "euler", "simple", red, empty, latent)
    ours = sampling_of(demo_model.model, latent["samples"], sampler())(red, empty)
    assert torch.equal(ours, theirs["samples"])


def test_pictures_and_features_of_latents(demo_model):
    from bestiary.nodes.spectrum.sweep_sampling import seeing_of

    features, pictures = seeing_of(demo_model.vae, None)(torch.zeros(2, 8, 16, 16))
    assert pictures.shape == (2, 128, 128, 3)
    assert features.shape == (2, 3 * 64 * 64)


def test_a_vision_model_compares_directions(demo_model):
    from bestiary.nodes.spectrum.sweep_sampling import seeing_of

    class Vision:
        def encode_image(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"image_embeds": pictures.mean((1, 2)) + 1}

    features, pictures = seeing_of(demo_model.vae, Vision())(torch.randn(2, 8, 16, 16))
    assert features.shape == (2, 3)
    assert torch.allclose(features.norm(dim=-1), torch.ones(2))
    assert pictures.shape == (2, 128, 128, 3)


def test_unknown_samplers_are_told_before_anything_runs(demo_model):
    from bestiary.nodes.spectrum.sweep_sampling import sampling_of

    with pytest.raises(BestiaryError, match="no sampler 'oiler'"):
        sampling_of(demo_model.model, torch.zeros(1, 4, 16, 16), sampler(sampler="oiler"))


def test_the_sheet_holds_all_pictures(demo_model):
    from bestiary.concepts.spectrum.stage_bounds import StageBounds
    from bestiary.nodes.spectrum.attribute_sweep import Sweep, SweepSettings
    from bestiary.nodes.spectrum.sweep_sampling import sweep_sheet

    settings = SweepSettings("a {word} bird", "red", stages=2)
    sweep = Sweep(settings, StageBounds.equal(2), torch.tensor([0.5, 0.25]), torch.ones(2), torch.rand(4, 32, 32, 3))
    sheet = sweep_sheet(sweep)
    assert sheet.shape[0] == 1 and sheet.shape[3] == 3
    assert min(sheet.shape[1:3]) > 352
