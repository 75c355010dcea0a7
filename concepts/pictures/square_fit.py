"""How pictures of any shape become the squares that feature sources look at, and where those squares lie.

The command line and the graph both go through here, so that a codebook made by one means the same to the other.
"""

from typing import Literal

from PIL import Image

SquareFit = Literal["centre square", "whole picture"]
"""The centre square as it is, or the whole picture with both sides brought to one length."""
SQUARE_FITS: tuple[SquareFit, ...] = ("centre square", "whole picture")

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels; halves of pixels occur."""


def seen_box(width: int, height: int, fit: SquareFit = "centre square") -> Box:
    """The area of a picture that is looked at, in its own pixels."""
    if fit == "whole picture":
        return 0.0, 0.0, float(width), float(height)
    edge = min(width, height)
    left, top = (width - edge) / 2, (height - edge) / 2
    return left, top, left + edge, top + edge


def fit_square(image: Image.Image, size: int, fit: SquareFit = "centre square") -> Image.Image:
    """That area of a picture, resized to `size` x `size` pixels (bicubic, smoothed when shrinking)."""
    # cut and resized in one step, with half-pixel exactness
    return image.resize((size, size), Image.Resampling.BICUBIC, box=seen_box(*image.size, fit))
