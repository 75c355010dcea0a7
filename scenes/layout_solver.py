"""Layouts by chance: rows of subjects on a ground, and at last one row of columns, in which nothing can hide anything.

The idea of rows on a ground band with sizes against each other is ours; it takes the place of the boxes that a language model
draws in Gen4Gen (louisYen/Gen4Gen @ 04f8964, stage 2).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..concepts.errors import BestiaryError
from .layout_measures import SLACK, turned_size, worst_occlusion
from .layout_request import LayoutRequest, pixels_needed, supporters
from .scene_layout import MOST_SEED, Placement, SceneLayout
from .subject import Subject
from .subject_sizes import relative_sizes

ATTEMPTS = 64
_ENOUGH = 0.95
"""Share of the coverage asked for at which no further attempt is made."""
_PATIENCE = 16
"""Attempts without a better layout after which the best is taken."""
_SKY = 0.5
"""Lowest foot in the sky, as a share of the height."""
_DEEPEST_SINK = 0.6
"""How far into the box of its supporter a subject may stand, as a share of that box's height."""
_SHRINK = 1 - 1e-9
"""Keeps sums of floats inside the canvas."""
_LEAST_SIDE = 1.0
"""Pixels of the shorter side of a subject below which there is no layout."""


class Standing(NamedTuple):
    """A subject in its column, in units of the longest side of the largest subject; y is 0 at the column's foot and grows downwards."""

    index: int
    left: float
    top: float
    width: float
    """Of the turned box."""
    height: float


@dataclass(frozen=True)
class Column:
    """A subject with all that stands on it."""

    support: str
    """`ground`, `sky` or `any`, of the lowest."""
    width: float
    height: float
    area: float
    """Of the upright boxes."""
    members: tuple[Standing, ...]
    """The lowest first, each before those that stand on it."""


class Spot(NamedTuple):
    """Where a column stands, in pixels."""

    left: float
    foot: float
    scale: float
    """Pixels of one unit."""


@dataclass(frozen=True)
class Cast:
    """The subjects of one layout, with what chance has settled for all attempts."""

    sizes: tuple[tuple[float, float], ...]
    """Width and height of each upright box, in units."""
    turns: tuple[float, ...]
    flips: tuple[bool, ...]
    below: tuple[int | None, ...]


class _Attempt(NamedTuple):
    spots: list[Spot]
    limit: str
    """What kept the subjects from being larger."""


def solve_layout(subjects: Sequence[Subject], request: LayoutRequest) -> SceneLayout:
    """A layout by chance, the same for the same seed.

    All turned boxes are on the canvas; no box is hidden by more than `max_occlusion`; the boxes take at most `coverage`; longest
    sides keep the ratios of `relative_sizes` exactly, but for `perspective`; feet of `ground` subjects are in the band, those of
    `sky` subjects in the upper half; what stands on another touches its top side, or its outline where that hides little.
    Subjects are painted in the order of their feet.

    Raises:
        BestiaryError: no subject, two of one name, a supporter that is not there or a circle of them, or no room (says which limit).
    """
    cast, chance = _cast(subjects, request)
    columns = stacked_columns(subjects, cast, request, chance)
    best: _Attempt | None = None
    most, waited = 0.0, 0
    for _ in range(ATTEMPTS):
        attempt = _rows(columns, request, chance)
        covered = _coverage(columns, attempt.spots, request)
        waited += 1
        if covered > most and _hidden(columns, attempt.spots) <= request.max_occlusion + SLACK:
            best, most, waited = attempt, covered, 0
        if most >= _ENOUGH * request.coverage or (best is not None and waited >= _PATIENCE):
            break
    if best is not None:
        return _checked(_layout(subjects, cast, columns, best.spots, request), best.limit, request)
    return _one_row(subjects, cast, columns, request, chance)


def solve_in_one_row(subjects: Sequence[Subject], request: LayoutRequest) -> SceneLayout:
    """As `solve_layout`, all beside each other: no box hides another, except for what stands on another.

    Raises:
        BestiaryError: as `solve_layout`.
    """
    cast, chance = _cast(subjects, request)
    columns = stacked_columns(subjects, cast, request, chance)
    return _one_row(subjects, cast, columns, request, chance)


def solve_measured(
    subjects: Sequence[Subject], request: LayoutRequest, measure: Callable[[SceneLayout], float], tries: int = 16
) -> SceneLayout:
    """A layout whose measured occlusion keeps the limit: solved again with the next seed, at last in one row.

    Args:
        subjects: at least one.
        request: the seed to begin with; the layout has the one that it was solved with.
        measure: largest share of a subject's mask that others hide once the picture is put together, 0 to 1.
        tries: seeds that are tried, at least 1.

    Raises:
        BestiaryError: as `solve_layout`, or no layout kept the limit.
    """
    measured: list[float] = []
    for number in range(max(1, tries)):
        layout = solve_layout(subjects, replace(request, seed=(request.seed + number) % (MOST_SEED + 1)))
        measured.append(measure(layout))
        if measured[-1] <= request.max_occlusion:
            return layout
    layout = solve_in_one_row(subjects, request)
    measured.append(measure(layout))
    if measured[-1] <= request.max_occlusion:
        return layout
    raise BestiaryError(
        f"no layout of {len(measured)} kept max_occlusion {request.max_occlusion:g}: the best hides {min(measured):.3f} of a"
        " subject; raise the limit or take fewer subjects"
    )


def _cast(subjects: Sequence[Subject], request: LayoutRequest) -> tuple[Cast, random.Random]:
    below = supporters(subjects)
    # random() of random.Random gives the same numbers in every version of Python
    chance = random.Random(request.seed)
    sizes = tuple(
        (size * min(1.0, subject.aspect), size * min(1.0, 1 / subject.aspect))
        for subject, size in zip(subjects, relative_sizes(subjects).sizes, strict=True)
    )
    carrying = set(below)
    draws = [(chance.random(), chance.random()) for _ in subjects]
    turns = tuple(0.0 if index in carrying else request.turn * (2 * turn - 1) for index, (turn, _) in enumerate(draws))
    flips = tuple(request.flip and flip < 0.5 for _, flip in draws)
    return Cast(sizes, turns, flips, tuple(below)), chance


def stacked_columns(
    subjects: Sequence[Subject], cast: Cast, request: LayoutRequest, chance: random.Random, *, sunk: bool = True
) -> list[Column]:
    """A column for every subject that stands on no other. `sunk`: subjects stand on outlines, else on the top sides of boxes."""
    columns = []
    for root, below in enumerate(cast.below):
        if below is None:
            width, members = _stack(root, subjects, cast, request.max_occlusion if sunk else 0.0, chance)
            area = sum(cast.sizes[member.index][0] * cast.sizes[member.index][1] for member in members)
            height = -min(member.top for member in members)
            columns.append(Column(subjects[root].support, width, height, area, tuple(members)))
    return columns


def _stack(
    index: int, subjects: Sequence[Subject], cast: Cast, may_hide: float, chance: random.Random
) -> tuple[float, list[Standing]]:
    """Width and members of the column that begins with a subject."""
    width, height = turned_size(*cast.sizes[index], cast.turns[index])
    upon = [place for place, below in enumerate(cast.below) if below == index]
    if not upon:
        return width, [Standing(index, 0.0, -height, width, height)]
    stacks = [_stack(place, subjects, cast, may_hide, chance) for place in upon]
    if len(stacks) > 1:
        stacks = [stacks[place] for place in _shuffled(len(stacks), chance)]
    total = sum(wide for wide, _ in stacks)
    full = max(width, total)
    start = (full - width) / 2
    gaps = _gaps(max(0.0, width - total), len(stacks), chance)
    lefts = []
    x = min(start, 0.0) if total > width else start
    for gap, (wide, _) in zip(gaps, stacks, strict=False):
        lefts.append(x + gap)
        x += gap + wide
    feet = [members[0] for _, members in stacks]
    ranges = [(left + foot.left - start, foot.width) for left, foot in zip(lefts, feet, strict=True)]
    sinks = (
        _sinks(subjects[index], cast.flips[index], ranges, (width, height), may_hide) if may_hide else [0.0] * len(upon)
    )
    members = [Standing(index, start, -height, width, height)]
    for left, sink, (_, above) in zip(lefts, sinks, stacks, strict=True):
        members += [one._replace(left=one.left + left, top=one.top - height + sink) for one in above]
    return full, members


def _sinks(
    subject: Subject, flip: bool, ranges: list[tuple[float, float]], size: tuple[float, float], may_hide: float
) -> list[float]:
    """How far below the top of a supporter's box others stand, so that they touch its outline: in units.

    Together they hide at most 0.9 of `may_hide` of the box.
    """
    opaque = subject.cutout[..., 3] >= 128
    if flip:
        opaque = opaque[:, ::-1]
    rows, pixels = opaque.shape
    # (w,) first opaque row of each column
    outline = np.where(opaque.any(axis=0), opaque.argmax(axis=0), rows)
    width, height = size
    depths = []
    for left, wide in ranges:
        first, last = (round(edge / width * pixels) for edge in (left, left + wide))
        highest = int(outline[max(0, first) : max(1, last)].min(initial=rows)) / rows
        depths.append(highest * height if highest <= _DEEPEST_SINK else 0.0)
    hidden = sum(depth * wide for depth, (_, wide) in zip(depths, ranges, strict=True))
    allowed = 0.9 * may_hide * width * height
    return [depth * min(1.0, allowed / hidden) if hidden else 0.0 for depth in depths]


def _rows(columns: Sequence[Column], request: LayoutRequest, chance: random.Random) -> _Attempt:
    """Columns of the ground in one to three rows, those of the sky in one, the others anywhere."""
    low, high = request.ground
    standing = sum(column.support == "ground" for column in columns)
    count = 1 + int(chance.random() * min(3, standing))
    near = high - 0.25 * (high - low) * chance.random()
    feet = [near, *(low + (high - low) * chance.random() for _ in range(count - 1))]
    rows: dict[object, list[int]] = {}
    shares = [0.0] * len(columns)
    for place in _shuffled(len(columns), chance):
        column = columns[place]
        if column.support == "ground":
            row = int(chance.random() * count)
            shares[place] = feet[row]
            rows.setdefault(row, []).append(place)
        else:
            rows.setdefault("sky" if column.support == "sky" else ("any", place), []).append(place)
    return _fitted(columns, shares, list(rows.values()), request, chance)


def _fitted(
    columns: Sequence[Column],
    shares: Sequence[float],
    rows: list[list[int]],
    request: LayoutRequest,
    chance: random.Random,
) -> _Attempt:
    """Rows of columns as large as the limits let them all be. `shares`: feet of columns on the ground."""
    scales = [
        request.depth_scale(share) if column.support == "ground" else 1.0
        for column, share in zip(columns, shares, strict=True)
    ]
    room = request.width * request.height * request.coverage
    area = sum(column.area * scale * scale for column, scale in zip(columns, scales, strict=True))
    unit, limit = math.sqrt(room / area), "coverage"
    for row in rows:
        wide = request.width / sum(columns[place].width * scales[place] for place in row)
        if wide < unit:
            unit, limit = wide, "width"
    for column, share, scale in zip(columns, shares, scales, strict=True):
        highest = {"ground": share, "sky": _SKY}.get(column.support, 1.0) * request.height / (column.height * scale)
        if highest < unit:
            unit, limit = highest, "ground" if column.support == "ground" else "height"
    unit *= _SHRINK
    spots = [Spot(0.0, 0.0, 0.0)] * len(columns)
    for row in rows:
        widths = [columns[place].width * scales[place] * unit for place in row]
        x = 0.0
        for place, wide, gap in zip(row, widths, _gaps(request.width - sum(widths), len(row), chance), strict=False):
            column = columns[place]
            tall = column.height * scales[place] * unit
            lowest = {"sky": _SKY}.get(column.support, 1.0) * request.height
            foot = shares[place] * request.height
            if column.support != "ground":
                foot = tall + (lowest - tall) * chance.random()
            spots[place] = Spot(x + gap, foot, scales[place] * unit)
            x += gap + wide
    return _Attempt(spots, limit)


def _one_row(
    subjects: Sequence[Subject], cast: Cast, columns: list[Column], request: LayoutRequest, chance: random.Random
) -> SceneLayout:
    low, high = request.ground
    shares = [high - 0.5 * (high - low) * chance.random() for _ in columns]
    order = [_shuffled(len(columns), chance)]
    attempt = _fitted(columns, shares, order, request, chance)
    if _hidden(columns, attempt.spots) > request.max_occlusion + SLACK:
        # three on top of each other may hide more than each does: on top sides nothing is hidden
        columns = stacked_columns(subjects, cast, request, chance, sunk=False)
        attempt = _fitted(columns, shares, order, request, chance)
    return _checked(_layout(subjects, cast, columns, attempt.spots, request), attempt.limit, request)


def _hidden(columns: Sequence[Column], spots: Sequence[Spot]) -> float:
    return worst_occlusion([box for _, box in _painted_boxes(columns, spots)])


def _painted_boxes(
    columns: Sequence[Column], spots: Sequence[Spot]
) -> list[tuple[int, tuple[float, float, float, float]]]:
    """Places of the subjects and their turned boxes from back to front, by the feet of their columns."""
    boxes = []
    for place in sorted(range(len(columns)), key=lambda place: spots[place].foot):
        x, foot, scale = spots[place]
        for index, left, top, width, height in columns[place].members:
            edge, roof = x + left * scale, foot + top * scale
            boxes.append((index, (edge, roof, edge + width * scale, roof + height * scale)))
    return boxes


def _coverage(columns: Sequence[Column], spots: Sequence[Spot], request: LayoutRequest) -> float:
    area = sum(column.area * spot.scale * spot.scale for column, spot in zip(columns, spots, strict=True))
    return area / (request.width * request.height)


def _layout(
    subjects: Sequence[Subject], cast: Cast, columns: Sequence[Column], spots: Sequence[Spot], request: LayoutRequest
) -> SceneLayout:
    scales = {
        member.index: spot.scale for column, spot in zip(columns, spots, strict=True) for member in column.members
    }
    placements: dict[int, Placement] = {}
    for z, (index, (left, top, right, bottom)) in enumerate(_painted_boxes(columns, spots)):
        width, height = (side * scales[index] for side in cast.sizes[index])
        x, y = (left + right - width) / 2, (top + bottom - height) / 2
        placements[index] = Placement(
            subjects[index].name, x, y, width, height, cast.turns[index], cast.flips[index], z
        )
    return SceneLayout(
        request.width, request.height, tuple(placements[index] for index in range(len(subjects))), request.seed
    )


def _checked(layout: SceneLayout, limit: str, request: LayoutRequest) -> SceneLayout:
    for placement in layout.placements:
        if min(placement.width, placement.height) < _LEAST_SIDE:
            raise pixels_needed(placement.subject, placement.width, placement.height, limit, request)
    return layout


def _shuffled(count: int, chance: random.Random) -> list[int]:
    draws = [chance.random() for _ in range(count)]
    return sorted(range(count), key=draws.__getitem__)


def _gaps(room: float, count: int, chance: random.Random) -> list[float]:
    """`count + 1` gaps that add up to the room, evenly distributed over all such (Dirichlet)."""
    draws = [-math.log(1 - chance.random()) for _ in range(count + 1)]
    total = sum(draws) or 1.0
    return [max(0.0, room) * draw / total for draw in draws]
