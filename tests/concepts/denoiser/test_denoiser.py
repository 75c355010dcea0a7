"""The noise schedule against diffusers, in both parameterisations."""

import pytest
import torch
from bestiary.concepts.denoiser.process import DiscreteProcess

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ALPHAS = (1 - BETAS).cumprod(0)
STEPS = torch.tensor([0, 500, 999])
TIMES = (STEPS + 1) / 1000


@pytest.fixture
def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 8, 8, generator=generator), torch.randn(3, 4, 8, 8, generator=generator)


def scheduler() -> object:
    from diffusers import DDPMScheduler

    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def test_noise_is_added_as_in_diffusers(tensors) -> None:
    latents, noise = tensors
    ours = DiscreteProcess(ALPHAS, "epsilon").noised(latents, noise, TIMES)
    torch.testing.assert_close(ours, scheduler().add_noise(latents, noise, STEPS))


def test_half_precision_loses_only_its_own_rounding(tensors) -> None:
    latents, noise = (tensor.bfloat16() for tensor in tensors)
    schedule = DiscreteProcess(ALPHAS, "epsilon")
    ours, exact = schedule.noised(latents, noise, TIMES), schedule.noised(latents.float(), noise.float(), TIMES)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), exact, rtol=2e-2, atol=2e-2)


def test_targets_are_noise_or_velocity(tensors) -> None:
    latents, noise = tensors
    assert torch.equal(DiscreteProcess(ALPHAS, "epsilon").target(latents, noise, TIMES), noise)
    ours = DiscreteProcess(ALPHAS, "v_prediction").target(latents, noise, TIMES)
    torch.testing.assert_close(ours, scheduler().get_velocity(latents, noise, STEPS))


def test_noise_and_velocity_give_the_latents_back(tensors) -> None:
    latents, noise = tensors
    schedule = DiscreteProcess(ALPHAS, "v_prediction")
    noised, velocity = schedule.noised(latents, noise, TIMES), schedule.target(latents, noise, TIMES)
    alpha = ALPHAS[STEPS].view(-1, 1, 1, 1)
    torch.testing.assert_close(alpha.sqrt() * noised - (1 - alpha).sqrt() * velocity, latents, atol=1e-4, rtol=1e-4)


def test_signal_to_noise_falls_and_is_one_where_both_are_alike() -> None:
    ratio = DiscreteProcess(ALPHAS, "epsilon").snr((torch.arange(1000) + 1) / 1000)
    assert (ratio.diff() < 0).all()
    assert DiscreteProcess(torch.tensor([0.5]), "epsilon").snr(torch.tensor([1.0])).item() == 1
