"""Assigns the steps of a sampler to stages, by the rule with which ComfyUI's samplers select conditionings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.name_search import choices_text, number_ranges, shown_name
from ...concepts.spectrum.attribute_presets import stages_text
from ...concepts.spectrum.stage_bounds import StageBounds
from .stage_ranges import END, FILLER, START, percent_of_sigma, stage_percents

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from ..host.comfy_objects import Conditioning


@dataclass(frozen=True)
class SampledStep:
    """One step of a sampler."""

    number: int
    """Number of the step, counted from 1."""
    timestep: float
    """Timestep of the model, 999 to 0 for Stable Diffusion."""
    sigma: float
    share: float
    """Share of the sampling in ComfyUI, 0 to 1."""
    stages: tuple[int, ...]
    """Active stages, counted from 0; normally one."""


@dataclass(frozen=True)
class StageSchedule:
    """All steps of a sampler with their stages."""

    title: str
    """Steps, scheduler and denoise in words."""
    ranges: tuple[tuple[float, float], ...]
    """(start, end) of every stage as shares of the sampling."""
    steps: tuple[SampledStep, ...]
    has_filler: bool = False

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of steps in every stage."""
        return tuple(sum(stage in step.stages for step in self.steps) for stage in range(len(self.ranges)))

    @property
    def unreached(self) -> tuple[int, ...]:
        """Stages, counted from 0, without a step."""
        return tuple(stage for stage, count in enumerate(self.counts) if not count)

    def warnings(self) -> list[str]:
        """Warnings in full sentences; empty if every stage is reached and every step is in one stage."""
        found = []
        if self.unreached:
            some = stages_text(self.unreached)
            found.append(f"Stage {some} is" if len(self.unreached) == 1 else f"Stages {some} are")
            found[-1] += (
                " never reached: their texts have no effect. Use more steps, a higher denoise or another scheduler."
            )
        free = [step.number for step in self.steps if not step.stages]
        if free:
            fate = "the filler acts there" if self.has_filler else "nothing guides the picture there"
            found.append(f"{_counted_steps(free)} in no stage: {fate}.")
        double = [step.number for step in self.steps if len(step.stages) > 1]
        if double:
            found.append(f"{_counted_steps(double)} in several stages, which costs time and mixes them.")
        return found


def schedule_stages(
    model: ModelPatcher,
    ranges: Sequence[tuple[float, float]],
    sigmas: Tensor,
    *,
    title: str = "",
    has_filler: bool = False,
) -> StageSchedule:
    """Sort the steps of a sampler into ranges.

    Args:
        model: converts shares of the sampling to noise levels.
        ranges: (start, end) of every stage as shares of the sampling.
        sigmas: `(steps + 1,)` descending noise levels.
    """
    sampling = model.get_model_object("model_sampling")
    ends = [(sampling.percent_to_sigma(start), sampling.percent_to_sigma(end)) for start, end in ranges]
    steps = []
    for number, sigma in enumerate(sigmas[:-1].float(), start=1):
        # compare as float32 tensors like ComfyUI's sampler: float64 would decide borderline cases differently
        stages = tuple(s for s, (first, last) in enumerate(ends) if not (sigma > first or sigma < last))
        timestep = float(sampling.timestep(sigma))
        steps.append(SampledStep(number, timestep, float(sigma), percent_of_sigma(sampling, float(sigma)), stages))
    return StageSchedule(title, tuple(ranges), tuple(steps), has_filler)


def sampler_sigmas(model: ModelPatcher, sampler: str, scheduler: str, steps: int, denoise: float) -> Tensor:
    """The noise levels `(steps + 1,)` of KSampler.

    Raises:
        BestiaryError: an unknown sampler or scheduler, or settings without a step.
    """
    import comfy.samplers

    known = {"sampler": comfy.samplers.KSampler.SAMPLERS, "scheduler": comfy.samplers.KSampler.SCHEDULERS}
    for kind, asked in (("sampler", sampler), ("scheduler", scheduler)):
        if asked not in known[kind]:
            raise BestiaryError(f"no {kind} {shown_name(asked)}; choose {choices_text(asked, known[kind])}")
    if steps < 1 or not 0 < denoise <= 1:
        raise BestiaryError(
            f"{steps} steps with denoise {denoise:g}: give at least 1 step and a denoise above 0, up to 1"
        )
    # KSampler itself drops the penultimate sigma for some samplers
    walk = comfy.samplers.KSampler(model, steps, torch.device("cpu"), sampler, scheduler, denoise)
    return walk.sigmas


def preview_schedule(
    model: ModelPatcher,
    walk: tuple[str, str, int, float],
    sigmas: Tensor | None,
    stages: StageBounds | Conditioning,
    shift: float | None = None,
) -> StageSchedule:
    """The schedule of a sampler over stages, or over the ranges of a conditioning.

    Args:
        model: the model that will be sampled.
        walk: sampler, scheduler, steps and denoise, as in KSampler.
        sigmas: `(steps + 1,)` noise levels instead of `walk`; None computes them from it.
        stages: stages or conditioning to assign the steps to.
        shift: of the flow model the stages were learned with; None takes the model's.

    Raises:
        BestiaryError: an unknown sampler or scheduler, no step, or a conditioning without an entry.
    """
    if sigmas is None:
        _, scheduler, steps, denoise = walk
        sigmas = sampler_sigmas(model, *walk)
        title = f"{len(sigmas) - 1} steps, {scheduler}" + (f", denoise {denoise:g}" if denoise < 1 else "")
    else:
        title = f"{max(0, len(sigmas) - 1)} steps of the connected sigmas"
    if len(sigmas) < 2:
        raise BestiaryError(
            f"the sigmas contain {len(sigmas)} noise levels and therefore no step: connect the sigmas of the sampler"
        )
    if isinstance(stages, StageBounds):
        percents = stage_percents(stages, model=model, shift=shift)
        return schedule_stages(model, tuple(pairwise(percents)), sigmas, title=title)
    ranges, has_filler = conditioning_ranges(stages)
    return schedule_stages(model, ranges, sigmas, title=title, has_filler=has_filler)


def conditioning_ranges(conditioning: Conditioning) -> tuple[tuple[tuple[float, float], ...], bool]:
    """The distinct ranges of a conditioning's entries in order, and whether it has a filler.

    Raises:
        BestiaryError: it has no entry.
    """
    acting = [options for _, options in conditioning if not options.get(FILLER)]
    if not acting:
        raise BestiaryError("the conditioning is empty: connect one from Spectrum Prompt or Stage Text")
    found = sorted({(options.get(START, 0.0), options.get(END, 1.0)) for options in acting})
    return tuple(found), len(acting) < len(conditioning)


def schedule_table(schedule: StageSchedule) -> str:
    """One line per stage with its steps, and the warnings, as text in columns."""
    rows = [("stage", "range", "steps", "which", "timesteps")]
    for stage, ((start, end), count) in enumerate(zip(schedule.ranges, schedule.counts, strict=True)):
        steps = [step for step in schedule.steps if stage in step.stages]
        which = _numbers([step.number for step in steps]) or "-"
        times = "-" if not steps else _span(steps[0].timestep, steps[-1].timestep)
        rows.append((str(stage + 1), f"{100 * start:.1f}-{100 * end:.1f} %", str(count), which, times))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([schedule.title, *lines, *schedule.warnings()]).strip()


def _numbers(steps: Sequence[int]) -> str:
    return number_ranges(steps).replace("..", "-")


def _counted_steps(steps: Sequence[int]) -> str:
    return f"Step {steps[0]} is" if len(steps) == 1 else f"Steps {_numbers(steps)} are"


def _span(first: float, last: float) -> str:
    return f"{first:g}" if first == last else f"{first:g}-{last:g}"


def sampler_names() -> list[str]:
    """ComfyUI's samplers."""
    import comfy.samplers

    return list(comfy.samplers.KSampler.SAMPLERS)


def scheduler_names() -> list[str]:
    """ComfyUI's schedulers."""
    import comfy.samplers

    return list(comfy.samplers.KSampler.SCHEDULERS)
