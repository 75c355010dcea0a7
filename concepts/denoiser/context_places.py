"""Where learned vectors stand in the context: every text encoder lays a prompt out on its own, and their states join beside or behind each other.

A vector has a place in each encoder and as many columns of the context as these make: one in Stable Diffusion 1.5, 2 and XL, whose encoders
agree; two in SD3, one among CLIP's positions and one among T5's behind them; one in Flux, where CLIP is pooled only.
Letters: B prompts, P learned vectors of a prompt, K columns of one.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from .backbone import Backbone
from .denoiser import PromptLayout


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
