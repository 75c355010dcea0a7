"""Which steps of a sampler fall into which stages, by the rule with which ComfyUI's samplers choose conditionings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.name_search import choices_text, number_ranges, shown_name
from ...concepts.spectrum.attribute_presets import stages_text
from ...concepts.spectrum.stage_bounds import StageBounds
from .stage_ranges import END, FILLER, START, percent_clock, percent_of_sigma

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from ..host.comfy_objects import Conditioning


@dataclass(frozen=True)
class SampledStep:
    """One step of a sampler."""

    number: int
    """From 1."""
    timestep: float
    """As the model counts, 999 to 0 for Stable Diffusion."""
    sigma: float
    share: float
    """Share of ComfyUI's way, 0 to 1."""
    stages: tuple[int, ...]
    """Stages, from 0, that act in it: one, if all is well."""


@dataclass(frozen=True)
class StageSchedule:
    """All steps of a sampler and the stages they fall into."""

    title: str
    """Steps, scheduler and denoise in words."""
    ranges: tuple[tuple[float, float], ...]
    """(start, end) of every stage as shares of the way."""
    steps: tuple[SampledStep, ...]
    has_filler: bool = False

    @property
    def counts(self) -> tuple[int, ...]:
        """Steps in every stage."""
        return tuple(sum(stage in step.stages for step in self.steps) for stage in range(len(self.ranges)))

    @property
    def unreached(self) -> tuple[int, ...]:
        """Stages, from 0, that no step falls into."""
        return tuple(stage for stage, count in enumerate(self.counts) if not count)

    def warnings(self) -> list[str]:
        """What the user should know, in full sentences; empty if every stage is reached and every step is in one stage."""
        found = []
        if self.unreached:
            some = stages_text(self.unreached)
            found.append(f"Stage {some} is" if len(self.unreached) == 1 else f"Stages {some} are")
            found[-1] += (
                " never reached: what they say has no effect. Take more steps, a higher denoise or another scheduler."
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
        model: turns shares of the way into noise.
        ranges: (start, end) of every stage as shares of the way.
        sigmas: `(steps + 1,)` noise levels, falling.
    """
    sampling = model.get_model_object("model_sampling")
    ends = [(sampling.percent_to_sigma(start), sampling.percent_to_sigma(end)) for start, end in ranges]
    steps = []
    for number, sigma in enumerate(sigmas[:-1].float(), start=1):
        # compared as tensors of float32, as the sampler does
        stages = tuple(s for s, (first, last) in enumerate(ends) if not (sigma > first or sigma < last))
        timestep = float(sampling.timestep(sigma))
        steps.append(SampledStep(number, timestep, float(sigma), percent_of_sigma(sampling, float(sigma)), stages))
    return StageSchedule(title, tuple(ranges), tuple(steps), has_filler)


def sampler_sigmas(model: ModelPatcher, sampler: str, scheduler: str, steps: int, denoise: float) -> Tensor:
    """The noise levels `(steps + 1,)` that KSampler walks through.

    Raises:
        BestiaryError: there is no such sampler or scheduler, or the numbers leave no step.
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
    walk = comfy.samplers.KSampler(model, steps, torch.device("cpu"), sampler, scheduler, denoise)
    return walk.sigmas


def preview_schedule(
    model: ModelPatcher,
    walk: tuple[str, str, int, float],
    sigmas: Tensor | None,
    stages: StageBounds | Conditioning,
) -> StageSchedule:
    """The schedule of a sampler over stages, or over the ranges of a conditioning.

    Args:
        model: the model that will be sampled.
        walk: sampler, scheduler, steps and denoise, as in KSampler.
        sigmas: `(steps + 1,)` instead of these; None takes the walk.
        stages: what the steps are sorted into.

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
            f"the sigmas hold {len(sigmas)} noise levels and thus no step: connect the sigmas of the sampler"
        )
    if isinstance(stages, StageBounds):
        return schedule_stages(model, stages.percent_ranges(percent_clock(model)), sigmas, title=title)
    ranges, has_filler = conditioning_ranges(stages)
    return schedule_stages(model, ranges, sigmas, title=title, has_filler=has_filler)


def conditioning_ranges(conditioning: Conditioning) -> tuple[tuple[tuple[float, float], ...], bool]:
    """The ranges of a conditioning's entries in their order on the way, each once, and whether it has a filler.

    Raises:
        BestiaryError: it has no entry.
    """
    acting = [options for _, options in conditioning if not options.get(FILLER)]
    if not acting:
        raise BestiaryError("the conditioning has no entry: connect one of Spectrum Prompt or Stage Text")
    found = sorted({(options.get(START, 0.0), options.get(END, 1.0)) for options in acting})
    return tuple(found), len(acting) < len(conditioning)


def schedule_table(schedule: StageSchedule) -> str:
    """One line per stage with its steps, and the warnings, as text in columns."""
    rows = [("stage", "way", "steps", "which", "timesteps")]
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
    return f"Step {steps[0]} lies" if len(steps) == 1 else f"Steps {_numbers(steps)} lie"


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
