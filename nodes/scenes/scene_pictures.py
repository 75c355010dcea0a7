"""Pictures and masks of a graph (tensors in 0..1) as the 8-bit arrays of scenes, and back.

Letters: B pictures, (H, W) pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...concepts.errors import BestiaryError

Plane = NDArray[np.uint8]


def as_planes(values: Tensor) -> Plane:
    """Any tensor in 0..1 as 8 bits, rounded; of the same shape."""
    return (values.detach().float().cpu() * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def as_tensor(planes: Sequence[Plane]) -> Tensor:
    """Arrays of one shape as one tensor `(B, ...)` float32 in 0..1."""
    return torch.from_numpy(np.stack(planes)).float() / 255


def checked_pictures(images: Tensor, called: str = "image") -> Tensor:
    """Pictures `(B, H, W, 3)` or `(B, H, W, 4)` with finite values.

    Raises:
        BestiaryError: another shape, or values that are not numbers.
    """
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[3] not in (1, 3, 4) or 0 in shape:
        raise BestiaryError(f"{called} of shape {shape}: connect pictures (count, height, width, 3)")
    if not bool(torch.isfinite(images).all()):
        raise BestiaryError(
            f"{called} holds values that are not numbers (NaN or infinity): check the node that made it, often a VAE in half precision"
        )
    return images.expand(-1, -1, -1, 3) if shape[3] == 1 else images


def checked_masks(mask: Tensor, images: Tensor, called: str = "mask") -> Tensor:
    """Masks `(B, H, W)` in 0..1, one for every picture `(B, H, W, C)`; a single one counts for all.

    Raises:
        BestiaryError: another number or another size.
    """
    masks = mask.detach().float().cpu().reshape(-1, *mask.shape[-2:]).clamp(0, 1)
    count, height, width = images.shape[:3]
    if tuple(masks.shape[1:]) != (height, width):
        hint = (
            "; Load Image gives such a black square where the file has no transparency"
            if masks.shape[1:] == (64, 64)
            else ""
        )
        raise BestiaryError(
            f"{called} has {masks.shape[2]} x {masks.shape[1]} pixels, its picture {width} x {height}: give a mask of the picture's "
            f"own size{hint}"
        )
    if len(masks) not in (1, count):
        raise BestiaryError(f"{len(masks)} masks for {count} pictures: connect one mask, or one for every picture")
    return masks.expand(count, -1, -1)
