"""Cutting things off a plain ground by its colour, without a model: for drawings and pictures from a studio.

The ground is taken from the border of the picture, as a colour that may change evenly from side to side. Photographs rarely have one:
a border that is not plain is refused rather than guessed at.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ..concepts.errors import BestiaryError

RING = 0.02
"""Width of the border, as a share of the picture's shorter side."""
PLAIN = 24.0
"""Distance in RGB, of 255 a channel, within which the border must keep to an even colour."""
MOST_OTHER = 0.1
"""Share of the border that may be something else, such as a foot that reaches it."""
_KEPT = 0.85
_ROUNDS = 5
_LEAST_DISTANCE = 8.0
_EDGE = 5


def segment_plain(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How far each pixel `(h, w)` in 0..1 of a picture `(h, w, 3)` RGB differs from the plain ground around it.

    Raises:
        BestiaryError: the border of the picture is not plain.
    """
    colours = picture[..., :3].astype(np.float32)
    distance, ring = _distance(colours)
    other = float((distance[ring] > PLAIN).mean())
    if other > MOST_OTHER:
        raise BestiaryError(
            f"its border is not plain: {other:.0%} of it differs from an even colour, at most {MOST_OTHER:.0%} may; "
            "give a mask, or the weights of IS-Net"
        )
    # twice what the ground itself varies by, and never less than the eye would pass over
    low = max(_LEAST_DISTANCE, 2 * float(np.quantile(distance[ring], _KEPT)))
    solid = Image.fromarray(((distance > 2 * low) * 255).astype(np.uint8))
    core = np.asarray(solid.filter(ImageFilter.MinFilter(_EDGE))) > 0
    # along the edge a pixel is the thing as far as it differs as the thing nearby does
    peak = np.asarray(Image.fromarray(distance.clip(0, 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(_EDGE)))
    share = (distance - low) / np.maximum(peak.astype(np.float32) - low, low)
    return np.where(core, 1, share.clip(0, 1)).astype(np.float32)


def _distance(colours: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Distance `(h, w)` of every pixel `(h, w, 3)` from the even ground, and which pixels `(h, w)` are the border."""
    height, width = colours.shape[:2]
    wide = max(1, round(RING * min(height, width)))
    ring = np.ones((height, width), bool)
    ring[wide:-wide, wide:-wide] = False
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    places = np.stack((np.ones_like(x), x, y), -1)  # (h, w, 3)
    samples, there = colours[ring], places[ring]
    plane = np.zeros((3, 3), np.float32)
    plane[0] = np.median(samples, 0)
    for _ in range(_ROUNDS):
        # what fits worst may be the thing
        apart = np.linalg.norm(samples - there @ plane, axis=1)
        near = apart <= np.quantile(apart, _KEPT)
        plane = np.linalg.lstsq(there[near], samples[near], rcond=None)[
            0
        ]  # (3, 3): even part, then x and y, by channel
    return np.linalg.norm(colours - places @ plane, axis=-1), ring
