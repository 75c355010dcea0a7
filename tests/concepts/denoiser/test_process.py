"""Processes: formulas of flows, losses with weights, times and timesteps, min-SNR weights against the formula."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from bestiary.concepts.denoiser.process import DiscreteProcess, FlowProcess, min_snr_weights
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


ALPHAS = torch.linspace(0.999, 0.005, 1000)


def _tensors(channels: int = 4) -> tuple[torch.Tensor, ...]:
    """Picture, noise, times (3,) and an output."""
    rng = torch.Generator().manual_seed(0)
    x0, noise, output = (torch.randn(3, c, 8, 8, generator=rng) for c in (4, 4, channels))
    return x0, noise, torch.tensor([0.1, 0.5, 1.0]), output


def test_every_timestep_survives_the_way_to_a_time_and_back() -> None:
    """In float32 for training, fractional ones in float64 for samplers."""
    process, steps = DiscreteProcess(ALPHAS, "epsilon"), torch.arange(1000)
    assert torch.equal(process.timesteps((steps + 1) / 1000).long(), steps)
    assert [process.time_of(int(step)) for step in steps] == ((steps.double() + 1) / 1000).tolist()
    fractional = torch.from_numpy(np.linspace(0, 999, 31, dtype=np.float32))
    back = process.timesteps((fractional.double() + 1) / 1000).float()
    assert torch.equal(back, fractional)


def test_draws_are_those_of_integer_timesteps() -> None:
    process = DiscreteProcess(ALPHAS, "epsilon")
    shares = np.random.default_rng(0).random(500)
    assert torch.equal(
        process.timesteps(process.times_of_shares(shares)).long(), torch.from_numpy((shares * 1000).astype(np.int64))
    )
    ours, theirs = np.random.default_rng(1), np.random.default_rng(1)
    for _ in range(50):
        assert process.draw_between(0.3, 0.7, ours) == (int(theirs.integers(300, 700)) + 1) / 1000


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_noises_as_diffusers(shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    process, (x0, noise, _, _) = FlowProcess(shift), _tensors()
    times = torch.tensor([1.0, 0.5, 0.001])  # entries of their table
    rows = [0, 500, 999]
    torch.testing.assert_close(process.sigma(times), theirs.sigmas[rows].float(), rtol=1e-5, atol=1e-7)
    expected = theirs.scale_noise(x0, theirs.timesteps[rows], noise)
    torch.testing.assert_close(process.noised(x0, noise, times), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_samples_as_diffusers(shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs, process = FlowMatchEulerDiscreteScheduler(shift=shift), FlowProcess(shift)
    theirs.set_timesteps(8)
    times = process.sampling_times(8)
    ours = process.sigma(torch.tensor(times, dtype=torch.float64))
    torch.testing.assert_close(ours.float(), theirs.sigmas.float(), rtol=1e-4, atol=1e-6)
    x = y = _tensors()[0]
    for (time, after), timestep in zip(pairwise(times), theirs.timesteps, strict=True):
        x = process.step(x, x.sin(), time, after)
        y = theirs.step(y.sin(), timestep, y, return_dict=False)[0]
    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "process", [FlowProcess(3.0), DiscreteProcess(ALPHAS, "epsilon"), DiscreteProcess(ALPHAS, "v_prediction")]
)
def test_a_step_to_zero_with_the_true_output_gives_the_picture(process) -> None:
    x0, noise, times, _ = _tensors()
    for row, time in enumerate(times):
        one = slice(row, row + 1)
        noised, truth = (form(x0[one], noise[one], times[one]) for form in (process.noised, process.target))
        torch.testing.assert_close(process.step(noised, truth, float(time), 0.0), x0[one], rtol=1e-3, atol=2e-3)
        assert process.loss(truth, x0[one], noise[one], times[one]).item() == 0


def test_the_flow_target_is_the_slope_of_the_path() -> None:
    process, (x0, noise, _, _) = FlowProcess(), _tensors()
    low, high = (process.noised(x0, noise, torch.full((3,), t)) for t in (0.25, 0.75))
    torch.testing.assert_close((high - low) / 0.5, process.target(x0, noise, torch.ones(3)))
    assert process.snr(torch.tensor([0.5])).item() == 1


def test_flow_times_are_uniform_or_favour_the_middle() -> None:
    shares = (np.arange(10000) + 0.5) / 10000
    uniform = FlowProcess().times_of_shares(shares)
    assert uniform.min() > 0 and uniform.max() <= 1 and uniform.mean().item() == pytest.approx(0.5, abs=1e-3)
    tenths = torch.histc(FlowProcess(draw="logit_normal").times_of_shares(shares), 10, 0, 1) / 10000
    # shares of ten equal stages under a standard logit-normal
    assert tenths.tolist() == pytest.approx(
        [0.0140, 0.0688, 0.1155, 0.1441, 0.1576, 0.1576, 0.1441, 0.1155, 0.0688, 0.0140], abs=2e-3
    )
    drawn = [FlowProcess().draw_between(0.2, 0.3, np.random.default_rng(n)) for n in range(50)]
    assert all(0.2 < time <= 0.3 for time in drawn)
    assert FlowProcess().times_of_shares(np.zeros(1)).item() > 0


def test_weights_of_places_average_to_one() -> None:
    process, (x0, noise, times, output) = DiscreteProcess(ALPHAS, "epsilon"), _tensors()
    plain = process.loss(output, x0, noise, times)
    torch.testing.assert_close(process.loss(output, x0, noise, times, weights=torch.full((3, 1, 8, 8), 0.3)), plain)
    half = torch.zeros(3, 1, 8, 8)
    half[..., :4] = 1
    expected = (output - noise)[..., :4].square().mean((1, 2, 3))
    torch.testing.assert_close(process.loss(output, x0, noise, times, weights=half), expected)


@pytest.mark.parametrize("process", [FlowProcess(), DiscreteProcess(ALPHAS, "epsilon")])
def test_a_learned_variance_is_left_out(process) -> None:
    x0, noise, times, output = _tensors(channels=8)
    assert torch.equal(process.loss(output, x0, noise, times), process.loss(output[:, :4], x0, noise, times))
    assert torch.equal(process.step(x0, output, 0.5, 0.25), process.step(x0, output[:, :4], 0.5, 0.25))


def test_flows_refuse_what_is_not_theirs() -> None:
    x0, noise, times, output = _tensors()
    with pytest.raises(
        BestiaryError, match=r"min-SNR weights \(gamma 5\) are defined for .* set min_snr to 0"
    ) as fault:
        FlowProcess().loss(output, x0, noise, times, min_snr=5.0)
    assert fault.value.option == "method.min_snr"
    with pytest.raises(BestiaryError, match="flow shift 0 and spread 1.0 must both be above 0"):
        FlowProcess(0)
    with pytest.raises(BestiaryError, match="0 sampling steps: choose 1 to 1000"):
        FlowProcess().sampling_times(0)


@pytest.mark.parametrize(
    "process", [FlowProcess(), FlowProcess(3.0), FlowProcess.exponential(1.15), DiscreteProcess(ALPHAS, "epsilon")]
)
def test_noise_levels_survive_the_way_there_and_back(process) -> None:
    for time in (0.001, 0.25, 0.5, 0.7503, 0.999):
        level = process.log_snr(time)
        assert process.time_of_log_snr(level) == pytest.approx(time, abs=1e-9)
        whole = torch.tensor([round(time, 3)])
        assert process.log_snr(round(time, 3)) == pytest.approx(process.snr(whole).log().item(), abs=1e-3)
    assert process.log_snr(0.2) > process.log_snr(0.8)
    # far beyond the schedule there is only its end
    assert 0 <= process.time_of_log_snr(1e6) <= 0.001 and process.time_of_log_snr(-1e6) == pytest.approx(1)


def test_a_shift_is_written_as_an_exponential_too() -> None:
    flow = FlowProcess.exponential(1.15)
    # Flux: e^mu / (e^mu + 1 / t - 1)
    assert flow.sigma(torch.tensor([0.9, 0.5, 0.1])).tolist() == pytest.approx([0.966, 0.7595, 0.2598], abs=1e-4)
    assert flow.time_of_sigma(0.7595) == pytest.approx(0.5, abs=1e-4)
    assert FlowProcess(3.0).log_snr(1.0) == -float("inf")


def test_a_schedule_that_ends_in_pure_noise_has_a_last_level() -> None:
    process = DiscreteProcess(torch.linspace(0.999, 0.0, 1000), "v_prediction")
    assert process.log_snr(1.0) < -20 and process.time_of_log_snr(process.log_snr(1.0)) == pytest.approx(1)
