"""Regions in joint attention without a mask: a bias of a few text keys, different for every image place, as channels of queries and keys.

A region adds the same number to the scores of all its tokens, so that all regions together are a matrix of low rank: queries get one more
channel for each, which holds the bias of the place, and keys the indicator of its tokens. The attention stays the host's own, fused one over
all keys, where a mask would need one number for every pair of them.
Letters: R rows of a batch, H heads, N image places, S queries, T keys, M regions, d channels of a head, w channels added.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .attention_maps import HEAD_MULTIPLE


@dataclass(frozen=True)
class BiasedAttention:
    """Arguments of an attention with biases in them."""

    q: Tensor
    """`(R, H, S, d + w)`."""
    k: Tensor
    """`(R, H, T, d + w)`."""
    v: Tensor
    """`(R, H, T, d + w)`, zeros in the added channels."""
    width: int
    """d."""

    def output(self, attended: Tensor) -> Tensor:
        """What the attention gives without the added channels: `(R, S, H * d)` of `(R, S, H * (d + w))`, or `(R, H, S, d)` likewise."""
        if attended.ndim == 4:
            return attended[..., : self.width]
        heads = self.q.shape[1]
        return attended.unflatten(-1, (heads, -1))[..., : self.width].flatten(-2)


def with_biases(
    q: Tensor, k: Tensor, v: Tensor, biases: Tensor, marks: Tensor, rows: slice, scale: float | None = None
) -> BiasedAttention:
    """Queries and keys whose scores hold biases of the image's places on some keys.

    Args:
        q: `(R, H, S, d)`, k and v: `(R, H, T, d)`.
        biases: `(R, N, M)`, added to the scores of a place.
        marks: `(R, T, M)`, 1 at the keys to which a bias applies.
        rows: the image's N places among the S queries; the others keep their scores.
        scale: factor that the attention is told; None if it takes 1 / sqrt of the channels that it is given.
    """
    width = q.shape[-1]
    added = -(-biases.shape[-1] // HEAD_MULTIPLE) * HEAD_MULTIPLE
    # an attention that takes its scale from the channels divides by the root of more of them than before
    before, after = (width**-0.5, (width + added) ** -0.5) if scale is None else (scale, scale)
    bias = functional.pad(
        biases / after, (0, added - biases.shape[-1], rows.start, q.shape[2] - rows.stop)
    )  # (R, S, w)
    mark = functional.pad(marks, (0, added - marks.shape[-1]))  # (R, T, w)
    heads = q.shape[1]
    return BiasedAttention(
        torch.cat((q * (before / after), bias.to(q.dtype).unsqueeze(1).expand(-1, heads, -1, -1)), dim=-1),
        torch.cat((k, mark.to(k.dtype).unsqueeze(1).expand(-1, heads, -1, -1)), dim=-1),
        functional.pad(v, (0, added)),
        width,
    )
