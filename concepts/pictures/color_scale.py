"""Colour scales for weights."""

import numpy as np


def scale_colors(weights: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Colours `(H, W, 3)` of weights `(H, W)` in 0..1, interpolated between neighbouring colours of a scale.

    Args:
        weights: 0 is the first colour, 1 the last.
        stops: `(C, 3)` at least two colours in equal steps, RGB in 0..255.
    """
    place = weights * (len(stops) - 1)  # (H, W)
    # between two neighbouring colours; the last one belongs to the pair below it
    below = np.clip(place.astype(int), 0, len(stops) - 2)
    rest = (place - below)[..., None]  # (H, W, 1)
    return stops[below] * (1 - rest) + stops[below + 1] * rest
