"""Where image places look in joint attention, whose keys are text and image together: three forms of the columns of a few tokens.

- `text`: the probability of a token given that the place looks at text at all. Absolute probabilities shrink as pictures grow (4,096 image
  keys beside 77 to 512 text keys), this share does not.
- `joint`: the plain probability among all keys.
- `output`: how alike the attention's outputs of place and token are (ConceptAttention, Helbling et al. 2025, arXiv 2502.04320).

Training takes `one_hot`: indicator channels in the one fused call, one per token and one for all text keys. Sampling takes `lse`: the host's own
attention is left as it is, bit by bit, and columns are formed beside it. No form ever holds scores of all places against all keys.
Letters: B batch, H heads, T keys (L of text, N of the image), P asked tokens, K columns of one, d channels of a head, e of a value.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BestiaryError
from .attention_maps import attend_with_marks, attention_columns
from .denoiser import AttentionMethod, ColumnForm
from .part_attention_patch import CACHED_SCORE_BYTES, SCORE_BYTES

LEAST_SHARE = 1e-30
"""Probability of all text together below which a place has no share of it: columns are 0 there, not 0 / 0."""


@dataclass(frozen=True)
class JointKeys:
    """Where text and image stand among the keys of joint attention."""

    text: int
    """L."""
    text_first: bool
    """Text before the image (Flux; every model in ComfyUI), or behind it (SD3 in diffusers)."""

    def text_rows(self, total: int) -> slice:
        """The text's among `total` = T rows."""
        return slice(0, self.text) if self.text_first else slice(total - self.text, total)

    def image_rows(self, total: int) -> slice:
        """The image's among `total` = T rows."""
        return slice(self.text, total) if self.text_first else slice(0, total - self.text)


def attend_jointly(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    columns: Tensor,
    keys: JointKeys,
    *,
    form: ColumnForm = "text",
    method: AttentionMethod = "one_hot",
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Fused joint attention, and where image places look.

    Args:
        q, k: `(B, H, T, d)`, after norms and rotary positions; v: `(B, H, T, e)`.
        columns: `(B, P, K)` long, counted in the text alone, 0..L-1; -1 adds nothing.
        keys: where text and image stand.
        form: see the module's first lines.
        method: "one_hot" needs one call (training); "lse" leaves the output bit-identical to plain fused attention (sampling). The form
            "output" does so with either.
        scale: factor of the scores; None is 1 / sqrt(d).

    Returns:
        Output `(B, H, T, e)`, and columns `(B, N, P)` float32 over heads, differentiable, 0 for absent tokens.

    Raises:
        BestiaryError: there are no image keys, or form or method has another name.
    """
    total, values = k.shape[2], v.shape[-1]
    _check(form, method, keys, total)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if form == "output" or method == "lse":
        output = functional.scaled_dot_product_attention(q, k, v, scale=factor)  # (B, H, T, e)
        if form == "output":
            return output, output_similarity(output, columns, keys)
        beside = text_shares if form == "text" else joint_probabilities
        return output, beside(q, k, columns, keys, factor)
    joined = attend_with_marks(q, k, v, _marks(columns, keys, v, total, whole_text=form == "text"), factor)
    marked = joined[:, :, keys.image_rows(total), values:].float()  # (B, H, N, P), with the text's own channel P + 1
    if form == "text":
        # per head: a head that hardly looks at text says as much about where as one that looks at nothing else
        marked = marked[..., :-1] / marked[..., -1:].clamp_min(LEAST_SHARE)
    return joined[..., :values], marked.mean(1)


def text_shares(q: Tensor, k: Tensor, columns: Tensor, keys: JointKeys, scale: float) -> Tensor:
    """The form `text` beside the host's attention: a softmax over text keys alone, a few heads at a time.

    Args:
        q, k: `(B, H, T, d)`.
        columns: `(B, P, K)` long, counted in the text.
        keys: where text and image stand.
        scale: factor of the scores.

    Returns:
        `(B, N, P)` float32.
    """
    total = k.shape[2]
    return shares_among(q[:, :, keys.image_rows(total)], k[:, :, keys.text_rows(total)], columns, scale)


def shares_among(
    q: Tensor, k: Tensor, columns: Tensor, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """Probabilities of tokens among text keys alone, a few heads at a time, whatever else the places look at.

    Args:
        q: `(B, H, N, d)` of image places, k: `(B, H, L, d)` of text.
        columns: `(B, P, K)` long, counted in the text.
        scale: factor of the scores; None is 1 / sqrt(d).
        mask: numbers that the attention adds to these scores, `(B or 1, H or 1, N or 1, L)`.

    Returns:
        `(B, N, P)` float32.
    """
    batch, heads = q.shape[:2]
    limit = CACHED_SCORE_BYTES if q.device.type == "cpu" else SCORE_BYTES
    at_once = max(1, limit // (4 * batch * q.shape[2] * k.shape[2]))
    shares = q.new_zeros((batch, q.shape[2], columns.shape[1]), dtype=torch.float32)
    for first in range(0, heads, at_once):
        some = slice(first, first + at_once)
        some_mask = mask if mask is None or mask.shape[1] == 1 else mask[:, some]
        # scores in float32: in half precision they are rounded before the softmax
        some_q, some_k = (part[:, some].float() for part in (q, k))
        shares = shares + attention_columns(some_q, some_k, columns, scale, some_mask) * (some_q.shape[1] / heads)
    return shares


def joint_probabilities(q: Tensor, k: Tensor, columns: Tensor, keys: JointKeys, scale: float) -> Tensor:
    """The form `joint` beside the host's attention: a second fused call of the image's rows, whose values are indicators.

    Arguments and shapes as in `text_shares`; `(B, N, P)` float32.
    """
    total = k.shape[2]
    marks = _marks(columns, keys, k, total, whole_text=False)  # (B, T, P)
    return attend_with_marks(q[:, :, keys.image_rows(total)], k, k[..., :0], marks, scale).float().mean(1)


def output_similarity(output: Tensor, columns: Tensor, keys: JointKeys) -> Tensor:
    """The form `output`: which of the asked tokens a place's attention output is most like.

    It says which one among those asked: ask for a word of the surroundings, such as background, beside the parts.

    Args:
        output: `(B, H, T, e)` of the attention.
        columns: `(B, P, K)` long, counted in the text; a token of several columns is their mean.
        keys: where text and image stand.

    Returns:
        `(B, N, P)` float32, summing to 1 over the tokens that are there.
    """
    total = output.shape[2]
    rows = output.transpose(1, 2).flatten(2).float()  # (B, T, H * e)
    image, text = rows[:, keys.image_rows(total)], rows[:, keys.text_rows(total)]  # (B, N, H * e) and (B, L, H * e)
    held = columns >= 0  # (B, P, K)
    index = columns.clamp(min=0).flatten(1).unsqueeze(-1).expand(-1, -1, text.shape[-1])  # (B, P * K, H * e)
    chosen = text.gather(1, index).unflatten(1, columns.shape[1:]) * held.unsqueeze(-1)  # (B, P, K, H * e)
    tokens = chosen.sum(2) / held.sum(2, keepdim=True).clamp(min=1)  # (B, P, H * e)
    there = held.any(-1).unsqueeze(1)  # (B, 1, P)
    # a finite score, not minus infinity: where no token is there, the softmax would have nothing to divide by
    scores = (image @ tokens.transpose(-1, -2)).masked_fill(~there, torch.finfo(torch.float32).min)  # (B, N, P)
    return scores.softmax(-1) * there


def _marks(columns: Tensor, keys: JointKeys, like: Tensor, total: int, *, whole_text: bool) -> Tensor:
    """Indicators `(B, T, P)` of the keys of each token, with one more channel for all text if asked, in the dtype of `like`."""
    places = torch.arange(keys.text, device=like.device).view(1, -1, 1, 1)
    marks = (columns.unsqueeze(1) == places).any(-1)  # (B, L, P)
    if whole_text:
        marks = functional.pad(marks, (0, 1), value=True)  # (B, L, P + 1)
    rows = keys.text_rows(total)
    return functional.pad(marks.to(like.dtype), (0, 0, rows.start, total - rows.stop))  # (B, T, P or P + 1)


def _check(form: str, method: str, keys: JointKeys, total: int) -> None:
    if form not in ("text", "joint", "output"):
        raise BestiaryError(f"unknown form of columns {form!r}: choose text, joint or output")
    if method not in ("lse", "one_hot"):
        raise BestiaryError(f"unknown attention method {method!r}: choose lse or one_hot")
    if not 0 < keys.text < total:
        raise BestiaryError(
            f"{keys.text} text keys of {total} in all leave none for the image: this attention is not joint, read another layer"
        )
