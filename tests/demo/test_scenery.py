"""Tests of the backgrounds."""

import numpy as np
import pytest
from bestiary.demo.scenery import HEIGHT, VARIANTS, WIDTH, background, cut_window
from bestiary.demo.species import LIGHTS, PLACES


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_painted_in_every_light(place):
    means = {}
    for light in LIGHTS:
        picture = background(place, light, 0)
        assert picture.shape == (HEIGHT, WIDTH, 3) and picture.dtype == np.uint8
        means[light] = picture.mean()
        assert picture.std() > 10
    assert means["night"] < means["dusk"] < means["day"]


def test_a_background_is_the_same_in_every_run_and_cannot_be_changed():
    first = background("forest", "day", 1).copy()
    background.cache_clear()
    np.testing.assert_array_equal(first, background("forest", "day", 1))
    with pytest.raises(ValueError, match="read-only"):
        background("forest", "day", 1)[0, 0] = 0


def test_variants_differ():
    assert VARIANTS >= 2
    assert (background("beach", "day", 0) != background("beach", "day", 1)).mean() > 0.1


def test_windows_are_cut_at_random_and_by_seed():
    ours, theirs = (cut_window("snow", "dusk", np.random.default_rng(4)) for _ in range(2))
    other = cut_window("snow", "dusk", np.random.default_rng(5))
    assert ours.shape == (128, 128, 3) and ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)
    assert np.abs(ours - other).mean() > 1
