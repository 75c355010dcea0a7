"""Stages as noise levels on ComfyUI's own flow schedules: every step of every scheduler in exactly one stage, at every shift."""

import math
from itertools import pairwise

import pytest
import torch
from bestiary.concepts.denoiser.process import FlowProcess
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.concepts.spectrum.stage_levels import StageLevels

pytestmark = pytest.mark.comfyui

SHIFTS = (1.0, 3.0, 6.0)
MU = 1.15


def sampling_of(name: float | str) -> tuple[object, FlowProcess]:
    """ComfyUI's schedule and ours."""
    import comfy.model_sampling as kinds

    if name == "flux":
        sampling = kinds.ModelSamplingFlux()
        sampling.set_parameters(shift=MU)
        return sampling, FlowProcess.exponential(MU)
    sampling = kinds.ModelSamplingDiscreteFlow()
    sampling.set_parameters(shift=name)
    return sampling, FlowProcess(name)


@pytest.mark.parametrize("name", [*SHIFTS, "flux"])
def test_every_step_is_in_exactly_one_stage(name: float | str) -> None:
    """Stages learned at the MODEL's own shift and at another one, by the core's rule: both ends of a range are included."""
    import comfy.samplers

    sampling, own = sampling_of(name)
    steps_seen = 0
    edges = {}
    for learned in {own.shift, 3.0}:
        levels = StageLevels.learned(StageBounds.equal(10), FlowProcess(learned))
        edges[learned] = torch.tensor(
            [sampling.percent_to_sigma(percent) for percent in levels.percents(own)], dtype=torch.float64
        )
        assert edges[learned][1:-1].tolist() == pytest.approx(levels.sigmas[1:-1], abs=1e-6)
        assert edges[learned][0] == 1 and edges[learned][-1] == 0
    for scheduler in comfy.samplers.KSampler.SCHEDULERS:
        for steps in range(1, 51):
            sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)[:-1].float()
            # one step of kl_optimal is 0 / 0 in the core itself
            if not sigmas.isfinite().all():
                assert (scheduler, steps) == ("kl_optimal", 1)
                continue
            sigmas = sigmas[sigmas > 0].double().unsqueeze(1)
            steps_seen += len(sigmas)
            for levels in edges.values():
                active = (sigmas <= levels[:-1]) & (sigmas >= levels[1:])  # (steps, S)
                assert active.sum(1).eq(1).all(), (scheduler, steps)
    assert steps_seen > 9 * 1000


def test_percents_of_another_shift_reach_the_same_levels() -> None:
    levels = StageLevels.learned(StageBounds.equal(10), FlowProcess(3.0))
    seen = []
    for name in (*SHIFTS, "flux"):
        sampling, own = sampling_of(name)
        percents = levels.percents(own)
        seen.append(percents[1])
        assert [sampling.percent_to_sigma(p) for p in percents] == pytest.approx(levels.sigmas, abs=1e-6)
    assert len(set(seen)) == 4 and math.isclose(seen[1], StageBounds.equal(10).percents("continuous")[1])
    assert all(a > b for a, b in pairwise(levels.sigmas))
