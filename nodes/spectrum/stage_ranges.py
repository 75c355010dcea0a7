"""Stages as timestep ranges of ComfyUI's conditionings: by timesteps or by steps, with intersection and gap filling.

ComfyUI measures the sampling from 0 (pure noise) to 1 and converts both ends of a range to inclusive noise levels; see
concepts/spectrum/stage_bounds.py for boundaries that never coincide with a sampler's noise level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.spectrum.stage_bounds import Clock, StageBounds

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from ..host.comfy_objects import Conditioning, ModelSampling

StageClock = Literal["timesteps", "steps"]
CLOCKS: tuple[StageClock, ...] = ("timesteps", "steps")
"""Stages divide the timesteps of the model, as in training, or the steps of a sampler."""
START, END, FILLER = "start_percent", "end_percent", "default"
"""ComfyUI's keys in the options of a conditioning."""
LIMITS = ("area", "mask", "strength", "mask_strength")
"""Keys in the options of an entry that limit it to an area or reduce its strength."""
ABOVE_STEP = 0.0137
"""Position of the boundary before a step between its noise level (0) and the previous one (1), in logarithms. It is close to
0, so that intermediate evaluations of the previous step keep their stage, and differs from the fractions used by samplers."""
_HALVINGS = 64


@dataclass(frozen=True)
class StageTiming:
    """Timing of stages."""

    clock: StageClock = "timesteps"
    model: ModelPatcher | None = None
    sigmas: Tensor | None = None
    """`(steps + 1,)`."""
    assumed: float | None = None
    """Shift of a flow model that is assumed where neither a MODEL nor a spectrum names one."""


class FillerOptions(dict):
    """Options of a filler entry, which acts where no other does; disabled permanently once a node limits or weights it.

    ComfyUI applies a filler to whatever the other entries leave uncovered of the whole picture: outside an area or a mask,
    or up to full strength, it would act everywhere, and with an area it would not match the picture.
    """

    def copy(self) -> FillerOptions:
        """A copy of the same class, because nodes modify copies."""
        return FillerOptions(self)

    def __setitem__(self, key: str, value: object) -> None:
        super().__setitem__(key, value)
        if key in LIMITS:
            # an inverted range contains no step
            super().update({START: 1.0, END: 0.0})


def percent_clock(model: ModelPatcher | None) -> Clock:
    """How a model converts shares of the sampling to noise levels; for None, that of Stable Diffusion."""
    if model is None:
        return "discrete"
    from comfy.model_sampling import ModelSamplingDiscrete

    sampling = model.get_model_object("model_sampling")
    own = type(sampling).percent_to_sigma
    return "discrete" if own is ModelSamplingDiscrete.percent_to_sigma else "continuous"


def stage_percents(
    bounds: StageBounds,
    clock: StageClock = "timesteps",
    model: ModelPatcher | None = None,
    sigmas: Tensor | None = None,
    shift: float | None = None,
) -> tuple[float, ...]:
    """The S + 1 boundaries of stages as shares of the sampling; a stage without a step has equal ends.

    Args:
        bounds: the stages.
        clock: whether stages divide timesteps or steps.
        model: provides the noise schedule; required for steps, and for models other than Stable Diffusion.
        sigmas: `(steps + 1,)` descending noise levels of the sampler; required for steps.
        shift: of the flow model the stages were learned with: they keep its noise levels whatever the model's own shift is. None takes the
            model's.

    Raises:
        BestiaryError: the clock steps without a model or without steps, or stages of a flow model with a model of another kind.
    """
    if clock == "timesteps":
        return _time_percents(bounds, model, shift)
    if clock != "steps":
        raise BestiaryError(f"unknown clock {clock!r}: choose {' or '.join(CLOCKS)}")
    if model is None or sigmas is None:
        missing = " and ".join(name for name, given in (("model", model), ("sigmas", sigmas)) if given is None)
        raise BestiaryError(
            f"the clock counts steps, but {missing} is not connected: connect the MODEL and the SIGMAS of the sampler "
            "(Basic Scheduler), or choose the clock timesteps"
        )
    return _step_percents(bounds, model.get_model_object("model_sampling"), sigmas.double().tolist())


def _time_percents(bounds: StageBounds, model: ModelPatcher | None, shift: float | None) -> tuple[float, ...]:
    if shift is None:
        return bounds.percents(percent_clock(model))
    # without a MODEL the shift is taken to be the one of learning, at which shares of time are shares of the sampling
    if model is None:
        return bounds.percents("continuous")
    from ...concepts.denoiser.process import FlowProcess
    from ...concepts.spectrum.stage_levels import StageLevels
    from ..denoiser.flow_sampling import flow_sampling, is_flow
    from ..denoiser.model_backbone import prediction_of

    if not is_flow(model):
        raise BestiaryError(
            f"the stages were learned on a flow model (shift {shift:g}), but the MODEL predicts {prediction_of(model)}: connect the MODEL that "
            "is sampled, of the kind the spectrum was trained for"
        )
    sampling = flow_sampling(model)
    levels = StageLevels.learned(bounds, FlowProcess(shift)).sigmas[1:-1]
    return (0.0, *(percent_of_sigma(sampling, level) for level in levels), 1.0)


def _step_percents(bounds: StageBounds, sampling: ModelSampling, sigmas: Sequence[float]) -> tuple[float, ...]:
    levels = [sigma for sigma in sigmas[:-1] if sigma > 0]
    if not levels:
        raise BestiaryError(
            f"the sigmas contain {len(sigmas)} noise levels and therefore no step: connect the sigmas of the sampler"
        )
    inner = []
    for share in bounds.fractions[1:-1]:
        # subtract an epsilon: in floating point 0.1 * 30 is slightly larger than 3
        step = math.ceil(share * len(levels) - 1e-6)
        if step <= 0 or step >= len(levels):
            inner.append(0.0 if step <= 0 else 1.0)
            continue
        before, after = math.log(levels[step - 1]), math.log(levels[step])
        inner.append(percent_of_sigma(sampling, math.exp(after + ABOVE_STEP * (before - after))))
    return (0.0, *inner, 1.0)


def percent_of_sigma(sampling: ModelSampling, sigma: float) -> float:
    """The share of the sampling at which a model's noise reaches a level, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if sampling.percent_to_sigma(middle) > sigma:
            low = middle
        else:
            high = middle
    return high


def staged_entries(
    contents: Sequence[tuple[Tensor, dict[str, object]]], percents: Sequence[float], *, filler: bool = True
) -> Conditioning:
    """A conditioning whose entries `(1, T, E)` act one after another.

    Args:
        contents: tensor and options of every stage; a single stage gets no range.
        percents: the boundaries, one more than stages.
        filler: add an entry that acts only where no stage does, at no cost, with the content of the longest stage.
    """
    if len(contents) == 1:
        return [[contents[0][0], dict(contents[0][1])]]
    ranges = list(pairwise(percents))
    entries = [
        [cond, {**options, START: start, END: end}]
        for (cond, options), (start, end) in zip(contents, ranges, strict=True)
        if start < end
    ]
    if filler:
        longest = max(range(len(ranges)), key=lambda stage: ranges[stage][1] - ranges[stage][0])
        cond, options = contents[longest]
        entries.append([cond, FillerOptions({**options, FILLER: True})])
    return entries


def intersect_range(
    conditioning: Conditioning, start: float, end: float, *, outside: Conditioning | None, model: ModelPatcher | None
) -> tuple[Conditioning, str]:
    """The part of a conditioning between two shares of the sampling, with its stages, and a report.

    Fillers are dropped, because they would act outside. The ends are shifted like stage boundaries, so that two adjacent
    ranges never act at the same time.

    Args:
        conditioning: entries with or without ranges.
        start, end: 0 to 1.
        outside: conditioning for the rest of the sampling; None leaves the rest to other conditionings.
        model: for models other than Stable Diffusion.

    Raises:
        BestiaryError: the range is empty, or contains no part of the conditioning.
    """
    if not 0 <= start < end <= 1:
        raise BestiaryError(f"the range {start:g} to {end:g} is invalid: enter a start below the end, both from 0 to 1")
    first, last = range_ends(start, end, model)
    kept = []
    for cond, options in conditioning:
        if options.get(FILLER):
            continue
        own_first, own_last = max(first, options.get(START, 0.0)), min(last, options.get(END, 1.0))
        if own_first < own_last:
            kept.append([cond, {**options, START: own_first, END: own_last}])
    if not kept:
        spans = ", ".join(f"{o.get(START, 0.0):.3g} to {o.get(END, 1.0):.3g}" for _, o in conditioning) or "no entry"
        raise BestiaryError(f"no part of the conditioning ({spans}) is between {start:g} and {end:g}: widen the range")
    stages = len([1 for _, options in conditioning if not options.get(FILLER)])
    report = f"{len(kept)} of {stages} stages act between {start:.4g} and {end:.4g} of the sampling."
    if outside:
        kept += [[cond, FillerOptions({**options, FILLER: True})] for cond, options in outside]
        report += " Elsewhere the second conditioning acts."
    elif (start, end) != (0, 1):
        report += " Elsewhere nothing acts: combine this with a conditioning for the rest, or connect one to outside."
    return kept, report


def range_ends(start: float, end: float, model: ModelPatcher | None) -> tuple[float, float]:
    """Shares of the sampling for ComfyUI, shifted like stage boundaries; 0 and 1 are unchanged."""
    inner = sorted({share for share in (start, end) if 0 < share < 1})
    percents = StageBounds.from_fractions(inner).percents(percent_clock(model))
    place = dict(zip((0.0, *inner, 1.0), percents, strict=True))
    return place[start], place[end]
