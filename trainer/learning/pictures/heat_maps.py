"""Heat maps of attention over a greyscale picture."""

import numpy as np
from PIL import Image
from torch import Tensor

from ....concepts.pictures.color_scale import scale_colors

_STOPS = np.array([[12, 10, 30], [92, 24, 92], [200, 62, 60], [248, 160, 54], [254, 244, 190]], dtype=np.float32)
"""Colour stops RGB 0..255, from dark violet to pale yellow."""


def size_within(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Width and height of a picture of `size` whose longer side becomes `longest`."""
    width, height = (max(1, round(side * longest / max(size))) for side in size)
    return width, height


def heat_map(image: Image.Image, attention: Tensor, size: int = 192) -> Image.Image:
    """The picture in grey, its longer side resized to `size`, with an attention map `(h, w)` of any positive scale as colours."""
    edges = size_within(image.size, size)
    picture = image.convert("L").convert("RGB").resize(edges, Image.Resampling.LANCZOS)
    # normalise to 0..1: attention values of different layers and sizes differ in scale
    weight = attention.detach().float().cpu().numpy()
    low, high = float(weight.min()), float(weight.max())
    weight = (weight - low) / (high - low) if high > low else np.zeros_like(weight)
    coarse = Image.fromarray((weight * 255).astype(np.uint8))
    smooth = np.asarray(coarse.resize(edges, Image.Resampling.BICUBIC), dtype=np.float32) / 255  # (H, W)
    glow = scale_colors(smooth, _STOPS)  # (H, W, 3)
    # a minimum share of 0.25 darkens the picture where the weight is 0
    share = (0.25 + 0.6 * smooth)[..., None]  # (H, W, 1)
    mixed = np.asarray(picture, dtype=np.float32) * (1 - share) + glow * share
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
