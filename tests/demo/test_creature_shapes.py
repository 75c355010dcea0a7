"""Tests of the outlines."""

import numpy as np
import pytest
from bestiary.demo.creature_shapes import BODY_PLANS, PATTERN_AXES, ellipse, part_outlines, smooth_closed
from bestiary.demo.species import PARTS, SHAPES


def _area(points: np.ndarray) -> float:
    x, y = points[:, 0], points[:, 1]
    return abs(float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())) / 2


def test_every_shape_has_outlines_and_every_body_a_plan():
    for part in PARTS:
        assert set(part_outlines()[part]) == set(SHAPES[part])
    assert set(BODY_PLANS) == set(SHAPES["body"])
    assert all(np.hypot(*axis) == pytest.approx(1, abs=0.02) for axis in PATTERN_AXES.values())


@pytest.mark.parametrize("part", PARTS)
def test_outlines_are_several_patches_big(part):
    for shape, polygons in part_outlines()[part].items():
        assert all(p.ndim == 2 and p.shape[1] == 2 and np.isfinite(p).all() for p in polygons), shape
        assert sum(_area(p) for p in polygons) > 4 * 64, shape


def test_a_smooth_curve_passes_through_its_knots():
    knots = [(0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0)]
    curve = smooth_closed(knots, samples=4)
    assert curve.shape == (16, 2)
    np.testing.assert_allclose(curve[::4], knots, atol=1e-6)


def test_an_ellipse_has_its_radii():
    points = ellipse(3, -2, 8, 5, count=400)
    np.testing.assert_allclose(points.max(axis=0), (11, 3), atol=1e-3)
    assert _area(points) == pytest.approx(np.pi * 40, rel=1e-3)
