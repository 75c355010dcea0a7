"""Reads masks in the usual formats: white on black, transparency, label map palettes, 0 and 1, boolean."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ....concepts.errors import BestiaryError
from .image_files import decoded

_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
_RANGES = (1.0, 255.0, 65535.0)


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The mask `(H, W)` float32 in 0..1 of a picture, 1 for the object.

    If the file has varying transparency, its opacity is the mask, independent of the colours. Otherwise grey values are
    used: black is 0, and the maximum of the smallest usual range (1, 255 or 65535) that contains all values is 1. In a
    coloured palette, as of label maps, everything except black is the object; for other coloured pixels the brightest
    channel is used.

    Args:
        size: width and height in pixels of the upright picture.

    Raises:
        UnreadableImage: the file cannot be read as a picture.
        BestiaryError: its size differs from that of its picture.
    """
    grey = decoded(path, _grey)
    if grey.size != tuple(size):
        raise BestiaryError(
            f"the mask {path} has {grey.width} x {grey.height} pixels, its picture {size[0]} x {size[1]}: "
            "give a mask with the size of the picture"
        )
    return np.asarray(grey, dtype=np.float32) / 255


def mask_image(mask: np.ndarray) -> Image.Image:
    """A mask `(H, W)` in 0..1 as a grey picture."""
    return Image.fromarray((mask * 255).round().clip(0, 255).astype(np.uint8))


def coverage(mask: np.ndarray) -> float:
    """Share 0..1 of a picture that its mask `(H, W)` in 0..1 covers."""
    return float(mask.mean())


def coverage_text(shares: Sequence[float], names: Sequence[str]) -> str:
    """One-line summary of how much the masks cover of their N pictures."""
    if len(shares) == 1:
        return f"the mask covers {shares[0]:.0%} of {names[0]}"
    least, most = int(np.argmin(shares)), int(np.argmax(shares))
    return (
        f"{len(shares)} masks cover {np.mean(shares):.0%} of their pictures on average, from {shares[least]:.0%} of "
        f"{names[least]} to {shares[most]:.0%} of {names[most]}"
    )


def _grey(image: Image.Image) -> Image.Image:
    """A loaded picture of any mode as a mask in mode L."""
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
        low, high = alpha.getextrema()
        # constant opacity carries no mask, except full transparency, which is an empty mask
        if low != high or high == 0:
            return alpha
    if image.mode in ("P", "PA"):
        return _of_palette(image.convert("RGB"))
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("L", "LA", "La", "F") or image.mode.startswith("I"):
        return _scaled(np.asarray(image.convert("L") if image.mode in ("LA", "La") else image))
    return _scaled(np.asarray(image.convert("RGB")).max(axis=-1))  # (H, W) of (H, W, 3)


def _of_palette(picture: Image.Image) -> Image.Image:
    pixels = np.asarray(picture)  # (H, W, 3)
    brightest = pixels.max(axis=-1)  # (H, W)
    # a grey palette is a compressed grey picture; a coloured one is a label map
    if (brightest == pixels.min(axis=-1)).all():
        return _scaled(brightest)
    return Image.fromarray(np.where(brightest > 0, 255, 0).astype(np.uint8))


def _scaled(values: np.ndarray) -> Image.Image:
    """Grey values `(H, W)` of any depth scaled to 0..255 by the smallest usual range that contains them all."""
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0).clip(0)  # (H, W)
    largest = float(values.max(initial=0.0))
    top = next((top for top in _RANGES if largest <= top), largest)
    return Image.fromarray((values / top * 255).round().astype(np.uint8))
