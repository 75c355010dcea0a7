"""Draws a stage schedule: the timeline with its stages, the steps in them, and warnings about unreached stages."""

from __future__ import annotations

import colorsys
import functools
import textwrap

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...concepts.pictures.part_overlay import Font
from ...concepts.spectrum.attribute_presets import Presets
from .stage_schedule import StageSchedule

WIDTH, MARGIN = 1120, 40
"""Width and margin of the finished picture in pixels."""
FINER = 2
"""Supersampling factor, which antialiases slanted lines."""
BAR, FAN, BOX, LANE, LINE = 46, 84, 34, 26, 26
"""Heights in pixels: timeline, lines to the steps, steps, attribute lane, line of text."""
PAPER, INK, FAINT, EDGE, WARNING = (20, 19, 27), (240, 238, 245), (158, 154, 170), (70, 66, 84), (255, 190, 92)
NO_STAGE = (58, 56, 68)

Box = tuple[float, float, float, float]


def stage_color(stage: int, stages: int) -> tuple[int, int, int]:
    """Colour of a stage, from violet for the first to green for the last; lightness alternates between neighbours."""
    share = stage / max(1, stages - 1)
    light = 0.72 if stage % 2 else 0.62
    red, green, blue = colorsys.hls_to_rgb(0.78 - 0.42 * share, light, 0.55)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_schedule(schedule: StageSchedule, presets: Presets | None = None) -> Tensor:
    """The schedule as an image `(1, H, W, 3)` in 0..1.

    Args:
        schedule: what to draw.
        presets: attributes shown below the timeline, with their ranges.
    """
    lanes = list((presets or {}).items())
    notes = [
        line for warning in schedule.warnings() or ["Every stage is reached."] for line in textwrap.wrap(warning, 108)
    ]
    # the height depends on the number of lanes and wrapped warnings, so positions are computed first
    tops = _tops(len(lanes), len(notes))
    canvas = _Canvas(WIDTH, tops["end"])
    canvas.text((MARGIN, tops["title"]), schedule.title or f"{len(schedule.steps)} steps", 21)
    canvas.text((MARGIN, tops["title"] + 28), "noise", 13, FAINT)
    canvas.text((WIDTH - MARGIN, tops["title"] + 28), "picture", 13, FAINT, "ra")
    _draw_way(canvas, schedule, tops["way"])
    _draw_steps(canvas, schedule, tops["way"] + BAR, tops["steps"])
    _draw_lanes(canvas, lanes, tops["lanes"])
    color = WARNING if schedule.warnings() else FAINT
    for number, line in enumerate(notes):
        canvas.text((MARGIN, tops["notes"] + number * LINE), line, 16, color)
    return canvas.image()


def _tops(lanes: int, notes: int) -> dict[str, int]:
    """Upper edge in pixels of every section, from top to bottom."""
    way = MARGIN - 12 + 50
    steps = way + BAR + FAN
    lane = steps + BOX + 34
    note = lane + lanes * LANE + (22 if lanes else 0)
    return {
        "title": MARGIN - 16,
        "way": way,
        "steps": steps,
        "lanes": lane,
        "notes": note,
        "end": note + notes * LINE + MARGIN - 18,
    }


def _draw_way(canvas: _Canvas, schedule: StageSchedule, top: float) -> None:
    """The timeline from 0 to 1 with a box per stage; boxes without a step are hollow."""
    canvas.box((MARGIN, top, WIDTH - MARGIN, top + BAR), NO_STAGE)
    stages = len(schedule.ranges)
    for stage, ((start, end), count) in enumerate(zip(schedule.ranges, schedule.counts, strict=True)):
        left, right = _place(start), _place(end)
        color = stage_color(stage, stages)
        if count:
            canvas.box((left + 0.75, top, right - 0.75, top + BAR), color)
        else:
            canvas.box((left + 2, top + 1, right - 2, top + BAR - 1), PAPER, color)
        ink = PAPER if count else color
        name, steps = str(stage + 1), "1 step" if count == 1 else f"{count} steps"
        # narrow stages: only the number, or no label at all, so that texts do not overlap
        if right - left > 62:
            canvas.text(((left + right) / 2, top + 15), name, 18, ink, "mm")
            canvas.text(((left + right) / 2, top + 34), steps, 12, ink, "mm")
        elif right - left > 16:
            canvas.text(((left + right) / 2, top + BAR / 2), name, 14, ink, "mm")


def _draw_steps(canvas: _Canvas, schedule: StageSchedule, from_top: float, top: float) -> None:
    """A box per step, connected by a line to its position on the timeline."""
    steps, stages = schedule.steps, len(schedule.ranges)
    if not steps:
        return
    width = (WIDTH - 2 * MARGIN) / len(steps)
    gap = 1.5 if width > 8 else 0
    for index, step in enumerate(steps):
        left = MARGIN + index * width
        middle, place = left + width / 2, _place(step.share)
        color = stage_color(step.stages[0], stages) if step.stages else NO_STAGE
        canvas.line([(place, from_top), (place, from_top + 14), (middle, top - 12), (middle, top)], color)
        canvas.box((left + gap, top, left + width - gap, top + BOX), color)
        if len(step.stages) > 1:
            # a step in two stages: lower half of its box in the colour of the second
            second = stage_color(step.stages[1], stages)
            canvas.box((left + gap, top + BOX / 2, left + width - gap, top + BOX), second)
        if width > 20:
            canvas.text((middle, top + BOX / 2), str(step.number), 14, PAPER if step.stages else FAINT, "mm")
    first, last = (f"step {step.number}, timestep {step.timestep:.5g}" for step in (steps[0], steps[-1]))
    canvas.text((MARGIN, top + BOX + 6), first, 13, FAINT)
    if len(steps) > 1:
        canvas.text((WIDTH - MARGIN, top + BOX + 6), last, 13, FAINT, "ra")


def _draw_lanes(canvas: _Canvas, lanes: list[tuple[str, tuple[tuple[float, float], ...]]], top: float) -> None:
    """A lane per attribute with its ranges on the timeline."""
    for number, (name, ranges) in enumerate(lanes):
        middle = top + number * LANE + LANE / 2
        for start, end in ranges:
            left, right = _place(start), _place(end)
            canvas.line([(left + 1, middle), (right - 1, middle)], EDGE, 3)
            canvas.line([(left + 1, middle - 5), (left + 1, middle + 5)], FAINT, 2)
            canvas.line([(right - 1, middle - 5), (right - 1, middle + 5)], FAINT, 2)
        if ranges:
            center = (_place(ranges[0][0]) + _place(ranges[0][1])) / 2
            canvas.label((center, middle), name, 14)


def _place(share: float) -> float:
    """Horizontal position in pixels of a share of the timeline."""
    return MARGIN + share * (WIDTH - 2 * MARGIN)


class _Canvas:
    """A drawing surface with supersampling; coordinates are those of the finished picture."""

    def __init__(self, width: int, height: int) -> None:
        self._sheet = Image.new("RGB", (width * FINER, height * FINER), PAPER)
        self._draw = ImageDraw.Draw(self._sheet)

    def box(self, box: Box, fill: tuple[int, int, int], outline: tuple[int, int, int] | None = None) -> None:
        corners = [edge * FINER for edge in box]
        if corners[2] > corners[0]:
            self._draw.rounded_rectangle(corners, radius=5 * FINER, fill=fill, outline=outline, width=2 * FINER)

    def line(self, points: list[tuple[float, float]], color: tuple[int, int, int], width: float = 1.5) -> None:
        self._draw.line(
            [(x * FINER, y * FINER) for x, y in points], fill=color, width=round(width * FINER), joint="curve"
        )

    def text(
        self, place: tuple[float, float], text: str, size: int, color: tuple[int, int, int] = INK, anchor: str = "la"
    ) -> None:
        self._draw.text((place[0] * FINER, place[1] * FINER), text, font=_font(size * FINER), fill=color, anchor=anchor)

    def label(self, place: tuple[float, float], text: str, size: int) -> None:
        """Text on a filled box, so that a line behind it stays hidden; kept inside the margins."""
        half = self._draw.textlength(text, font=_font(size * FINER)) / FINER / 2 + 8
        x = min(max(place[0], MARGIN + half), WIDTH - MARGIN - half)
        self.box((x - half, place[1] - 9, x + half, place[1] + 9), PAPER)
        self.text((x, place[1]), text, size, INK, "mm")

    def image(self) -> Tensor:
        """The finished picture `(1, H, W, 3)` in 0..1."""
        small = self._sheet.resize([edge // FINER for edge in self._sheet.size], Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(small, dtype=np.float32) / 255).unsqueeze(0)


@functools.lru_cache(maxsize=16)
def _font(size: int) -> Font:
    return ImageFont.load_default(size)
