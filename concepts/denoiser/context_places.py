"""Where learned vectors stand in the context: every text encoder lays a prompt out on its own, and their states join beside or behind each other.

A vector has a place in each encoder and as many columns of the context as these make: one in Stable Diffusion 1.5, 2 and XL, whose encoders
agree; two in SD3, one among CLIP's positions and one among T5's behind them; one in Flux, where CLIP is pooled only.
Letters: B prompts, P learned vectors of a prompt, K columns of one, C chunks of L positions, W width of an encoder, T positions and E width of the
context.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .backbone import Backbone
from .denoiser import PromptLayout
from .token_insertion import insert_vectors


def encoder_starts(backbone: Backbone, lengths: Mapping[str, int]) -> dict[str, int]:
    """Where the first state of every encoder stands in the context; encoders that are pooled only, or missing, have none.

    Args:
        backbone: how encoders stand beside and behind each other.
        lengths: states of each encoder in the context, all chunks together, without those of encoders that a model lacks; encoders beside each
            other take as much room as the longest.
    """
    starts: dict[str, int] = {}
    first = 0
    for group in backbone.context_groups:
        held = [spec.name for spec in group if spec.name in lengths]
        starts |= dict.fromkeys(held, first)
        first += max((lengths[name] for name in held), default=0)
    return starts


def context_columns(backbone: Backbone, prompts: Sequence[PromptLayout], count: int) -> Tensor:
    """Columns of learned vectors in the context of a batch of prompts, whose layouts have the same lengths.

    Args:
        backbone: see `encoder_starts`.
        prompts: B layouts.
        count: P, vectors in all; a prompt may have places for fewer.

    Returns:
        `(B, P, K)` long, -1 where absent; encoders that agree share a column.
    """
    starts = encoder_starts(backbone, {name: own.ids.numel() for name, own in prompts[0].items()})
    # in numpy, from lists: where memory is estimated with fake tensors, nothing may depend on a tensor's values
    found: list[np.ndarray] = []
    for name, start in starts.items():
        own = np.full((len(prompts), count), -1, dtype=np.int64)  # (B, P)
        for row, prompt in zip(own, prompts, strict=True):
            slots = np.array(prompt[name].slots.tolist(), dtype=np.int64)
            row[: len(slots)] = np.where(slots < 0, -1, slots + start)
        # beside another encoder the same position is the same column
        for other in found:
            own[own == other] = -1
        if not found or (own >= 0).any():
            found.append(own)
    return torch.from_numpy(np.stack(found, axis=-1))  # (B, P, K)


def insert_in_context(
    backbone: Backbone,
    prompts: Sequence[PromptLayout],
    context: Tensor,
    vectors: Mapping[str, Tensor],
    empty: Tensor | None = None,
) -> Tensor:
    """Learned vectors in the place of what the encoders say at their columns, instead of before the encoders.

    Args:
        backbone: how encoders stand beside and behind each other.
        prompts: B layouts of equal lengths.
        context: what the encoders say of them `(B, T, E)`, fillers standing for vectors.
        vectors: encoder -> `(B, P, W)`; those of encoders that are pooled only have no place.
        empty: the context of the empty prompt `(1, T, E)`, from which prompt weights lead away; None where all weights are 1.

    Returns:
        `(B, T, E)`, differentiable in the vectors.
    """
    starts = encoder_starts(backbone, {name: own.ids.numel() for name, own in prompts[0].items()})
    for group in backbone.context_groups:
        first = 0
        for spec in group:
            channels = slice(first, first + spec.width)
            first += spec.width
            if spec.name not in starts:
                continue
            layouts = [prompt[spec.name] for prompt in prompts]
            count = vectors[spec.name].shape[1]
            slots = torch.stack([F.pad(own.slots, (0, count - len(own.slots)), value=-1) for own in layouts])
            columns = torch.where(slots < 0, -1, slots + starts[spec.name]).to(context.device)  # (B, P)
            rows = vectors[spec.name].to(context)  # (B, P, W)
            if empty is not None:
                weights = torch.stack([own.weights.flatten() for own in layouts])  # (B, C * L)
                weights = weights.gather(1, slots.clamp_min(0)).unsqueeze(-1).to(context)  # (B, P, 1)
                neutral = empty[0, columns.clamp_min(0)][..., channels]  # (B, P, W)
                rows = torch.where(weights == 1, rows, torch.lerp(neutral, rows, weights))
            inserted = insert_vectors(context[..., channels], columns, rows)
            context = torch.cat([context[..., : channels.start], inserted, context[..., channels.stop :]], dim=-1)
    return context
