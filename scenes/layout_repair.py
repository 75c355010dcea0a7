"""From boxes of any origin to a layout that keeps the limits: checked first, and where that fails moved as little as may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..concepts.errors import BestiaryError
from ..concepts.name_search import choices_text, shown_name
from .layout_measures import SLACK, box_occlusion, is_inside, turned_box
from .layout_names import match_names
from .layout_request import LayoutRequest, supporters
from .layout_solver import solve_layout
from .scene_layout import Placement, SceneLayout, is_number
from .subject import Subject

MOST_BOXES = 1000
"""In one text."""
_DISTANCES = (0.5, 0.7, 0.85, 1.0)
"""How far apart neighbours are moved, as shares of the distance at which they no longer overlap."""
_SAME_SHAPE = 1e-3
"""Relative difference of width over height that counts as rounding."""
_LEAST_SIDE = 1.0
_SHRINK = 1 - 1e-9


class NamedBox(NamedTuple):
    """A box with the name of what is in it."""

    name: str
    x: float
    """Left side, in pixels of the canvas."""
    y: float
    """Top."""
    width: float
    height: float
    turn: float = 0.0
    """Degrees clockwise."""
    flip: bool = False
    z: int | None = None
    """Order of painting; by the feet where any box has none."""


class FittedLayout(NamedTuple):
    """A layout and what had to be done for it."""

    layout: SceneLayout
    notes: tuple[str, ...]
    """What was left out, added or moved, in words; empty where the boxes were taken as they are."""


def fit_boxes(
    boxes: Sequence[NamedBox], subjects: Sequence[Subject], request: LayoutRequest, made_by: str = "boxes"
) -> FittedLayout:
    """A layout of exactly the subjects, from boxes that were drawn or written by somebody.

    Every cut-out is as large as it can be within its box, around the same centre. Then, only where it is needed: missing subjects
    are added where the solver puts them, boxes are moved onto the canvas, what stands on another is put on its top, overlaps
    over `max_occlusion` are moved apart in the order of the boxes' centres; all are scaled together where the canvas is too narrow.
    Whatever then still breaks a limit makes the solver lay out all of them anew.

    Raises:
        BestiaryError: no box names a subject, more than 1000 boxes, or what `solve_layout` raises.
    """
    below = supporters(subjects)
    if len(boxes) > MOST_BOXES:
        raise BestiaryError(f"{len(boxes)} boxes are too many for a layout: at most {MOST_BOXES}")
    usable = [box for box in boxes if _is_box(box)]
    notes = [f"the box of {shown_name(box.name)} is empty or no number: left out" for box in boxes if not _is_box(box)]
    matched = match_names([box.name for box in usable], subjects)
    notes += matched.notes
    if not matched.places:
        found = ", ".join(shown_name(box.name) for box in boxes[:12]) or "none at all"
        names = [subject.name for subject in subjects]
        raise BestiaryError(
            f"no box of the layout has the name of a subject: found {found}; wanted {choices_text('', names)}"
        )
    of_subject = {subject: usable[place] for place, subject in matched.places.items()}
    placements = {index: _inscribed(subjects[index], box) for index, box in of_subject.items()}
    placements = {index: one for index, one in placements.items() if min(one.width, one.height) >= _LEAST_SIDE}
    missing = [index for index in range(len(subjects)) if index not in placements]
    if missing:
        solved = solve_layout(subjects, request)
        placements |= {index: solved.placements[index] for index in missing}
        notes += [f"{shown_name(subjects[index].name)} had no usable box: added" for index in missing]
    ordered = [placements[index] for index in range(len(subjects))]
    given = [of_subject[index].z if index in of_subject else None for index in range(len(subjects))]
    keeps_order = not missing and all(z is not None for z in given)
    make = _maker(request, below, made_by, [z or 0 for z in given] if keeps_order else None)
    layout, moves = _within_limits(ordered, below, request, make)
    notes += moves
    if _is_within(layout, request) and min(min(one.width, one.height) for one in layout.placements) >= _LEAST_SIDE:
        return FittedLayout(layout, tuple(notes))
    layout = solve_layout(subjects, request)
    return FittedLayout(
        replace(layout, made_by=made_by), (*notes, "the boxes cannot keep the limits: all laid out anew")
    )


Maker = Callable[[Sequence[Placement]], SceneLayout]


def _is_box(box: NamedBox) -> bool:
    numbers = (box.x, box.y, box.width, box.height, box.turn)
    return all(map(is_number, numbers)) and box.width > 0 and box.height > 0 and max(map(abs, numbers)) < 1e9


def _inscribed(subject: Subject, box: NamedBox) -> Placement:
    """The largest upright box of the cut-out's shape within a box, around its centre."""
    width, height = box.width, box.height
    if abs(width / height / subject.aspect - 1) > _SAME_SHAPE:
        width, height = min(width, height * subject.aspect), min(height, width / subject.aspect)
    turn = (box.turn + 180) % 360 - 180 if abs(box.turn) > 180 else box.turn
    return Placement(
        subject.name,
        box.x + (box.width - width) / 2,
        box.y + (box.height - height) / 2,
        width,
        height,
        turn,
        box.flip,
    )


def _maker(request: LayoutRequest, below: Sequence[int | None], made_by: str, given: Sequence[int] | None) -> Maker:
    """Makes layouts of placements with their order of painting: the given one, or by the feet of the lowest of each column."""

    def make(placements: Sequence[Placement]) -> SceneLayout:
        def order(index: int) -> tuple[float, int]:
            height, root = 0, index
            while (under := below[root]) is not None:
                height, root = height + 1, under
            return placements[root].foot, height

        if given is None:
            ranks = sorted(range(len(placements)), key=order)
            levels = {index: z for z, index in enumerate(ranks)}
        else:
            levels = dict(enumerate(given))
        stacked = tuple(replace(one, z=levels[index]) for index, one in enumerate(placements))
        return SceneLayout(request.width, request.height, stacked, request.seed, made_by)

    return make


def _is_within(layout: SceneLayout, request: LayoutRequest) -> bool:
    return is_inside(layout) and box_occlusion(layout) <= request.max_occlusion + SLACK


def _within_limits(
    placements: list[Placement], below: Sequence[int | None], request: LayoutRequest, make: Maker
) -> tuple[SceneLayout, list[str]]:
    """The layout, moved where it must be, and what was moved. It may still break a limit."""
    notes: list[str] = []
    if not is_inside(make(placements)):
        placements, scale = _on_canvas(placements, request)
        notes.append("moved onto the canvas" + (f", all scaled by {scale:.3g}" if scale < 1 else ""))
    layout = make(placements)
    if _is_within(layout, request):
        return layout, notes
    if any(under is not None for under in below):
        placements = _on_top(placements, below)
        placements, _ = _on_canvas(placements, request)
        layout = make(placements)
        notes.append("what stands on another was put on its top")
        if _is_within(layout, request):
            return layout, notes
    scale = 1.0
    for distance in _DISTANCES:
        apart, scale = _apart(placements, distance, request)
        layout = make(apart)
        if _is_within(layout, request):
            break
    notes.append("overlaps moved apart" + (f", all scaled by {scale:.3g}" if scale < 1 else ""))
    return layout, notes


def _scaled(placements: Sequence[Placement], scale: float) -> list[Placement]:
    """All smaller, around their own centres."""
    return [
        replace(
            one,
            x=one.x + one.width * (1 - scale) / 2,
            y=one.y + one.height * (1 - scale) / 2,
            width=one.width * scale,
            height=one.height * scale,
        )
        for one in placements
    ]


def _on_canvas(placements: Sequence[Placement], request: LayoutRequest) -> tuple[list[Placement], float]:
    """Moved, never one made smaller alone: all are scaled where one is larger than the canvas."""
    scale = 1.0
    for left, top, right, bottom in map(turned_box, placements):
        scale = min(scale, request.width / (right - left) * _SHRINK, request.height / (bottom - top) * _SHRINK)
    moved = []
    for one in _scaled(placements, scale) if scale < 1 else placements:
        left, top, right, bottom = turned_box(one)
        across = max(0.0, -left) - max(0.0, right - request.width)
        down = max(0.0, -top) - max(0.0, bottom - request.height)
        moved.append(replace(one, x=one.x + across, y=one.y + down))
    return moved, scale


def _on_top(placements: Sequence[Placement], below: Sequence[int | None]) -> list[Placement]:
    """What stands on another with its foot on the other's top and its middle above it."""
    done: dict[int, Placement] = {index: placements[index] for index, under in enumerate(below) if under is None}
    while len(done) < len(placements):
        for index, under in enumerate(below):
            if index in done or under not in done:
                continue
            one, base = placements[index], turned_box(done[under])
            left, _, right, bottom = turned_box(one)
            middle = (left + right) / 2
            across = min(max(middle, base[0]), base[2]) - middle
            done[index] = replace(one, x=one.x + across, y=one.y + base[1] - bottom)
    return [done[index] for index in range(len(placements))]


def _apart(placements: Sequence[Placement], distance: float, request: LayoutRequest) -> tuple[list[Placement], float]:
    """Those that share a height moved sideways until their middles are far enough apart, in their order from left to right."""
    boxes = [turned_box(one) for one in placements]
    order = sorted(range(len(boxes)), key=lambda index: boxes[index][0] + boxes[index][2])
    middles = [(boxes[index][0] + boxes[index][2]) / 2 for index in order]
    widths = [boxes[index][2] - boxes[index][0] for index in order]
    # who must keep away from whom, to the left
    rivals = [
        [
            other
            for other in range(place)
            if boxes[order[other]][1] < boxes[order[place]][3] and boxes[order[other]][3] > boxes[order[place]][1]
        ]
        for place in range(len(order))
    ]
    least = _pushed([-1e12] * len(order), widths, rivals, distance)
    needed = max(middle + width / 2 for middle, width in zip(least, widths, strict=True))
    if needed > request.width:
        scale = request.width / needed * _SHRINK
        smaller, _ = _apart(_scaled(placements, scale), distance, request)
        return smaller, scale
    right_first = _settled(middles, widths, rivals, distance, request.width)
    mirrored = [[] for _ in order]
    for place, others in enumerate(rivals):
        for other in others:
            mirrored[len(order) - 1 - other].append(len(order) - 1 - place)
    flipped = [request.width - middle for middle in reversed(middles)]
    left_first = _settled(flipped, widths[::-1], mirrored, distance, request.width)
    left_first = [request.width - middle for middle in reversed(left_first)]
    # both keep every distance, so their mean does, and it moves both neighbours alike
    moved = list(placements)
    for place, index in enumerate(order):
        across = (right_first[place] + left_first[place]) / 2 - middles[place]
        moved[index] = replace(placements[index], x=placements[index].x + across)
    return moved, 1.0


def _pushed(
    middles: Sequence[float], widths: Sequence[float], rivals: Sequence[Sequence[int]], distance: float
) -> list[float]:
    """Middles, each as far to the right as those to its left demand."""
    moved: list[float] = []
    for place, middle in enumerate(middles):
        floors = [moved[other] + distance * (widths[other] + widths[place]) / 2 for other in rivals[place]]
        moved.append(max(middle, widths[place] / 2, *floors))
    return moved


def _settled(
    middles: Sequence[float], widths: Sequence[float], rivals: Sequence[Sequence[int]], distance: float, room: float
) -> list[float]:
    """Pushed to the right, then back from the right edge of the canvas."""
    moved = _pushed(middles, widths, rivals, distance)
    for place in range(len(moved) - 1, -1, -1):
        moved[place] = min(moved[place], room - widths[place] / 2)
        for other in rivals[place]:
            moved[other] = min(moved[other], moved[place] - distance * (widths[other] + widths[place]) / 2)
    return moved
