"""Min-SNR weights against the formula and against diffusers' schedule."""

import pytest
import torch
from bestiary.concepts.denoiser.process import DiscreteProcess, min_snr_weights
from bestiary.concepts.errors import BestiaryError

SNR = torch.tensor([0.01, 1.0, 5.0, 20.0, 1e4])


def test_epsilon_weights() -> None:
    assert min_snr_weights(SNR, 5.0).tolist() == pytest.approx([1, 1, 1, 0.25, 5e-4])


def test_velocity_weights_have_snr_plus_one_below() -> None:
    theirs = [0.01 / 1.01, 1 / 2, 5 / 6, 5 / 21, 5 / 10001]
    assert min_snr_weights(SNR, 5.0, "v_prediction").tolist() == pytest.approx(theirs)


def test_a_zero_terminal_schedule_gives_finite_weights() -> None:
    zero = torch.zeros(1)
    assert min_snr_weights(zero, 5.0).item() == 1
    assert min_snr_weights(zero, 5.0, "v_prediction").item() == 0


def test_gamma_zero_is_off() -> None:
    assert min_snr_weights(SNR, 0).tolist() == [1] * 5


def test_equals_the_published_expression_over_a_whole_schedule() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    schedule = DiscreteProcess((1 - betas).cumprod(0), "epsilon")
    snr = schedule.snr((torch.arange(1000) + 1) / 1000)
    theirs = torch.stack([snr, 5 * torch.ones_like(snr)], dim=1).min(dim=1)[0] / snr
    assert torch.allclose(min_snr_weights(snr, 5.0), theirs, rtol=1e-6)


def test_wrong_values_are_shown() -> None:
    with pytest.raises(BestiaryError, match="min-SNR gamma is -1"):
        min_snr_weights(SNR, -1)
    with pytest.raises(BestiaryError, match="unknown prediction 'sample'"):
        min_snr_weights(SNR, 5, "sample")
