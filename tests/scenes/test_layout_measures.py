"""Areas, overlaps and the edges of the canvas, against a count of pixels."""

import random

import numpy as np
import pytest
from bestiary.scenes.layout_measures import box_coverage, box_occlusion, is_inside, turned_box, worst_occlusion
from bestiary.scenes.scene_layout import Placement, SceneLayout


def counted_occlusion(boxes: list[tuple[int, int, int, int]], side: int) -> float:
    """By painting numbers on a canvas."""
    canvas = np.zeros((side, side), np.int64)
    for number, (left, top, right, bottom) in enumerate(boxes, 1):
        canvas[top:bottom, left:right] = number
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
    return max(1 - (canvas == number).sum() / area for number, area in enumerate(areas, 1))


def test_occlusion_is_that_of_painted_pixels() -> None:
    chance = random.Random(0)
    for _ in range(150):
        boxes = []
        for _ in range(6):
            left, top = chance.randrange(30), chance.randrange(30)
            boxes.append((left, top, left + 1 + chance.randrange(15), top + 1 + chance.randrange(15)))
        assert worst_occlusion(boxes) == pytest.approx(counted_occlusion(boxes, 48), abs=1e-12)


def test_the_order_of_painting_decides_who_is_hidden() -> None:
    small, large = Placement("a", 0, 0, 10, 10, z=1), Placement("b", 5, 0, 20, 10, z=0)
    assert box_occlusion(SceneLayout(64, 64, (small, large))) == pytest.approx(50 / 200)
    small, large = Placement("a", 0, 0, 10, 10, z=0), Placement("b", 5, 0, 20, 10, z=1)
    assert box_occlusion(SceneLayout(64, 64, (small, large))) == pytest.approx(50 / 100)


def test_turned_boxes() -> None:
    assert turned_box(Placement("a", 10, 10, 20, 10, turn=90)) == pytest.approx((15, 5, 25, 25))
    assert turned_box(Placement("a", 10, 10, 20, 10, turn=-180)) == pytest.approx((10, 10, 30, 20))
    assert is_inside(SceneLayout(40, 20, (Placement("a", 0, 2, 20, 10),)))
    assert not is_inside(SceneLayout(40, 14, (Placement("a", 0, 2, 20, 10, turn=90),)))


def test_coverage_is_the_sum_of_areas() -> None:
    layout = SceneLayout(100, 50, (Placement("a", 0, 0, 20, 10), Placement("b", 0, 0, 30, 10)))
    assert box_coverage(layout) == pytest.approx(0.1)
