"""Sampling of flow models: steps equal to diffusers' scheduler, guidance as a number where a model was distilled for it, what does not fit."""

import pytest
import torch
from bestiary.concepts.denoiser.process import FlowProcess
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.model.flow_sampler import FlowEuler
from bestiary.trainer.model.sampling import sample_images


@pytest.mark.parametrize("steps", [1, 7, 30])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_steps_are_those_of_diffusers(steps: int, shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs, ours = FlowMatchEulerDiscreteScheduler(shift=shift), FlowEuler(FlowProcess(shift))
    theirs.set_timesteps(steps)
    ours.set_timesteps(steps)
    process = FlowProcess(shift)
    times = torch.tensor([process.time_of(float(timestep)) for timestep in ours.timesteps], dtype=torch.float64)
    torch.testing.assert_close(process.sigma(times).float(), theirs.sigmas[:-1], atol=1e-5, rtol=1e-4)
    one = other = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    for own, timestep in zip(ours.timesteps, theirs.timesteps, strict=True):
        one = ours.step(torch.sin(3 * one), own, one, return_dict=False)[0]
        other = theirs.step(torch.sin(3 * other), timestep, other, return_dict=False)[0]
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_both_names_of_euler_give_one_picture_and_guidance_reaches_flux_as_a_number(tiny_denoiser, monkeypatch) -> None:
    denoiser = tiny_denoiser("flux")
    seen, predict = [], denoiser.network.predict

    def watched(latents, times, text, *rest):  # noqa: ANN001, ANN002, ANN202
        seen.append((len(latents), text.extras["guidance"].tolist()))
        return predict(latents, times, text, *rest)

    monkeypatch.setattr(denoiser.network, "predict", watched)
    text = denoiser.empty_conditioning()
    options = {"seeds": [3, 4], "steps": 2, "size": (64, 48), "guidance": 3.5}
    first = sample_images(denoiser, text, None, sampler="ddim", **options).images
    # one evaluation a step: no negative prompt is needed
    assert seen == [(2, [3.5, 3.5])] * 2 and first.shape == (2, 3, 64, 48)
    assert torch.equal(first, sample_images(denoiser, text, text, sampler="euler", **options).images)
    other = sample_images(denoiser, text, None, sampler="ddim", **options | {"guidance": 1.0}).images
    assert not torch.equal(first, other)


def test_sd3_is_guided_by_two_evaluations(tiny_denoiser, monkeypatch) -> None:
    denoiser = tiny_denoiser("sd3")
    seen, predict = [], denoiser.network.predict
    monkeypatch.setattr(denoiser.network, "predict", lambda *given: seen.append(len(given[0])) or predict(*given))
    sample_images(denoiser, denoiser.empty_conditioning(), None, seeds=[1], steps=2, guidance=4.0)
    assert seen == [2, 2]
    with pytest.raises(
        BestiaryError, match="sampler 'dpmpp_2m' does not follow a flow, and sd3 is a flow model: choose euler or ddim"
    ):
        sample_images(denoiser, denoiser.empty_conditioning(), None, seeds=[1], sampler="dpmpp_2m")
    with pytest.raises(BestiaryError, match="picture size 72 x 64: both edges must be positive multiples of 16 pixels"):
        sample_images(denoiser, denoiser.empty_conditioning(), None, seeds=[1], size=(72, 64))
