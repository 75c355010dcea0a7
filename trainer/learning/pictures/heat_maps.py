"""Where a part token looked: attention laid over a picture as light, the rest of the picture darkened."""

import numpy as np
from PIL import Image
from torch import Tensor

from ....concepts.pictures.color_scale import scale_colors

_STOPS = np.array([[12, 10, 30], [92, 24, 92], [200, 62, 60], [248, 160, 54], [254, 244, 190]], dtype=np.float32)
"""From dark violet to pale yellow."""


def heat_map(image: Image.Image, attention: Tensor, size: int = 192) -> Image.Image:
    """A picture of this edge with an attention map `(h, w)`, any positive scale, glowing over its grey copy."""
    picture = image.convert("L").convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    # stretch the weights to 0..1, whatever their scale
    weight = attention.detach().float().cpu().numpy()
    low, high = float(weight.min()), float(weight.max())
    weight = (weight - low) / (high - low) if high > low else np.zeros_like(weight)
    coarse = Image.fromarray((weight * 255).astype(np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255  # (S, S)
    glow = scale_colors(smooth, _STOPS)  # (S, S, 3)
    # even where the weight is 0 a little of the dark colour is mixed in
    share = (0.25 + 0.6 * smooth)[..., None]  # (S, S, 1)
    mixed = np.asarray(picture, dtype=np.float32) * (1 - share) + glow * share
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
