"""Stages as noise levels: every timestep in one stage at every shift, percents that move while levels stay, presets by equal noise."""

import pytest
import torch
from bestiary.concepts.denoiser.process import DiscreteProcess, FlowProcess
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.attribute_presets import DEFAULT_PRESETS
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.concepts.spectrum.stage_levels import EQUAL_NOISE_PRESETS, StageLevels, equal_noise, presets_for

FLOWS = {
    "1": FlowProcess(),
    "3": FlowProcess(3.0),
    "6": FlowProcess(6.0),
    "mu 1.15": FlowProcess.exponential(1.15),
}
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
SD15 = DiscreteProcess((1 - BETAS).cumprod(0).float(), "epsilon")
BY_SHIFT = [
    ("1", (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)),
    ("3", (0.9643, 0.9231, 0.875, 0.8182, 0.75, 0.6667, 0.5625, 0.4286, 0.25)),
    ("mu 1.15", (0.966, 0.9266, 0.8805, 0.8257, 0.7595, 0.678, 0.5751, 0.4412, 0.2598)),
]


@pytest.mark.parametrize(("shift", "levels"), BY_SHIFT)
def test_ten_stages_end_at_the_levels_of_tenths_of_time(shift: str, levels: tuple[float, ...]) -> None:
    """Within the half timestep by which boundaries avoid the steps of samplers."""
    ours = StageLevels.learned(StageBounds.equal(10), FLOWS[shift])
    assert ours.stages == 10 and ours.sigmas[0] == 1 and ours.sigmas[-1] == 0
    assert ours.sigmas[1:-1] == pytest.approx(levels, abs=2e-3)


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
@pytest.mark.parametrize("stages", [1, 2, 3, 10, 40])
def test_every_timestep_is_in_the_stage_it_was_trained_in(flow: FlowProcess, stages: int) -> None:
    bounds = StageBounds.equal(stages)
    levels = StageLevels.learned(bounds, flow)
    times = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    assert torch.equal(levels.stage_of(flow.sigma(times)), bounds.stage_at(times))
    assert levels.percents(flow) == pytest.approx(bounds.percents("continuous"), abs=1e-12)


@pytest.mark.parametrize("learned", FLOWS.values(), ids=FLOWS)
@pytest.mark.parametrize("used", FLOWS.values(), ids=FLOWS)
def test_another_shift_moves_percents_and_never_levels(learned: FlowProcess, used: FlowProcess) -> None:
    levels = StageLevels.learned(StageBounds.equal(10), learned)
    percents = levels.percents(used)
    # what ComfyUI makes of a percent: the level at the time that is left
    back = used.sigma(1 - torch.tensor(percents[1:-1], dtype=torch.float64))
    assert back.tolist() == pytest.approx(levels.sigmas[1:-1], abs=1e-12)
    assert list(percents) == sorted(percents) and percents[0] == 0 and percents[-1] == 1
    assert (percents == pytest.approx(levels.percents(learned), abs=1e-9)) == (learned.shift == used.shift)


def test_levels_of_unequal_stages_keep_their_order() -> None:
    levels = StageLevels.learned(StageBounds.from_fractions([0.1, 0.7]), FLOWS["3"])
    assert levels.stage_of(torch.tensor([1.0, 0.97, 0.96, 0.6, 0.5, 1e-4])).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("sigmas", [(1.0,), (1.0, 0.5, 0.5, 0.0), (0.9, 0.0), (1.0, 0.2), (1.0, float("nan"), 0.0)])
def test_levels_that_do_not_fall_are_refused(sigmas: tuple[float, ...]) -> None:
    with pytest.raises(BestiaryError, match=rf"noise levels of stages \({sigmas[0]:.4g}.*must decrease strictly"):
        StageLevels(sigmas)


def test_presets_by_noise_are_those_of_stable_diffusion() -> None:
    theirs = equal_noise(DEFAULT_PRESETS, SD15)
    assert set(theirs) == set(EQUAL_NOISE_PRESETS)
    for name, ranges in EQUAL_NOISE_PRESETS.items():
        for ours, other in zip(ranges, theirs[name], strict=True):
            assert ours == pytest.approx(other, abs=6e-5)


def test_presets_of_a_flow_are_by_time_or_by_noise() -> None:
    assert presets_for(FLOWS["3"]) == DEFAULT_PRESETS
    by_noise = presets_for(FLOWS["3"], "noise")
    assert by_noise["layout"][0] == pytest.approx((0, 0.265), abs=1e-3)
    assert by_noise["content"][0] == pytest.approx((0.371, 1), abs=1e-3)
    assert by_noise["material"][0] == pytest.approx((0.650, 1), abs=1e-3)
    assert by_noise["style"][0] == pytest.approx((0.783, 1), abs=1e-3)
    with pytest.raises(BestiaryError, match="unknown presets 'moon': choose time or noise"):
        presets_for(FLOWS["3"], "moon")
