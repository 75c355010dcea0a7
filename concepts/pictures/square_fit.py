"""Conversion of pictures of any shape to the square inputs of feature sources, and the area of these squares.

The command line and the graph both use this module, so that a codebook gives the same result in both.
"""

from typing import Literal

from PIL import Image

SquareFit = Literal["centre square", "whole picture"]
"""The centre square, or the whole picture with both sides scaled to the same length."""
SQUARE_FITS: tuple[SquareFit, ...] = ("centre square", "whole picture")

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels; can be multiples of 0.5."""


def seen_box(width: int, height: int, fit: SquareFit = "centre square") -> Box:
    """The used area of a picture, in its own pixels."""
    if fit == "whole picture":
        return 0.0, 0.0, float(width), float(height)
    edge = min(width, height)
    left, top = (width - edge) / 2, (height - edge) / 2
    return left, top, left + edge, top + edge


def fit_square(image: Image.Image, size: int, fit: SquareFit = "centre square") -> Image.Image:
    """The used area of a picture, resized to `size` x `size` pixels (bicubic, smoothed when shrinking)."""
    # cut and resized in one step, with half-pixel exactness
    return image.resize((size, size), Image.Resampling.BICUBIC, box=seen_box(*image.size, fit))


def fit_shape(image: Image.Image, height: int, width: int) -> Image.Image:
    """The centre area of a picture with the aspect ratio of `height` x `width` pixels, as large as it can be, resized to it (bicubic)."""
    if height == width:
        return fit_square(image, height)
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    # rounding must not reach beyond the picture
    box = (left, top, min(left + scale * width, image.width), min(top + scale * height, image.height))
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)
