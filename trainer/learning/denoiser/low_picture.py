"""The low picture that stage II of DeepFloyd IF enlarges: made of a training picture, enlarged, and noised to a level.

Saharia et al. 2022 (arXiv 2205.11487, section 2.4, noise conditioning augmentation); how it is enlarged, as diffusers' IFSuperResolutionPipeline
does it. Letters: B pictures, h and w their pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

GUIDE, LEVEL = "guide", "level"
"""Extras of a conditioning: the noised low picture at full size `(B, 3, h, w)` in -1..1, and its level `(B,)` long."""
FACTOR = 4
"""Edge of a picture divided by that of the low one: 256 and 64."""
SAMPLING_LEVEL = 250
"""Noise level of the low picture when pictures are made, as in diffusers; training draws all levels alike."""
_SEED = 0x1F_5EED


def lowered(pictures: Tensor, factor: int = FACTOR) -> Tensor:
    """Pictures `(B, 3, h, w)` at a fraction of their size, every pixel the mean of those it stands for."""
    size = [max(1, edge // factor) for edge in pictures.shape[-2:]]
    return F.interpolate(pictures.float(), size=size, mode="area")


def enlarge(low: Tensor, size: Sequence[int]) -> Tensor:
    """The low picture `(B, 3, h, w)` at `size` pixels, bilinear between the centres of its corners, as stage II was trained."""
    return F.interpolate(low.float(), size=tuple(size), mode="bilinear", align_corners=True)


def at_level(pictures: Tensor, alphas: Tensor, levels: Tensor, noise: Tensor) -> Tensor:
    """Pictures `(B, 3, h, w)` noised to levels `(B,)` by noise `(B, 3, h, w)` (DDPM, equation 4).

    `alphas` `(L,)`: how much of the picture's power is left at every level.
    """
    alpha = alphas[levels].view(-1, 1, 1, 1)
    return alpha.sqrt() * pictures + (1 - alpha).sqrt() * noise


def guides(pictures: Tensor, alphas: Tensor, levels: Tensor, noise: Tensor) -> Tensor:
    """What stage II sees beside pictures `(B, 3, h, w)`: themselves at a fraction of their size, enlarged again, noised to levels `(B,)`."""
    return at_level(enlarge(lowered(pictures), pictures.shape[-2:]), alphas, levels, noise)


def level_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise `(B, *shape)` of the low pictures, row i from seed i alone, apart from the noise that sampling starts from."""
    rows = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed + _SEED)) for seed in seeds]
    return torch.stack(rows)
