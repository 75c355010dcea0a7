"""Masks that fade inside their own edge, and subjects put back where a model has painted over them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ..concepts.errors import BestiaryError

MOST_EDGE = 256
"""Pixels of a soft edge, and of an inset."""
_LIGHTNESS = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_LEAST_LIGHT = 1 / 255
_MOST_CHANGE = 1.6

_Floats = NDArray[np.float32]


def soft_core(mask: NDArray[np.uint8], inset: int = 0, feather: int = 0) -> _Floats:
    """A mask that is smaller by `inset` pixels and fades over the next `feather`, towards its inside.

    Args:
        mask: `(H, W)`, 255 where the subject is.
        inset: pixels that its edge moves inwards, 0 to 256.
        feather: pixels over which it rises to 1, 0 to 256; further inside it is exactly 1.

    Returns:
        `(H, W)` in 0..1, nowhere more than the mask. The border of the picture is not an edge of the subject.

    Raises:
        BestiaryError: a number out of its range.
    """
    for name, value in (("inset", inset), ("feather", feather)):
        if not 0 <= value <= MOST_EDGE:
            raise BestiaryError(f"{name} {value} is out of range: give 0 to {MOST_EDGE} pixels")
    shrunk = Image.fromarray(mask)
    for _ in range(inset):
        shrunk = shrunk.filter(ImageFilter.MinFilter(3))
    total = np.asarray(shrunk, np.float32)
    for _ in range(feather):
        shrunk = shrunk.filter(ImageFilter.MinFilter(3))
        total = total + np.asarray(shrunk, np.float32)
    return (total / np.float32(255 * (feather + 1))).astype(np.float32)


def put_back(
    painted: _Floats, canvas: _Floats, mask: NDArray[np.uint8], feather: int = 4, lightness: float = 0.0
) -> _Floats:
    """A painted picture with the subjects of the canvas laid over it.

    Args:
        painted: `(H, W, 3)` in 0..1, what a model made of the canvas.
        canvas: `(H, W, 3)` in 0..1, the collage.
        mask: `(H, W)`, 255 where a subject is.
        feather: pixels inside the subjects' edge over which the two pass into each other; further inside the canvas stays as it is,
            to the last bit. Parts too thin for that, such as legs, are whole along their middle.
        lightness: how far subjects follow the place around them where the model made it lighter or darker, 0 (exact) to 1.

    Raises:
        BestiaryError: pictures or a mask of different sizes, or a number out of its range.
    """
    if painted.shape != canvas.shape or mask.shape != canvas.shape[:2]:
        sizes = [f"{one.shape[1]} x {one.shape[0]}" for one in (painted, canvas, mask)]
        raise BestiaryError(
            f"the painted picture has {sizes[0]} pixels, the canvas {sizes[1]}, the mask {sizes[2]}: all must be equal; choose a "
            "canvas whose sides the VAE does not change, in steps of 8 or 16 pixels"
        )
    if not 0 <= lightness <= 1:
        raise BestiaryError(f"lightness {lightness:g} is out of range: give 0 to 1")
    alpha = _whole_where_thin(soft_core(mask, feather=feather), mask, feather)[..., None]  # (H, W, 1)
    subjects = canvas if not lightness else _relit(painted, canvas, mask, lightness)
    mixed = alpha * subjects + (1 - alpha) * painted
    # products round: where the subject is whole nothing is computed
    return np.where(alpha == 1, subjects, np.where(alpha == 0, painted, mixed)).astype(np.float32)


def _whole_where_thin(alpha: _Floats, mask: NDArray[np.uint8], feather: int) -> _Floats:
    """`alpha` `(H, W)` of a mask, steeper in parts that no square of 2 * feather + 1 pixels fits into: 1 along their middle."""
    if not feather:
        return alpha
    wide = Image.fromarray(mask)
    for widen in (ImageFilter.MinFilter(3), ImageFilter.MaxFilter(3)):
        for _ in range(feather):
            wide = wide.filter(widen)
    thin = np.asarray(wide) < mask
    ridge = Image.fromarray(np.where(thin, np.rint(alpha * 255), 0).astype(np.uint8))
    for _ in range(feather):
        ridge = ridge.filter(ImageFilter.MaxFilter(3))
    steeper = np.minimum(alpha * 255 / np.maximum(np.asarray(ridge, np.float32), 1), mask / np.float32(255))
    return np.where(thin, np.maximum(alpha, steeper), alpha).astype(np.float32)


def _relit(painted: _Floats, canvas: _Floats, mask: NDArray[np.uint8], lightness: float) -> _Floats:
    """The canvas `(H, W, 3)` as much lighter or darker as the model made the place."""
    place = mask == 0
    if not place.any():
        return canvas
    after, before = (float((one[place] @ _LIGHTNESS).mean()) for one in (painted, canvas))
    factor = (after + _LEAST_LIGHT) / (before + _LEAST_LIGHT)
    factor = min(_MOST_CHANGE, max(1 / _MOST_CHANGE, factor)) ** lightness
    return (canvas * np.float32(factor)).clip(0, 1)
