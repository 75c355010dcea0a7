"""Outlines of the drawn parts: closed polygons around a joint, in pixels of a 128 px picture, y down, facing right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class BodyPlan:
    """Where the other parts join the body, relative to the body's centre, in pixels at scale 1."""

    neck: tuple[float, float]
    shoulder: tuple[float, float]
    rump: tuple[float, float]
    front_hip: tuple[float, float]
    back_hip: tuple[float, float]


BODY_PLANS: dict[str, BodyPlan] = {
    "round": BodyPlan((18, -14), (-2, -8), (-20, 0), (11, 14), (-10, 14)),
    "slim": BodyPlan((28, -6), (-4, -5), (-28, -1), (19, 6), (-19, 6)),
    "pear": BodyPlan((22, -14), (-6, -6), (-22, 4), (10, 13), (-13, 15)),
    "boxy": BodyPlan((23, -13), (-3, -8), (-25, -2), (17, 13), (-16, 13)),
    "humped": BodyPlan((26, -6), (-1, -6), (-26, 2), (17, 10), (-17, 10)),
}


def smooth_closed(points: Iterable[tuple[float, float]], samples: int = 5) -> np.ndarray:
    """Closed Catmull-Rom curve through `points` -> (len * samples, 2) float32."""
    # cubic Hermite segments; the tangent at a knot is half the difference of its neighbours
    knots = np.asarray(list(points), dtype=np.float32)  # (K, 2)
    before, after, later = np.roll(knots, 1, 0), np.roll(knots, -1, 0), np.roll(knots, -2, 0)
    t = np.linspace(0, 1, samples, endpoint=False, dtype=np.float32)[None, :, None]  # (1, S, 1)
    a, b = (after - before)[:, None] / 2, (later - knots)[:, None] / 2  # tangents (K, 1, 2)
    p, q = knots[:, None], after[:, None]
    curve = (2 * t**3 - 3 * t**2 + 1) * p + (t**3 - 2 * t**2 + t) * a + (3 * t**2 - 2 * t**3) * q + (t**3 - t**2) * b
    return curve.reshape(-1, 2)  # (K * S, 2)


def ellipse(cx: float, cy: float, rx: float, ry: float, count: int = 28) -> np.ndarray:
    """Ellipse outline -> (count, 2) float32."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], axis=1).astype(np.float32)


def _corners(*points: tuple[float, float]) -> np.ndarray:
    """Corners joined by straight lines -> (M, 2) float32."""
    return np.asarray(points, dtype=np.float32)


def _limb(path: Points, widths: list[float]) -> np.ndarray:
    """Rounded limb along `path` with half-widths `widths` at its knots -> (M, 2)."""
    knots = np.asarray(path, dtype=np.float32)  # (K, 2)
    # offset the path to both sides along its normal; the second side is traversed backwards to close the outline
    along = np.gradient(knots, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) * np.asarray(widths, dtype=np.float32)[:, None]
    return smooth_closed([*map(tuple, knots + across), *map(tuple, (knots - across)[::-1])])


def _heads() -> dict[str, list[np.ndarray]]:
    """Outlines of head shapes, each (M, 2) around the neck; several together are one head."""
    skull = ellipse(9, -9, 16, 15)
    small_beak = smooth_closed([(22, -15), (33, -8), (22, -1)])
    return {
        "crested": [
            _corners((-2, -14), (-15, -24), (-3, -25), (-5, -39), (7, -27), (12, -42), (15, -26), (26, -35), (20, -14)),
            small_beak,
            skull,
        ],
        "horned": [
            smooth_closed([(8, -16), (14, -26), (33, -46), (34, -28), (25, -12)]),
            smooth_closed([(20, -14), (33, -9), (36, -2), (28, 4), (16, 2)]),
            ellipse(-7, -22, 6, 7),
            skull,
        ],
        "eared": [
            smooth_closed([(-5, -14), (-15, -32), (-13, -46), (-3, -41), (6, -20)]),
            smooth_closed([(5, -18), (6, -36), (15, -47), (20, -36), (17, -16)]),
            ellipse(22, -5, 9, 8),
            skull,
        ],
        "beaked": [smooth_closed([(14, -20), (32, -22), (49, -9), (47, 0), (32, -3), (15, 2)]), skull],
        "trunked": [
            _limb([(18, -9), (31, -8), (37, 3), (35, 16), (41, 22)], [9, 7.5, 6.5, 6, 5]),
            ellipse(-5, -12, 11, 15),
            skull,
        ],
    }


def _bodies() -> dict[str, list[np.ndarray]]:
    """Outlines of body shapes, each (M, 2) around the body's centre."""
    return {
        "round": [ellipse(0, 0, 27, 24, 40)],
        "slim": [ellipse(0, 0, 37, 14.5, 40)],
        "pear": [smooth_closed([(28, -18), (33, -8), (24, 6), (6, 20), (-16, 24), (-30, 12), (-27, -6), (-8, -14), (14, -21)])],
        "boxy": [smooth_closed([(27, -20), (30, -17), (30, 16), (27, 19), (-27, 19), (-30, 16), (-30, -17), (-27, -20)])],
        "humped": [
            smooth_closed([(31, -10), (34, 2), (26, 15), (0, 16), (-26, 16), (-34, 4), (-27, -14), (-15, -25), (-3, -13), (10, -25), (22, -19)])
        ],
    }  # fmt: skip


def _wings() -> dict[str, list[np.ndarray]]:
    """Outlines of wing shapes, each (M, 2) around the shoulder."""
    return {
        "oval": [smooth_closed([(6, 6), (9, -8), (0, -30), (-14, -43), (-26, -38), (-25, -20), (-12, 2), (-3, 9)])],
        "pointed": [_corners((10, 8), (9, -8), (-4, -26), (-40, -48), (-33, -24), (-24, -10), (-10, 8), (0, 13))],
        "feathered": [
            smooth_closed([(9, 5), (7, -12), (-4, -30), (-18, -40), (-24, -34), (-20, -26), (-34, -28), (-36, -19), (-26, -15), (-36, -10), (-32, -2), (-20, -3), (-18, 7), (-4, 11)])
        ],
        "batlike": [
            _corners((9, 6), (8, -14), (-4, -42), (-10, -26), (-24, -42), (-24, -22), (-42, -26), (-30, -8), (-34, 6), (-16, 2), (-2, 11))
        ],
        "lobed": [
            smooth_closed([(6, 2), (10, -22), (0, -42), (-18, -44), (-26, -32), (-16, -16), (-4, -4)]),
            smooth_closed([(6, 4), (-10, -10), (-28, -12), (-36, 0), (-28, 12), (-10, 10)]),
        ],
    }  # fmt: skip


def _tails() -> dict[str, list[np.ndarray]]:
    """Outlines of tail shapes, each (M, 2) around the rump."""
    return {
        "fanned": [
            smooth_closed([(6, -7), (-14, -16), (-26, -32), (-35, -26), (-33, -19), (-42, -16), (-40, -7), (-45, 2), (-38, 7), (-38, 16), (-28, 16), (-14, 10), (6, 7)])
        ],
        "forked": [_corners((6, -8), (-12, -11), (-40, -31), (-31, -10), (-20, -1), (-32, 10), (-40, 28), (-12, 12), (6, 8))],
        "bushy": [smooth_closed([(6, -6), (-10, -9), (-13, -26), (-8, -42), (-20, -48), (-34, -38), (-37, -18), (-28, 2), (-12, 10), (6, 7)])],
        "paddle": [_limb([(6, 0), (-8, 0), (-22, -5)], [7, 6, 6]), ellipse(-33, -9, 16, 15)],
        "spiked": [
            _corners((6, 9), (-16, 11), (-46, 2), (-35, -4), (-38, -21), (-24, -9), (-23, -28), (-10, -12), (-6, -27), (6, -9))
        ],
    }  # fmt: skip


def _legs() -> dict[str, list[np.ndarray]]:
    """Outlines of leg shapes, each (M, 2) around the hip."""
    return {
        "sturdy": [smooth_closed([(-8, -8), (8, -8), (8, 10), (8, 25), (14, 29), (13, 33), (-8, 33), (-8, 10)])],
        "bent": [_corners((-8, -8), (8, -8), (3, 9), (9, 25), (19, 26), (19, 33), (-2, 33), (-11, 10))],
        "webbed": [_corners((-6, -8), (6, -8), (6, 17), (21, 33), (-13, 33), (-6, 17))],
        "flared": [smooth_closed([(-6, -8), (6, -8), (7, 8), (13, 27), (12, 33), (-12, 33), (-13, 27), (-7, 8)])],
        "knobby": [_limb([(0, -8), (0, 6), (0, 20)], [6, 5.5, 5.5]), ellipse(0, 7, 9, 8), ellipse(2, 25, 11, 9)],
    }


@lru_cache(maxsize=1)
def part_outlines() -> dict[str, dict[str, list[np.ndarray]]]:
    """Polygons by part and shape, each (M, 2) float32 around the part's joint; parts of several polygons are their union."""
    # cached: every drawing uses the same outlines
    return {"head": _heads(), "body": _bodies(), "wing": _wings(), "tail": _tails(), "legs": _legs()}


EYE = (15.0, -13.0)
"""Centre of the eye relative to the head's joint, in pixels at scale 1."""

PATTERN_AXES: dict[str, tuple[float, float]] = {
    "head": (0.25, -0.97),
    "body": (1.0, 0.0),
    "wing": (-0.55, -0.83),
    "tail": (-1.0, -0.1),
    "legs": (0.0, 1.0),
}
"""Unit direction, by part, perpendicular to its stripes; points towards the dipped end."""

DIP_STARTS: dict[str, float] = {"head": 14.0, "body": 0.0, "wing": 19.0, "tail": 17.0, "legs": 14.0}
"""Position along the axis, in pixels at scale 1, from which a dipped part has its second colour."""
