"""What a layout measures: the room its boxes take, how much they hide of each other, whether they are on the canvas."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .scene_layout import Placement, SceneLayout

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""
SLACK = 1e-6
"""Pixels and shares that count as rounding."""


def turned_size(width: float, height: float, turn: float) -> tuple[float, float]:
    """Width and height of the upright box around a box that is turned by `turn` degrees."""
    if turn == 0:
        return width, height
    cosine, sine = abs(math.cos(math.radians(turn))), abs(math.sin(math.radians(turn)))
    return width * cosine + height * sine, width * sine + height * cosine


def turned_box(placement: Placement) -> Box:
    """The upright box around a placed subject after its turn, in pixels."""
    width, height = turned_size(placement.width, placement.height, placement.turn)
    middle_x, middle_y = placement.x + placement.width / 2, placement.y + placement.height / 2
    return middle_x - width / 2, middle_y - height / 2, middle_x + width / 2, middle_y + height / 2


def painted(layout: SceneLayout) -> list[Placement]:
    """Placements from back to front."""
    return sorted(layout.placements, key=lambda placement: placement.z)


def box_coverage(layout: SceneLayout) -> float:
    """Sum of the boxes' areas as a share of the canvas."""
    return sum(placement.width * placement.height for placement in layout.placements) / (layout.width * layout.height)


def is_inside(layout: SceneLayout) -> bool:
    """Whether every turned box lies on the canvas."""
    return all(
        left >= -SLACK and top >= -SLACK and right <= layout.width + SLACK and bottom <= layout.height + SLACK
        for left, top, right, bottom in map(turned_box, layout.placements)
    )


def box_occlusion(layout: SceneLayout) -> float:
    """Largest share of a turned box that boxes in front of it hide, 0 to 1."""
    return worst_occlusion([turned_box(placement) for placement in painted(layout)])


def worst_occlusion(boxes: Sequence[Box]) -> float:
    """Largest share of a box that the boxes after it cover together, 0 to 1."""
    worst = 0.0
    for place, (left, top, right, bottom) in enumerate(boxes):
        hidden = [
            (max(left, other[0]), max(top, other[1]), min(right, other[2]), min(bottom, other[3]))
            for other in boxes[place + 1 :]
            if other[0] < right and other[2] > left and other[1] < bottom and other[3] > top
        ]
        if hidden:
            worst = max(worst, _union_area(hidden) / ((right - left) * (bottom - top)))
    return worst


def _union_area(boxes: Sequence[Box]) -> float:
    if len(boxes) == 1:
        left, top, right, bottom = boxes[0]
        return (right - left) * (bottom - top)
    area = 0.0
    edges = sorted({edge for box in boxes for edge in (box[0], box[2])})
    # strips between neighbouring vertical edges: in each the boxes are intervals of y
    for left, right in zip(edges, edges[1:], strict=False):
        reach, covered = -math.inf, 0.0
        for top, bottom in sorted((box[1], box[3]) for box in boxes if box[0] <= left and box[2] >= right):
            covered += max(0.0, bottom - max(top, reach))
            reach = max(reach, bottom)
        area += covered * (right - left)
    return area
