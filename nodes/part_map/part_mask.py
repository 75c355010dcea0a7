"""Masks of selected parts: union, growing or shrinking, feathering, inversion. Letters: B pictures, (H, W) pixels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .seen_parts import SeenParts


def mask_of_parts(seen: SeenParts, parts: str, *, grow: int = 0, feather: float = 0.0, invert: bool = False) -> Tensor:
    """Mask `(B, H, W)` in 0..1 of the parts listed in a text.

    Args:
        parts: names or numbers separated by commas.
        grow: pixels to grow by; negative values shrink.
        feather: standard deviation in pixels of a Gaussian blur.

    Raises:
        BestiaryError: an unknown part.
    """
    # the order is part of the node's contract: union, grow, feather, invert
    chosen = seen.find_parts(parts)
    areas = [seen.areas(picture)[chosen].sum(dim=0) for picture in range(len(seen.maps.labels))]
    mask = torch.stack(areas).clamp(0, 1)  # (B, H, W)
    mask = softened(grown(mask, grow), feather)
    return 1 - mask if invert else mask


def part_masks(seen: SeenParts) -> list[Tensor]:
    """One mask `(B, H, W)` per part, in the order of the names."""
    areas = torch.stack([seen.areas(picture) for picture in range(len(seen.maps.labels))])  # (B, M, H, W)
    return list(areas.unbind(dim=1))


def grown(mask: Tensor, pixels: int) -> Tensor:
    """A mask `(B, H, W)` dilated by this many pixels (an octagon), or eroded if negative."""
    if pixels < 0:
        return 1 - grown(1 - mask, -pixels)
    spread = mask.unsqueeze(1)  # (B, 1, H, W)
    for step in range(pixels):
        # alternating a cross and a square approximates a circle by an octagon
        if step % 2:
            spread = F.max_pool2d(spread, 3, 1, 1)
        else:
            wide, tall = F.max_pool2d(spread, (1, 3), 1, (0, 1)), F.max_pool2d(spread, (3, 1), 1, (1, 0))
            spread = torch.maximum(wide, tall)
    return spread.squeeze(1)


def softened(mask: Tensor, deviation: float) -> Tensor:
    """A mask `(B, H, W)` blurred by a Gaussian with this deviation in pixels; borders are replicated."""
    if deviation <= 0:
        return mask
    # beyond three standard deviations the Gaussian is negligible
    reach = max(1, math.ceil(3 * deviation))
    place = torch.arange(-reach, reach + 1, dtype=torch.float32)
    weights = torch.exp(-place.square() / (2 * deviation**2))
    weights = weights / weights.sum()  # (2 reach + 1,)
    # a Gaussian is separable: blur rows and columns one after the other
    blurred = F.pad(mask.unsqueeze(1), (reach, reach, reach, reach), mode="replicate")
    blurred = F.conv2d(blurred, weights.view(1, 1, 1, -1))
    return F.conv2d(blurred, weights.view(1, 1, -1, 1)).squeeze(1).clamp(0, 1)  # (B, H, W)
