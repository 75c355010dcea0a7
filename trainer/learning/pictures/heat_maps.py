"""Heat maps of attention over a greyscale picture."""

import numpy as np
from PIL import Image
from torch import Tensor

from ....concepts.pictures.color_scale import scale_colors

_STOPS = np.array([[12, 10, 30], [92, 24, 92], [200, 62, 60], [248, 160, 54], [254, 244, 190]], dtype=np.float32)
"""Colour stops RGB 0..255, from dark violet to pale yellow."""


def heat_map(image: Image.Image, attention: Tensor, size: int = 192) -> Image.Image:
    """The picture in grey, resized to `size`, with an attention map `(h, w)` of any positive scale as colours."""
    picture = image.convert("L").convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    # normalise to 0..1: attention values of different layers and sizes differ in scale
    weight = attention.detach().float().cpu().numpy()
    low, high = float(weight.min()), float(weight.max())
    weight = (weight - low) / (high - low) if high > low else np.zeros_like(weight)
    coarse = Image.fromarray((weight * 255).astype(np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255  # (S, S)
    glow = scale_colors(smooth, _STOPS)  # (S, S, 3)
    # a minimum share of 0.25 darkens the picture where the weight is 0
    share = (0.25 + 0.6 * smooth)[..., None]  # (S, S, 1)
    mixed = np.asarray(picture, dtype=np.float32) * (1 - share) + glow * share
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
