"""Masks of pictures as people save them: white on black, transparent, palettes of label maps, 0 and 1, boolean."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ....concepts.errors import BestiaryError
from .image_files import decoded

_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
_RANGES = (1.0, 255.0, 65535.0)


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The mask `(H, W)` float32 in 0..1 of a picture, 1 where the thing is.

    Where the file has transparency that differs from pixel to pixel, its opacity is the mask, whatever its colours are.
    Otherwise grey values are, black being 0 and the top of the usual range (1, 255 or 65535) that holds them all being 1.
    In a palette with colours, as label maps have it, everything but black is the thing; of other coloured pixels the
    brightest channel counts.

    Args:
        size: width and height in pixels of the picture, upright.

    Raises:
        UnreadableImage: the file gives no picture.
        BestiaryError: it has another size than its picture.
    """
    grey = decoded(path, _grey)
    if grey.size != tuple(size):
        raise BestiaryError(
            f"the mask {path} has {grey.width} x {grey.height} pixels, its picture {size[0]} x {size[1]}: "
            "give a mask of the picture's own size"
        )
    return np.asarray(grey, dtype=np.float32) / 255


def mask_image(mask: np.ndarray) -> Image.Image:
    """A mask `(H, W)` in 0..1 as a grey picture."""
    return Image.fromarray((mask * 255).round().clip(0, 255).astype(np.uint8))


def coverage(mask: np.ndarray) -> float:
    """Share 0..1 of a picture that its mask `(H, W)` in 0..1 covers."""
    return float(mask.mean())


def coverage_text(shares: Sequence[float], names: Sequence[str]) -> str:
    """How much of each of N pictures its mask covers, as one line."""
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
        # the same everywhere it says nothing; all of it transparent is an empty mask
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
    # a grey palette is a grey picture saved small, a coloured one numbers the things
    if (brightest == pixels.min(axis=-1)).all():
        return _scaled(brightest)
    return Image.fromarray(np.where(brightest > 0, 255, 0).astype(np.uint8))


def _scaled(values: np.ndarray) -> Image.Image:
    """Grey values `(H, W)` of any depth in 0..255: the smallest usual range that holds them all, or their own."""
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0).clip(0)  # (H, W)
    largest = float(values.max(initial=0.0))
    top = next((top for top in _RANGES if largest <= top), largest)
    return Image.fromarray((values / top * 255).round().astype(np.uint8))
