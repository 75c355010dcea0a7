"""Steps of each stage for a sampler that only a browser knows yet: ComfyUI's own noise levels of Stable Diffusion."""

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
"""What is counted; a sampler with more steps is none that a strip could show."""
LONGEST_NAME = 60


@dataclass(frozen=True)
class SamplerWalk:
    """A sampler's fields, and the stages its steps are counted by."""

    sampler: str
    scheduler: str
    steps: int
    denoise: float
    first: int
    """Step at which it begins, from 0."""
    last: int
    """Step before which it ends; beyond the steps is their end."""
    stages: int
    clock: str


class StableDiffusionNoise:
    """Stands for a MODEL where only its noise levels are asked for."""

    def __init__(self) -> None:
        """Stable Diffusion's own schedule, as ComfyUI sets it up."""
        from comfy.model_sampling import EPS, ModelSamplingDiscrete

        self._sampling = type("StableDiffusionSampling", (ModelSamplingDiscrete, EPS), {})()

    def get_model_object(self, name: str) -> object:
        """The model sampling; there is nothing else.

        Raises:
            BestiaryError: something else was asked for.
        """
        if name != "model_sampling":
            raise BestiaryError(f"only the noise levels are known here, not {shown_name(name)}")
        return self._sampling


@functools.lru_cache(maxsize=1)
def _noise() -> StableDiffusionNoise:
    return StableDiffusionNoise()


@functools.lru_cache(maxsize=256)
def count_steps(walk: SamplerWalk) -> dict[str, object]:
    """`counts` of the steps in every stage, `total` steps, and how many are `free`, in no stage.

    Raises:
        BestiaryError: an unknown sampler, scheduler or clock, or numbers beyond what is counted.
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
    model = _noise()
    sigmas = sampler_sigmas(model, walk.sampler, walk.scheduler, walk.steps, walk.denoise)
    percents = stage_percents(StageBounds.equal(walk.stages), clock, model, sigmas)
    walked = sigmas[walk.first : walk.last + 1]
    if len(walked) < 2:
        raise BestiaryError(f"no step lies between start_at_step {walk.first} and end_at_step {walk.last}")
    # a stage of equal ends has no entry in the conditioning
    ranges = [(start, end) if start < end else (2.0, 2.0) for start, end in pairwise(percents)]
    schedule = schedule_stages(model, ranges, walked)
    free = sum(not step.stages for step in schedule.steps)
    return {"counts": list(schedule.counts), "total": len(schedule.steps), "free": free}


def read_walk(query: dict[str, str]) -> SamplerWalk:
    """The fields out of an address.

    Raises:
        BestiaryError: a field is missing, no number or too long.
    """
    text = {name: query.get(name, "") for name in ("sampler", "scheduler", "clock")}
    strange = next((name for name, value in text.items() if len(value) > LONGEST_NAME), None)
    if strange:
        raise BestiaryError(f"{strange} of {len(text[strange])} characters: at most {LONGEST_NAME} are accepted")
    whole = {name: _whole(query, name) for name in ("steps", "first", "last", "stages")}
    denoise = query.get("denoise", "1")
    try:
        share = float(denoise[:20])
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise BestiaryError(f"denoise {denoise[:20]!r} leaves no step: enter a number above 0, up to 1")
    return SamplerWalk(text["sampler"], text["scheduler"], denoise=share, clock=text["clock"], **whole)


def _whole(query: dict[str, str], name: str) -> int:
    value = query.get(name, "")
    if not (value.isascii() and value.isdecimal() and len(value) <= 6):
        raise BestiaryError(f"{name} must be a non-negative integer, got {value[:20]!r}")
    return int(value)
