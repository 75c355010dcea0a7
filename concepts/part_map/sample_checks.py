"""Checks that the pictures are suitable for the discovery of parts, before parts are fitted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BestiaryError
from ..features.patch_features import PatchGrid
from .foreground import LOW_MARGIN

FEWEST_PICTURES = 3
"""Minimum number of pictures: parts are found by comparing pictures."""
_PLAIN = 3 / 255
_ALIKE = 0.9995


def plain_pictures(images: Tensor) -> Tensor:
    """Which of the images `(B, 3, H, W)` in 0..1 have a single colour, apart from JPEG noise: `(B,)` bool."""
    low, high = images.flatten(2).aminmax(dim=2)  # (B, 3) each
    return (high - low).amax(dim=1) <= _PLAIN


def refuse_few(count: int, where: str) -> None:
    """Raises BestiaryError if there are too few pictures for a discovery of parts."""
    if count < FEWEST_PICTURES:
        raise BestiaryError(
            f"{count} picture{'' if count == 1 else 's'} {where}: parts are found by comparing pictures; "
            f"give at least {FEWEST_PICTURES}, better some dozens"
        )


def refuse_copies(sample: PatchGrid, where: str) -> None:
    """Raises BestiaryError if all pictures of a sample `(N, h, w, D)` are copies."""
    features = sample.features
    if len(features) < 2:
        return
    likeness = [float(F.cosine_similarity(some, features[:1], dim=-1).min()) for some in features.split(64)]
    if min(likeness) > _ALIKE:
        raise BestiaryError(
            f"all {len(features)} pictures {where} are identical: parts are found by comparing different pictures of similar objects; "
            "give different pictures"
        )


def foreground_doubts(statistics: dict[str, float], areas: Sequence[float]) -> list[str]:
    """Warnings about a suspicious foreground; an empty list if there are none.

    Args:
        statistics: of the codebook.
        areas: share 0..1 of every picture that the foreground covers.
    """
    doubts = area_doubts(areas)
    margin = statistics.get("foreground_margin", 1.0)
    if margin < LOW_MARGIN:
        doubts.append(
            f"The foreground covers the centre of the pictures only {margin:.2f} more than their borders "
            f"(at least {LOW_MARGIN:.2f} expected): it may be background or noise. Give masks (--masks) to define it."
        )
    return doubts


def area_doubts(areas: Sequence[float]) -> list[str]:
    """Warnings from the share of each picture that the foreground covers."""
    found = torch.tensor(list(areas), dtype=torch.float64)  # (N,)
    if not len(found):
        return []
    doubts = []
    nowhere, tiny = int((found == 0).sum()), int(((found > 0) & (found < 0.03)).sum())
    whole = int((found > 0.95).sum())
    if nowhere:
        doubts.append(f"In {nowhere} of {len(found)} pictures no foreground was found.")
    if tiny:
        doubts.append(f"In {tiny} of {len(found)} pictures the foreground covers less than 3 % of the picture.")
    if whole:
        doubts.append(f"In {whole} of {len(found)} pictures the foreground covers nearly the whole picture.")
    return doubts
