"""Reasons why a mask is not trusted."""

import re

import numpy as np
import pytest
from bestiary.scenes.cutout_gate import LIMITS_AS_GIVEN, CutoutLimits, faults_of


def disc(height: int, width: int, y: float, x: float, radius: float, edge: float = 1.0) -> np.ndarray:
    """Opacity (h, w) of a disc whose edge is `edge` pixels wide."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - y, columns - x)
    return ((radius - distance) / edge + 0.5).clip(0, 1).astype(np.float32)


GOOD = disc(100, 120, 50, 60, 25)


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (np.zeros((50, 50)), r"empty: nothing in it is more than half opaque \(at most 0%\)"),
        (np.full((50, 50), 0.4), r"empty: .*\(at most 40%\)"),
        (np.ones((50, 50)), "whole frame: 100.0% of the picture"),
        (disc(100, 100, 50, 50, 3), "area out of range: 0.2.% of the picture, at least 0.50%"),
        (np.pad(np.ones((96, 96)), 2), "area out of range: 92.2% of the picture, at most 90%"),
        (
            np.maximum(GOOD, disc(100, 120, 15, 15, 13)),
            "several pieces: 2, the second has 2.% of the first one's area",
        ),
        (disc(100, 120, 90, 60, 25), r"touches the border: 1\d.\d% of it \(bottom\), at most 2.0%"),
        (disc(100, 120, 50, 60, 25, 30), r"edge too soft: .* pixels on average, at most 4.0"),
    ],
)
def test_every_fault_has_its_reason(mask: np.ndarray, told: str) -> None:
    faults = faults_of(mask)
    assert len(faults) == 1 and re.match(told, faults[0]), faults


def test_a_good_mask_has_no_fault() -> None:
    assert faults_of(GOOD) == ()
    # a speck is no second piece, and one pixel of a foot no cut
    speck = GOOD.copy()
    speck[3, 3] = 1
    speck[99, 60] = 1
    assert faults_of(speck) == ()


def test_several_faults_are_all_told() -> None:
    mask = np.zeros((100, 100))
    mask[:30, :40] = mask[70:, 60:] = 1
    assert [fault.split(":")[0] for fault in faults_of(mask)] == ["several pieces", "touches the border"]


def test_limits_can_be_left_out() -> None:
    mask = np.zeros((100, 100))
    mask[:60, :40] = mask[70:, :] = 1
    assert faults_of(mask) and faults_of(mask, LIMITS_AS_GIVEN) == ()
    assert faults_of(np.ones((20, 20)), LIMITS_AS_GIVEN) == ()
    nothing = CutoutLimits(least_area=None, most_area=None, second_piece=None, border=None, edge=None)
    assert faults_of(disc(100, 100, 95, 50, 5, 20), nothing) == ()
    assert faults_of(np.zeros((9, 9)), nothing)[0].startswith("empty")
