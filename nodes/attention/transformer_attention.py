"""Attention of diffusion transformers while sampling: which rows are places of the picture, what they look at, and regions.

The host's own attention is always called. Columns are formed beside it, from the scores of image places and text alone; regions enter it as
channels of queries and keys, so that no mask over all pairs of tokens is made.
Letters: B images, R rows of a batch, H heads, S queries, T keys, K positions of the context, N image places, P parts, M regions, d channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...concepts.denoiser.bias_channels import BiasedAttention, with_biases
from ...concepts.denoiser.joint_columns import shares_among
from ...concepts.denoiser.part_attention_patch import full_mask, token_places

if TYPE_CHECKING:
    from .attention_sampling import ModelEvaluation, PromptEntry
    from .transformer_families import Block, Transformer

EVALUATION_KEY = "bestiary_evaluation"
"""The `ModelEvaluation` of a call, in its options."""
BLOCK_KEY = "bestiary_block"
"""Name of the block of the next attention; empty for one that was already seen to."""


@dataclass(frozen=True)
class BlockPatch:
    """Patch around a block that tells its attention the block's name; the block itself, or another pack's patch of it, does the rest."""

    block: Block
    previous: Callable[[dict, dict], dict] | None
    """Another pack's patch of this block."""

    def __call__(self, args: dict, extra: dict) -> dict:
        """Run the block with its name in the options of the call."""
        options = args["transformer_options"]
        evaluation = options.get(EVALUATION_KEY)
        # another pack may have put its patch between two of ours
        if evaluation is not None and options.get(BLOCK_KEY) != self.block:
            evaluation.sampling.count(marked=evaluation.sampling.uses(self.block))
            args = {**args, "transformer_options": {**options, BLOCK_KEY: self.block}}
        return extra["original_block"](args) if self.previous is None else self.previous(args, extra)

    def __deepcopy__(self, memo: dict) -> BlockPatch:
        """Returns itself: it is immutable, and options are cloned by deep copies."""
        return self


@dataclass(frozen=True)
class AttentionSite:
    """Where image and text stand in an attention, and which rows belong to which prompt."""

    rows: list[tuple[slice, PromptEntry]]
    size: tuple[int, int]
    """Height and width of the picture in tokens, N = height * width."""
    image: slice
    """The N image places among the queries."""
    text: slice
    """Text among the keys."""


def block_of_attention(transformer: Transformer | None, options: dict) -> Block | None:
    """Name of the block of an attention; None if it is of no block, or was seen to already."""
    named = options.get(BLOCK_KEY)
    if named is not None or transformer is None or transformer.family.named_by == "patch":
        return named or None
    number = options.get("block_index")
    kind = transformer.depths[0][0]
    return None if number is None else (kind, number)


def attend_in_block(
    evaluation: ModelEvaluation,
    block: Block,
    attention: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    *args: Any,
    **kw: Any,
) -> Tensor:
    """Call the attention of a block with regions in its scores, and record the columns of the parts.

    Args:
        evaluation: the evaluation of the prompts that this is a part of.
        block: name of the block.
        attention: the attention to call, `(q, k, v, heads, mask=..., ...)`.
        q: `(R, S, H * d)` or `(R, S, H, d)`, or `(R, H, S, d)` with `skip_reshape`; k and v likewise with T.
        heads: H.
        args: the mask, if it was passed by position.
        kw: further arguments of ComfyUI; `transformer_options` identifies the rows.
    """
    options = kw["transformer_options"]
    # a second patch of ours in the chain must not act again
    kw["transformer_options"] = {**options, BLOCK_KEY: ()}
    if args:
        kw["mask"], args = args[0], args[1:]
    flat = not kw.get("skip_reshape")
    split_q, split_k, split_v = (_by_head(tensor, heads) if flat else tensor for tensor in (q, k, v))
    site = find_site(evaluation, options, split_q, split_k)
    if site is None:
        return attention(q, k, v, heads, *args, **kw)
    scale = kw.get("scale")
    biased = _biased(evaluation, block, site, (split_q, split_k, split_v), scale)
    if biased is None:
        _record(evaluation, block, site, (split_q, split_k), kw.get("mask"), scale)
        return attention(q, k, v, heads, *args, **kw)
    # the recorded columns must include the effect of regions
    _record(evaluation, block, site, (biased.q, biased.k), kw.get("mask"), scale)
    given = (tensor.transpose(1, 2).flatten(2) if flat else tensor for tensor in (biased.q, biased.k, biased.v))
    return biased.output(attention(*given, heads, *args, **kw))


def find_site(evaluation: ModelEvaluation, options: dict, q: Tensor, k: Tensor) -> AttentionSite | None:
    """Where image and text stand in an attention of q `(R, H, S, d)` to k `(R, H, T, d)`; None if it is not over both, or unknown."""
    entries = evaluation.entries_of(options)
    transformer = evaluation.sampling.transformer
    if not entries or transformer is None:
        return None
    area = entries[0].area
    size = transformer.grid(evaluation.latent if area is None else area[:2])
    places, tokens = size[0] * size[1], entries[0].tokens
    queries, keys = q.shape[2], k.shape[2]
    named_by = transformer.family.named_by
    if named_by != "cross" and queries == keys == transformer.padded(places):
        # the picture alone: the second attention of some SD3.5 blocks
        return None
    # where no patch announces an attention, it is announced here
    evaluation.sampling.count(attended=1, marked=named_by == "host")
    if named_by == "cross":
        first, is_known = 0, (queries, keys) == (places, tokens)
    else:
        # text stands first; behind the picture there may be others, such as reference pictures
        first = transformer.padded(tokens)
        is_known = queries == keys >= first + transformer.padded(places)
    is_known &= q.shape[0] == len(entries) * evaluation.images and k.shape[1] == q.shape[1]
    if not is_known or any(entry.tokens != tokens for entry in entries):
        evaluation.sampling.warn(
            f"Bestiary: attention of {q.shape[0]} rows and {queries} places to {keys} tokens, expected "
            f"{len(entries) * evaluation.images} rows, {places} places and {tokens} tokens of text: another patch changed "
            "the batch, or the latent is a video; part attention is skipped there"
        )
        return None
    rows = [
        (slice(i * evaluation.images, (i + 1) * evaluation.images), entry)
        for i, entry in enumerate(entries)
        if entry.spans
    ]
    return AttentionSite(rows, size, slice(first, first + places), slice(0, first or tokens))


def _by_head(tensor: Tensor, heads: int) -> Tensor:
    """`(R, S, H * d)`, or `(R, S, H, d)` as the values of Stable Diffusion 3 come -> `(R, H, S, d)`."""
    return (tensor if tensor.ndim == 4 else tensor.unflatten(-1, (heads, -1))).transpose(1, 2)


def _biased(
    evaluation: ModelEvaluation,
    block: Block,
    site: AttentionSite,
    tensors: tuple[Tensor, Tensor, Tensor],
    scale: float | None,
) -> BiasedAttention | None:
    """The attention of q, k and v by heads with the regions in it; None if they concern no row of this block."""
    transformer = evaluation.sampling.transformer
    if not evaluation.regions or transformer is None or block not in transformer.method_blocks:
        return None
    q, k, v = tensors
    shape = q.shape[0], site.size[0] * site.size[1], len(evaluation.regions)
    biases = q.new_zeros(shape, dtype=torch.float32)  # (R, N, M)
    marks = q.new_zeros((k.shape[0], k.shape[2], len(evaluation.regions)))  # (R, T, M)
    is_needed = False
    for some, entry in site.rows:
        for number, timed in enumerate(evaluation.regions):
            held = [place for span in entry.spans if timed.covers(span) for place in span.positions]
            if held:
                is_needed = True
                scores = evaluation.sampling.scores(timed.region, entry, site.size, evaluation.latent, biases)
                biases[some, :, number] = scores  # (B or 1, N)
                marks[some, held, number] = 1
    return with_biases(q, k, v, biases, marks, site.image, scale) if is_needed else None


def _record(
    evaluation: ModelEvaluation,
    block: Block,
    site: AttentionSite,
    tensors: tuple[Tensor, Tensor],
    mask: Tensor | None,
    scale: float | None,
) -> None:
    """Add the maps of an attention of q to k, by heads, to the records that read this block."""
    q, k = tensors
    for number, (record, recording) in enumerate(evaluation.sampling.recordings):
        if block not in evaluation.sampling.blocks_of(record):
            continue
        for some, entry in site.rows:
            positions = [entry.positions(part) for part in recording.parts]
            if not any(positions):
                continue
            columns = token_places(positions, entry.tokens, entry.tokens).to(q.device)  # (P, T)
            shares = shares_among(
                q[some, :, site.image],
                k[some, :, site.text],
                columns.expand(evaluation.images, -1, -1),
                scale,
                _mask_of(mask, some, site),
            )  # (B, N, P)
            sums = evaluation.sum_of(number, len(positions), q.device)
            held = [bool(places) for places in positions]
            sums.add(shares.transpose(1, 2), site.size, held, entry.area, evaluation.latent)


def _mask_of(mask: Tensor | None, some: slice, site: AttentionSite) -> Tensor | None:
    """The mask of an attention for the rows of one prompt, from image places to text: `(B, H, N, K)`, the first three 1 where it is the same for all."""
    if mask is None:
        return None
    mask = full_mask(mask)
    mask = mask if mask.shape[0] == 1 else mask[some]
    mask = mask if mask.shape[2] == 1 else mask[:, :, site.image]
    return mask[..., site.text]
