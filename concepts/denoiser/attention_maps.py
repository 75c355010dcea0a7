"""Cross-attention probabilities of a few tokens, computed beside fused attention, and their average over layers.

Only the columns of the asked tokens are formed. Two exact forms: `lse` takes the scores once more and divides by their
log-sum-exp, leaving the attention output untouched; `one_hot` appends indicator channels to the values, so that one fused
call returns output and columns. Both equal the explicit softmax (kamwoh/partcraft @ dfe64e1, attn_processor.py:73-143).
Letters: B batch, H heads, N image positions, T text positions, P asked tokens, K columns of one, d channels of a head.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BestiaryError
from .denoiser import AttentionMethod

HEAD_MULTIPLE = 8
"""Fused kernels want head channels in multiples of this."""


def attention_columns(
    q: Tensor, k: Tensor, columns: Tensor, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """Probabilities of learned vectors, summed over their columns and averaged over heads, by log-sum-exp.

    Args:
        q: `(B, H, N, d)`, k: `(B, H, T, d)`, as they go into the attention.
        columns: `(B, P, K)` long in 0..T-1; -1 adds nothing.
        scale: factor of the scores; None is 1 / sqrt(d).
        mask: numbers that the attention adds to its scores, broadcast to `(B, H, N, T)`.

    Returns:
        `(B, N, P)` float32, differentiable in q and k.
    """
    batch, heads, queries, width = q.shape  # (B, H, N, d)
    factor = width**-0.5 if scale is None else scale
    # float32 before the log-sum-exp: in half precision the sum over 77 keys loses small columns
    scores = (q @ k.transpose(-1, -2)).float() * factor  # (B, H, N, T)
    if mask is not None:
        scores = scores + mask
    # absent tokens read column 0 and are set to zero at the end
    flat = columns.flatten(1)  # (B, P * K)
    index = flat.clamp(min=0)[:, None, None, :].expand(-1, heads, queries, -1)  # (B, H, N, P * K)
    chosen = scores.gather(-1, index) - scores.logsumexp(-1, keepdim=True)  # (B, H, N, P * K)
    kept = chosen.exp().mean(1) * (flat >= 0).unsqueeze(1)  # (B, N, P * K)
    # a vector with one column, as in all Stable Diffusion models, has nothing to sum
    return kept if columns.shape[-1] == 1 else kept.unflatten(2, columns.shape[1:]).sum(-1)  # (B, N, P)


def attend_with_columns(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    columns: Tensor,
    scale: float | None = None,
    method: AttentionMethod = "one_hot",
) -> tuple[Tensor, Tensor]:
    """Fused attention and the probabilities of a few tokens.

    Args:
        q: `(B, H, N, d)`, k: `(B, H, T, d)`, v: `(B, H, T, e)`.
        columns: `(B, P, K)` long in 0..T-1, the columns that make up one token's; -1 adds nothing.
        scale: factor of the scores; None is 1 / sqrt(d).
        method: "lse" leaves the output bit-identical to plain fused attention; "one_hot" needs one call only.

    Returns:
        Output `(B, H, N, e)` in the dtype of v, and columns `(B, N, P)` float32 averaged over heads.

    Raises:
        BestiaryError: the method has another name.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if method == "lse":
        output = functional.scaled_dot_product_attention(q, k, v, scale=factor)  # (B, H, N, e)
        return output, attention_columns(q, k, columns, factor)
    if method != "one_hot":
        raise BestiaryError(f"unknown attention method {method!r}: choose lse or one_hot")
    tokens, values = k.shape[2], v.shape[-1]
    # indicator channels: attending to token t adds its probability to the channel of the part that stands there
    places = torch.arange(tokens, device=k.device).view(1, tokens, 1, 1)
    marks = (columns.unsqueeze(1) == places).any(-1).to(v.dtype)  # (B, T, P)
    joined = attend_with_marks(q, k, v, marks, factor)  # (B, H, N, e + P)
    return joined[..., :values], joined[..., values:].float().mean(1)


def attend_with_marks(q: Tensor, k: Tensor, v: Tensor, marks: Tensor, scale: float) -> Tensor:
    """One fused attention over values with indicator channels behind them.

    Args:
        q: `(B, H, N, d)`, k: `(B, H, T, d)`, v: `(B, H, T, e)`; e may be 0.
        marks: `(B, T, M)` in the dtype of v, 1 where a key counts for a channel.
        scale: factor of the scores.

    Returns:
        `(B, H, N, e + M)`: the output, then the probability that falls on the keys of each channel.
    """
    heads, values, asked = q.shape[1], v.shape[-1], marks.shape[-1]
    marks = marks.unsqueeze(1).expand(-1, heads, -1, -1)  # (B, H, T, M)
    # zero channels change no score; the scale must be given, since the kernel would take it from the new width
    width = -(-max(values + asked, q.shape[-1]) // HEAD_MULTIPLE) * HEAD_MULTIPLE
    joined = functional.scaled_dot_product_attention(
        functional.pad(q, (0, width - q.shape[-1])),  # (B, H, N, width)
        functional.pad(k, (0, width - k.shape[-1])),  # (B, H, T, width)
        functional.pad(torch.cat((v, marks), dim=-1), (0, width - values - asked)),  # (B, H, T, width)
        scale=scale,
        # one softmax serves both: the first channels are the output, the next ones the columns
    )  # (B, H, N, width)
    return joined[..., : values + asked]


def average_maps(attention: Mapping[str, Tensor], size: int | tuple[int, int]) -> Tensor:
    """Mean over layers of attention maps, each first brought to one size.

    Args:
        attention: layer name -> `(B, P, h, w)`; layers may differ in h and w.
        size: edge, or (height, width), of the result in positions.

    Returns:
        `(B, P, height, width)` float32. Finer maps are averaged down, coarser ones interpolated.

    Raises:
        BestiaryError: no layer was captured.
    """
    if not attention:
        raise BestiaryError(
            "no attention map was captured: the asked layers do not exist in this model or none was asked for"
        )
    target = (size, size) if isinstance(size, int) else (size[0], size[1])
    # every layer counts the same, however fine its grid is
    resized = [_resized(maps.float(), target) for maps in attention.values()]  # (B, P, height, width) each
    return torch.stack(resized).mean(0)


def _resized(maps: Tensor, target: tuple[int, int]) -> Tensor:
    """`(B, P, h, w)` -> `(B, P, *target)`."""
    if maps.shape[-2:] == target:
        return maps
    if maps.shape[-2] >= target[0] and maps.shape[-1] >= target[1]:
        return functional.adaptive_avg_pool2d(maps, target)
    return functional.interpolate(maps, target, mode="bilinear", align_corners=False)
