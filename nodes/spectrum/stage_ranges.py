"""Stages as ranges of ComfyUI's conditionings: by timesteps or by steps, cut, and without gaps.

ComfyUI counts a way from 0 (pure noise) to 1 and turns both ends of a range into noise levels that are included; see
concepts/spectrum/stage_bounds.py for boundaries that no sampler hits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
"""Stages share the timesteps of the model, as they were trained, or the steps of a sampler."""
START, END, FILLER = "start_percent", "end_percent", "default"
"""Keys of a conditioning's options that ComfyUI reads."""
LIMITS = ("area", "mask", "strength", "mask_strength")
"""What nodes put into the options of an entry that shall act on a part of the picture, or less."""
ABOVE_STEP = 0.0137
"""Where the boundary in front of a step lies between its noise level and the one before, in logarithms: so close that all
evaluations of the step before, also those in between, keep their stage, and no fraction that samplers use."""
_HALVINGS = 64


class FillerOptions(dict):
    """Options of an entry that acts where no other does: it steps back for good where a node limits or weighs its entry.

    ComfyUI fills what other entries leave free of the whole picture, so outside of an area or a mask, or up to full
    strength, such an entry would act everywhere, and with an area not fit the picture at all.
    """

    def copy(self) -> FillerOptions:
        """Of the same class: nodes change copies."""
        return FillerOptions(self)

    def __setitem__(self, key: str, value: object) -> None:
        super().__setitem__(key, value)
        if key in LIMITS:
            # from the picture back to the noise: no step lies there
            super().update({START: 1.0, END: 0.0})


def percent_clock(model: ModelPatcher | None) -> Clock:
    """How a model turns shares of the way into noise; without a model, as Stable Diffusion does."""
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
) -> tuple[float, ...]:
    """The S + 1 boundaries of stages as shares of the way; a stage without a step has equal ends.

    Args:
        bounds: the stages.
        clock: what the stages share.
        model: tells how noise depends on the way; needed for steps, and for models other than Stable Diffusion.
        sigmas: `(steps + 1,)` noise levels of the sampler, falling; needed for steps.

    Raises:
        BestiaryError: the step clock has no model or no steps.
    """
    if clock == "timesteps":
        return bounds.percents(percent_clock(model))
    if clock != "steps":
        raise BestiaryError(f"unknown clock {clock!r}: choose {' or '.join(CLOCKS)}")
    if model is None or sigmas is None:
        missing = " and ".join(name for name, given in (("model", model), ("sigmas", sigmas)) if given is None)
        raise BestiaryError(
            f"the clock counts steps, but {missing} is not connected: connect the MODEL and the SIGMAS of the sampler "
            "(Basic Scheduler), or choose the clock timesteps"
        )
    return _step_percents(bounds, model.get_model_object("model_sampling"), sigmas.double().tolist())


def _step_percents(bounds: StageBounds, sampling: ModelSampling, sigmas: Sequence[float]) -> tuple[float, ...]:
    levels = [sigma for sigma in sigmas[:-1] if sigma > 0]
    if not levels:
        raise BestiaryError(
            f"the sigmas hold {len(sigmas)} noise levels and thus no step: connect the sigmas of the sampler"
        )
    inner = []
    for share in bounds.fractions[1:-1]:
        # a hair is taken off, because 0.1 * 30 is a little more than 3
        step = math.ceil(share * len(levels) - 1e-6)
        if step <= 0 or step >= len(levels):
            inner.append(0.0 if step <= 0 else 1.0)
            continue
        before, after = math.log(levels[step - 1]), math.log(levels[step])
        inner.append(percent_of_sigma(sampling, math.exp(after + ABOVE_STEP * (before - after))))
    return (0.0, *inner, 1.0)


def percent_of_sigma(sampling: ModelSampling, sigma: float) -> float:
    """The share of the way at which a model's noise has fallen to a level."""
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
        contents: tensor and options of every stage; a single one has no range.
        percents: the boundaries, one more than stages.
        filler: add an entry that acts only where no stage does, at no cost; it says what the longest stage says.
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
    """The part of a conditioning between two shares of the way, its stages kept, and what became of it.

    Fillers are dropped, as they would act outside. The ends lie where a stage boundary would, so two ranges that meet
    never act at once.

    Args:
        conditioning: entries with or without ranges.
        start, end: 0 to 1.
        outside: what acts where nothing else does; None leaves that to whatever is combined with this.
        model: for models other than Stable Diffusion.

    Raises:
        BestiaryError: the range is empty, or nothing of the conditioning lies in it.
    """
    if not 0 <= start < end <= 1:
        raise BestiaryError(f"range {start:g} to {end:g}: enter a start below the end, both from 0 to 1")
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
        raise BestiaryError(
            f"no part of the conditioning ({spans}) lies between {start:g} and {end:g}: widen the range"
        )
    stages = len([1 for _, options in conditioning if not options.get(FILLER)])
    report = f"{len(kept)} of {stages} stages act between {start:.4g} and {end:.4g} of the way."
    if outside:
        kept += [[cond, FillerOptions({**options, FILLER: True})] for cond, options in outside]
        report += " Elsewhere the second conditioning acts."
    elif (start, end) != (0, 1):
        report += " Elsewhere nothing acts: combine this with a conditioning for the rest, or link one as outside."
    return kept, report


def range_ends(start: float, end: float, model: ModelPatcher | None) -> tuple[float, float]:
    """Shares of the way for ComfyUI, moved to where a stage boundary would lie; 0 and 1 stay."""
    inner = sorted({share for share in (start, end) if 0 < share < 1})
    percents = StageBounds.from_fractions(inner).percents(percent_clock(model))
    place = dict(zip((0.0, *inner, 1.0), percents, strict=True))
    return place[start], place[end]
