"""The part attention loss: it pulls every part token's attention onto that part's region.

PartCraft, arXiv 2407.04604; kamwoh/partcraft @ dfe64e1, dreamcreature/loss.py ("bce"); kamwoh/chirpy3d @ 31040ec,
loss.py:145-180 ("softmax"). Unlike there, a part that the caption does not name takes no share in the normaliser, the
target or the mean, so a dropped token no longer adds a constant of a hundred per pixel.
Letters: B batch, P parts of the caption, h x w attention grid.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BestiaryError

AttentionLossForm = Literal["bce", "softmax"]

FLOOR = 1e-6
"""Smallest normaliser of the binary form and smallest probability of the softmax form (both as published)."""
SHARPNESS = 10.0
"""Factor before the softmax (chirpy3d)."""


def part_attention_loss(maps: Tensor, masks: Tensor, present: Tensor, form: AttentionLossForm = "bce") -> Tensor:
    """Scalar float32 loss, 0 when every token attends exactly to its own mask.

    Args:
        maps: `(B, P, h, w)` attention probabilities, averaged over heads and layers.
        masks: `(B, P, h, w)` in 0..1; where the asked parts' masks do not reach, the pixel does not count.
        present: `(B, P)` bool, which parts the caption names.
        form: "bce" (published) or "softmax".

    Raises:
        BestiaryError: shapes differ or the form has another name.
    """
    losses, weights = per_part_attention_loss(maps, masks, present, form)
    return (losses * weights).sum() / weights.sum().clamp(min=FLOOR)


def per_part_attention_loss(
    maps: Tensor, masks: Tensor, present: Tensor, form: AttentionLossForm = "bce"
) -> tuple[Tensor, Tensor]:
    """The loss of every part, and the weight with which it enters the scalar.

    Returns:
        losses `(B, P)` (0 where absent) and weights `(B, P)`, both float32. Of the binary form a part's weight is the
        number of pixels that count; of the softmax form it is the part's own area.

    Raises:
        BestiaryError: shapes differ or the form has another name.
    """
    if maps.shape != masks.shape or maps.ndim != 4 or present.shape != maps.shape[:2]:
        raise BestiaryError(
            f"maps {tuple(maps.shape)}, masks {tuple(masks.shape)} and present {tuple(present.shape)} do not fit: "
            "expected (B, P, h, w) twice and (B, P)"
        )
    if form not in ("bce", "softmax"):
        raise BestiaryError(f"unknown attention loss form {form!r}: choose bce or softmax")
    # logarithms of shares near 0 and 1 need float32
    with torch.autocast(maps.device.type, enabled=False):
        named = present[:, :, None, None].float()  # (B, P, 1, 1)
        maps, masks = maps.float(), masks.float() * named  # (B, P, h, w)
        owned = masks.sum(1, keepdim=True)  # (B, 1, h, w), how much of a pixel the named parts cover
        if form == "softmax":
            return _softmax_losses(maps, masks, named)
        # where a dropped part shares a pixel, the named ones divide the target among themselves
        return _binary_losses(maps, masks / owned.clamp(min=FLOOR), named, owned)


def _binary_losses(maps: Tensor, target: Tensor, named: Tensor, owned: Tensor) -> tuple[Tensor, Tensor]:
    """`(B, P)` mean binary cross-entropy of the share of each token among the named ones, and pixel counts."""
    # the share of a token among the named ones: how much attention they get together does not count
    kept = maps * named  # (B, P, h, w)
    share = (kept / kept.sum(1, keepdim=True).clamp(min=FLOOR)).clamp(0, 1)  # (B, P, h, w)
    # the kernel aborts on NaN; the sum passes it on, so that training can say which pictures it came from
    entropy = functional.binary_cross_entropy(share.nan_to_num(0), target, reduction="none") + 0 * share.detach()
    counts = (owned * named).sum((-1, -2))  # (B, P)
    return (entropy * owned * named).sum((-1, -2)) / counts.clamp(min=FLOOR), counts


def _softmax_losses(maps: Tensor, masks: Tensor, named: Tensor) -> tuple[Tensor, Tensor]:
    """`(B, P)` mean cross-entropy over each part's own pixels, and its area."""
    # a finite fill: with -inf a caption without parts would give nan instead of 0
    scores = (SHARPNESS * maps).masked_fill(named == 0, -1e4)  # (B, P, h, w)
    share = scores.softmax(1).clamp(min=FLOOR)  # (B, P, h, w)
    # weights are areas, so that the sum over parts is the mean over pixels
    areas = masks.sum((-1, -2))  # (B, P)
    return -(masks * share.log()).sum((-1, -2)) / areas.clamp(min=FLOOR), areas


@torch.no_grad()
def attention_iou(maps: Tensor, masks: Tensor, present: Tensor) -> Tensor:
    """How well the tokens' attention segments the picture: each pixel goes to the named part with the largest share.

    Args:
        maps: `(B, P, h, w)`, masks: `(B, P, h, w)` in 0..1 (at least 0.5 counts as inside), present: `(B, P)` bool.

    Returns:
        Intersection over union `(B, P)` float32; nan where the part is not named or has no pixel.
    """
    named = present[:, :, None, None]  # (B, P, 1, 1)
    inside = (masks >= 0.5) & named  # (B, P, h, w)
    # a pixel of a part without a token has no right answer and is left out
    covered = inside.any(1, keepdim=True)  # (B, 1, h, w)
    winner = maps.float().masked_fill(~named, -1.0).argmax(1, keepdim=True)  # (B, 1, h, w)
    indices = torch.arange(maps.shape[1], device=maps.device).view(1, -1, 1, 1)
    chosen = (winner == indices) & named & covered  # (B, P, h, w)
    overlap = (chosen & inside).sum((-1, -2)).float()  # (B, P)
    union = (chosen | inside).sum((-1, -2)).float()  # (B, P)
    empty = ~inside.any(-1).any(-1)  # (B, P)
    return (overlap / union.clamp(min=1)).masked_fill(empty, float("nan"))
