"""Steps per stage for sampler settings from the browser, with ComfyUI's noise schedule of Stable Diffusion or of a flow."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import pairwise

from ...concepts.errors import BestiaryError
from ...concepts.name_search import shown_name
from ...concepts.spectrum.stage_bounds import StageBounds
from .stage_ranges import CLOCKS, StageClock, stage_percents
from .stage_schedule import sampler_sigmas, schedule_stages

MOST_STAGES, MOST_STEPS = 250, 1000
"""Limits of a request; the browser's strip cannot display more."""
LONGEST_NAME, LARGEST_SHIFT = 60, 100


@dataclass(frozen=True)
class SamplerWalk:
    """Settings of a sampler, and the stages to count its steps in."""

    sampler: str
    scheduler: str
    steps: int
    denoise: float
    first: int
    """First step, counted from 0."""
    last: int
    """End step, exclusive; larger values mean the last step."""
    stages: int
    clock: str
    shift: float | None = None
    """Of the flow that the stages were learned with and the model is taken to have; None is Stable Diffusion's noise."""


class KnownNoise:
    """Substitute for a MODEL that provides only the noise schedule."""

    def __init__(self, shift: float | None = None) -> None:
        """Stable Diffusion's schedule with ComfyUI's default parameters, or that of a flow with a shift."""
        import comfy.model_sampling as kinds

        if shift is None:
            self._sampling = type("StableDiffusionSampling", (kinds.ModelSamplingDiscrete, kinds.EPS), {})()
            return
        self._sampling = type("FlowSampling", (kinds.ModelSamplingDiscreteFlow, kinds.CONST), {})()
        self._sampling.set_parameters(shift=shift)

    def get_model_object(self, name: str) -> object:
        """The model sampling.

        Raises:
            BestiaryError: any other object was requested.
        """
        if name != "model_sampling":
            raise BestiaryError(f"{shown_name(name)} is not available without a MODEL: only model_sampling is")
        return self._sampling


@functools.lru_cache(maxsize=16)
def _noise(shift: float | None) -> KnownNoise:
    return KnownNoise(shift)


@functools.lru_cache(maxsize=256)
def count_steps(walk: SamplerWalk) -> dict[str, object]:
    """`counts`: steps per stage; `total`: number of steps; `free`: number of steps in no stage.

    Raises:
        BestiaryError: an unknown sampler, scheduler or clock, or numbers beyond the limits.
    """
    if not (
        1 <= walk.stages <= MOST_STAGES and 1 <= walk.steps <= MOST_STEPS and walk.steps <= MOST_STEPS * walk.denoise
    ):
        raise BestiaryError(
            f"{walk.steps} steps with denoise {walk.denoise:g} over {walk.stages} stages cannot be counted: at most "
            f"{MOST_STEPS} steps in all and {MOST_STAGES} stages"
        )
    clock: StageClock | None = next((known for known in CLOCKS if known == walk.clock), None)
    if clock is None:
        raise BestiaryError(f"unknown clock {shown_name(walk.clock)}: choose {' or '.join(CLOCKS)}")
    model = _noise(walk.shift)
    sigmas = sampler_sigmas(model, walk.sampler, walk.scheduler, walk.steps, walk.denoise)
    percents = stage_percents(StageBounds.equal(walk.stages), clock, model, sigmas, walk.shift)
    walked = sigmas[walk.first : walk.last + 1]
    if len(walked) < 2:
        raise BestiaryError(
            f"there is no step between start_at_step {walk.first} and end_at_step {walk.last}: enter a larger end_at_step"
        )
    # a stage with equal ends has no entry in the conditioning: a range beyond 1 keeps its number but no step
    ranges = [(start, end) if start < end else (2.0, 2.0) for start, end in pairwise(percents)]
    schedule = schedule_stages(model, ranges, walked)
    free = sum(not step.stages for step in schedule.steps)
    return {"counts": list(schedule.counts), "total": len(schedule.steps), "free": free}


def read_walk(query: dict[str, str]) -> SamplerWalk:
    """The settings from the query of a URL.

    Raises:
        BestiaryError: a field is missing, not a number or too long.
    """
    text = {name: query.get(name, "") for name in ("sampler", "scheduler", "clock")}
    strange = next((name for name, value in text.items() if len(value) > LONGEST_NAME), None)
    if strange:
        raise BestiaryError(f"{strange} of {len(text[strange])} characters: at most {LONGEST_NAME} are accepted")
    whole = {name: _whole(query, name) for name in ("steps", "first", "last", "stages")}
    denoise = _number(query, "denoise", 1)
    shift = _number(query, "shift", LARGEST_SHIFT) if query.get("shift") else None
    return SamplerWalk(text["sampler"], text["scheduler"], denoise=denoise, clock=text["clock"], shift=shift, **whole)


def _number(query: dict[str, str], name: str, most: float) -> float:
    value = query.get(name, "1")
    try:
        number = float(value[:20])
    except ValueError:
        number = -1.0
    if not 0 < number <= most:
        raise BestiaryError(f"{name} {value[:20]!r} is out of range: enter a number above 0, up to {most:g}")
    return number


def _whole(query: dict[str, str], name: str) -> int:
    value = query.get(name, "")
    if not (value.isascii() and value.isdecimal() and len(value) <= 6):
        raise BestiaryError(f"{name} must be a non-negative integer, got {value[:20]!r}")
    return int(value)
