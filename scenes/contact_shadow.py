"""The shadow that holds a subject on the ground: its outline squashed onto its foot line, and a darker strip under each foot."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

_FLAT = 0.16
"""Height of the squashed outline against the subject's."""
_FEET = 0.2
"""Share of the subject's height above its lowest pixel in which a lower edge is a foot: those farther back stand higher."""
_STRIP = 0.04
"""Thickness of the strip under a foot against the subject's height."""
_SOFT, _SOFT_FEET = 0.035, 0.012
"""Radii of the blurs against the longer side of the subject."""
_FAINT = 0.6
"""Of the squashed outline against the strip under the feet."""
_SOLID = 0.5


def contact_shadow(alpha: NDArray[np.float32], strength: float) -> NDArray[np.float32]:
    """Shadow of a subject with this alpha `(H, W)`, 0 to 1: how much it darkens each pixel `(H, W)`, at most `strength`.

    Nothing where the subject is not on the canvas, or where its foot lies below it.
    """
    solid = alpha >= _SOLID
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    shadow = np.zeros(alpha.shape, np.float32)
    if not len(rows) or rows[-1] == len(alpha) - 1:
        return shadow
    top, foot, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    tall, wide = foot - top, right - left
    edge = max(tall, wide)
    outline = Image.fromarray((alpha[top:foot, left:right] * 255 + 0.5).astype(np.uint8))
    # the squashed outline lies around the foot line: most of it on the ground before and behind the feet
    flat = np.asarray(outline.resize((wide, max(1, round(tall * _FLAT))), Image.Resampling.BOX))
    spread = _laid(alpha.shape, flat, left, foot - round(len(flat) * 0.7), edge * _SOFT)
    close = _laid(alpha.shape, _feet(solid[top:foot, left:right]), left, top, edge * _SOFT_FEET)
    return (np.maximum(spread * np.float32(_FAINT), close) * np.float32(strength)).astype(np.float32)


def _feet(solid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A strip `(h + more, w)` along the lower edges of a subject `(h, w)` that are near its lowest one, fainter the higher they are."""
    tall = len(solid)
    half = max(0.5, tall * _STRIP / 2)
    height = np.argmax(solid[::-1], axis=0)  # (w,) rows between a column's lowest pixel and the foot line
    share = (1 - height / (tall * _FEET)).clip(0, 1) * solid.any(axis=0)
    rows = np.arange(tall + int(half) + 1)[:, None]
    near = abs(rows - (tall - 0.5 - height)) <= half  # (h + more, w)
    return (near * share * 255 + 0.5).astype(np.uint8)


def _laid(shape: tuple[int, int], mask: NDArray[np.uint8], left: int, top: int, radius: float) -> NDArray[np.float32]:
    """A mask `(h, w)` at a place of an empty canvas `(H, W)`, blurred; 0 to 1."""
    margin = int(3 * radius) + 2
    padded = Image.fromarray(np.pad(mask, margin)).filter(ImageFilter.GaussianBlur(radius))
    canvas = Image.new("L", (shape[1], shape[0]))
    canvas.paste(padded, (left - margin, top - margin))
    return np.asarray(canvas, np.float32) / np.float32(255)
