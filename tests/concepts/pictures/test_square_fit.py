"""Tests of fitting pictures to squares: what is cut, what is kept, and that the command line does the same."""

import numpy as np
import pytest
from bestiary.concepts.pictures.square_fit import SQUARE_FITS, fit_square, seen_box
from PIL import Image


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("size", "fit", "expected"),
    [
        ((200, 100), "centre square", (50, 0, 150, 100)),
        ((101, 100), "centre square", (0.5, 0, 100.5, 100)),
        ((60, 91), "centre square", (0, 15.5, 60, 75.5)),
        ((64, 64), "centre square", (0, 0, 64, 64)),
        ((200, 100), "whole picture", (0, 0, 200, 100)),
    ],
)
def test_the_area_looked_at(size, fit, expected):
    assert seen_box(*size, fit) == expected


def test_the_centre_square_is_cut_and_not_squeezed():
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("green", (100, 0, 200, 100))
    square = np.asarray(fit_square(wide, 25))
    assert (square[:, 2:-2] == (0, 128, 0)).all()
    assert (square[:, [0, -1], 0] < 40).all()  # of the red beside it no more than the filter reaches


def test_the_whole_picture_keeps_its_ends():
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("green", (0, 0, 150, 100))
    square = np.asarray(fit_square(wide, 64, "whole picture"))
    assert tuple(square[32, 0]) == (0, 128, 0) and tuple(square[32, 63]) == (255, 0, 0)


def test_square_pictures_look_the_same_in_both_ways():
    ours = [fit_square(noise(90, 90), 40, fit).tobytes() for fit in SQUARE_FITS]
    assert ours[0] == ours[1]


def test_the_command_line_fits_pictures_by_the_same_function():
    from bestiary.trainer.learning.pictures import image_files

    assert image_files.fit_square is fit_square
