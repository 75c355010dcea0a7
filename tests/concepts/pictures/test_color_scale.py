"""Colours of weights: the scale's own at its stops, mixed in between, none beyond its ends."""

import numpy as np
import pytest
from bestiary.concepts.pictures.color_scale import scale_colors

STOPS = np.array([[0, 0, 0], [100, 20, 40], [255, 220, 140]], dtype=np.float32)


def colors(*weights: float) -> np.ndarray:
    return scale_colors(np.array([weights], dtype=np.float32), STOPS)


def test_stops_have_their_own_colours():
    assert np.array_equal(colors(0, 0.5, 1)[0], STOPS)


@pytest.mark.parametrize(("weight", "expected"), [(0.25, (50, 10, 20)), (0.75, (177.5, 120, 90)), (0.1, (20, 4, 8))])
def test_between_two_stops_their_colours_are_mixed(weight, expected):
    assert np.allclose(colors(weight), expected, atol=1e-4)


def test_mixing_is_that_of_linear_interpolation():
    weights = np.linspace(0, 1, 77, dtype=np.float32).reshape(7, 11)
    ours = scale_colors(weights, STOPS)
    theirs = np.stack([np.interp(weights, [0, 0.5, 1], STOPS[:, channel]) for channel in range(3)], axis=-1)
    assert ours.shape == (7, 11, 3)
    assert np.allclose(ours, theirs, atol=1e-3)
