"""Tests of masks that fade inside their edge, and of subjects put back over a painted picture."""

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.collage import repaint_mask
from bestiary.scenes.soft_edges import put_back, soft_core


def square() -> np.ndarray:
    """A mask `(48, 64)` with a square of 32 pixels."""
    mask = np.zeros((48, 64), np.uint8)
    mask[8:40, 16:48] = 255
    return mask


def test_an_inset_keeps_the_core_and_is_the_collage_s_own():
    core = soft_core(square(), inset=5)
    assert core.sum() == 22 * 22 and set(np.unique(core)) == {0, 1}
    np.testing.assert_array_equal((core * 255).astype(np.uint8), 255 - repaint_mask(square(), 5))


def test_a_feather_rises_evenly_inside_the_edge_and_never_outside():
    soft = soft_core(square(), inset=1, feather=3)
    np.testing.assert_allclose(soft[24, 16:22], [0, 0.25, 0.5, 0.75, 1, 1])
    assert (soft[square() == 0] == 0).all()


def test_the_border_of_the_picture_is_no_edge():
    assert (soft_core(np.full((9, 9), 255, np.uint8), 3, 3) == 1).all()


def pictures() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.random((48, 64, 3), np.float32), random.random((48, 64, 3), np.float32)


def test_the_core_comes_back_to_the_last_bit_and_the_place_stays():
    painted, canvas = pictures()
    ours = put_back(painted, canvas, square(), feather=4)
    core = soft_core(square(), feather=4) == 1
    assert core.sum() == 24 * 24
    np.testing.assert_array_equal(ours[core], canvas[core])
    np.testing.assert_array_equal(ours[square() == 0], painted[square() == 0])
    between = (square() > 0) & ~core
    low, high = np.minimum(painted, canvas)[between], np.maximum(painted, canvas)[between]
    assert ((ours[between] >= low - 1e-6) & (ours[between] <= high + 1e-6)).all()


def test_a_thin_part_comes_back_along_its_middle():
    """A leg of five pixels below a body: without it a feather of four would leave most of the leg to the model."""
    mask = square()
    mask[40:, 30:35] = 255
    painted, canvas = pictures()
    ours = put_back(painted, canvas, mask, feather=4)
    np.testing.assert_array_equal(ours[44:, 32], canvas[44:, 32])
    edge = ours[44:, 30]
    assert (edge != canvas[44:, 30]).all() and (edge != painted[44:, 30]).all()
    # the body, which is wide enough, is as before
    np.testing.assert_array_equal(ours[:36], put_back(painted, canvas, square(), feather=4)[:36])
    half = put_back(painted, canvas, mask // 2, feather=4)
    np.testing.assert_allclose(half[44:, 32], (127 * canvas + 128 * painted)[44:, 32] / 255, atol=4e-3)


def test_half_transparent_pixels_are_half_and_half():
    painted, canvas = pictures()
    ours = put_back(painted, canvas, np.full((48, 64), 128, np.uint8), feather=0)
    np.testing.assert_allclose(ours, (128 * canvas + 127 * painted) / 255, atol=1e-6)


def test_lightness_follows_a_place_that_became_darker():
    canvas = np.full((48, 64, 3), 0.5, np.float32)
    painted = np.full((48, 64, 3), 0.4, np.float32)
    ours = put_back(painted, canvas, square(), 0, lightness=1.0)
    assert abs(ours[24, 32, 0] - 0.4) < 0.01
    np.testing.assert_array_equal(put_back(painted, canvas, square(), 0)[24, 32], canvas[24, 32])
    # nothing but subjects: there is no place to follow
    whole = np.full((48, 64), 255, np.uint8)
    np.testing.assert_array_equal(put_back(painted, canvas, whole, 0, lightness=1.0), canvas)


def test_faults_say_what_is_wrong():
    painted, canvas = pictures()
    with pytest.raises(BestiaryError, match="64 x 40 pixels, the canvas 64 x 48, the mask 64 x 48: all must be equal"):
        put_back(painted[:40], canvas, square())
    with pytest.raises(BestiaryError, match="feather 300 is out of range: give 0 to 256"):
        put_back(painted, canvas, square(), 300)
    with pytest.raises(BestiaryError, match="lightness 2 is out of range"):
        put_back(painted, canvas, square(), 4, 2)
