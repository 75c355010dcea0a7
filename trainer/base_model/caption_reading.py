"""Auxiliary loss and merged words that train the text encoder to bind attribute words to their part.

Captions become slots `(B, L, 4)`: the ids whose embeddings are summed at each position, padded with -1. In some
captions the attribute words of a part are merged into the part's own slot, so that the encoder also understands a
single vector that describes a whole part, as a learned token does. Letters: B captions, L positions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ...demo.species import COLORS, PARTS, PATTERNS, SHAPES
from .model_parts import BaseModel

ATTRIBUTE_WORDS: tuple[str, ...] = (*COLORS, *PATTERNS, *(shape for part in PARTS for shape in SHAPES[part]))
"""All words that can precede a part's word."""


SLOT = 4
"""Words per slot: colour, pattern, shape and the part's own word."""


def slot_embeddings(table: Tensor, slots: Tensor) -> Tensor:
    """Sum of the embeddings at every position: table (V, D), slots (B, L, 4) -> (B, L, D)."""
    rows = table[slots.clamp_min(0)]  # (B, L, 4, D)
    return (rows * (slots >= 0).unsqueeze(-1)).sum(dim=2)


def _merge_row(ids: list[int], attribute: list[bool], is_part: list[bool]) -> list[list[int]]:
    """Slots of one caption; attribute words move into the slot of the part's word after them, other words stay."""
    slots: list[list[int]] = []
    waiting: list[int] = []
    for place, word in enumerate(ids):
        if attribute[place] and len(waiting) < SLOT - 1:
            # hold attributes until the part's word; any other word releases them as slots of their own
            waiting.append(word)
            continue
        slots += [[word, *waiting]] if is_part[place] else [*([one] for one in waiting), [word]]
        waiting = []
    slots += [[one] for one in waiting]
    slots += [[ids[-1]]] * (len(ids) - len(slots))  # pad back to the length before merging
    return [[*slot, *[-1] * (SLOT - len(slot))] for slot in slots]


class ReadingLoss:
    """Cross-entropy of predicting a part's attribute words from the text encoder's output at the part's own word.

    The input embeddings serve as the classifier, so no weights are added. With the denoiser's loss alone, the encoder
    takes far longer to move "red" from its own position to the "head" that it describes.
    """

    def __init__(self, model: BaseModel) -> None:
        """`model` provides the word embeddings `(V, D)`, which stay trainable in the text encoder."""
        vocabulary = model.tokenizer.get_vocab()
        # ids of attribute words (words,) and of part words, and the inverse map from an id (V,) to a word's number
        self.embeddings = model.word_embeddings
        device = self.embeddings.weight.device
        self.words = torch.tensor([vocabulary[word] for word in ATTRIBUTE_WORDS], device=device)
        self.parts = torch.tensor([vocabulary[part] for part in PARTS], device=device)
        self.number = torch.full((len(vocabulary),), -1, device=device)
        self.number[self.words] = torch.arange(len(ATTRIBUTE_WORDS), device=device)

    def merge(self, ids: Tensor, merged: Tensor) -> Tensor:
        """Token ids (B, L) -> slots (B, L, 4); in rows with `merged` (B,), attributes move into their part's slot."""
        attribute = (self.number.cpu()[ids] >= 0) & merged[:, None]  # (B, L)
        ends = torch.isin(ids, self.parts.cpu())  # (B, L)
        rows = [_merge_row(*facts) for facts in zip(ids.tolist(), attribute.tolist(), ends.tolist(), strict=True)]
        return torch.tensor(rows)

    def targets(self, slots: Tensor) -> Tensor:
        """Slots (B, L, 4) -> (B, L, words): 1 at a part's word for each of the up to three attributes merged or before it."""
        ids = slots[..., 0]  # (B, L)
        found = torch.zeros((*ids.shape, len(self.words)), device=ids.device)
        # attributes merged into the slot of the part's own word
        inside = torch.where(slots[..., 1:] >= 0, self.number[slots[..., 1:].clamp_min(0)], -1)  # (B, L, 3)
        found.scatter_add_(2, inside.clamp_min(0), (inside >= 0).float())
        # attributes before a part's word, with no other word between them
        number = self.number[ids]  # (B, L), -1 for words that are not attributes
        unbroken = torch.isin(ids, self.parts) & (inside < 0).all(dim=-1)
        for distance in (1, 2, 3):
            before = number.roll(distance, dims=1)
            unbroken = unbroken & (before >= 0)
            found.scatter_add_(2, before.clamp_min(0)[..., None], unbroken[..., None].float())
        return found

    def __call__(self, context: Tensor, slots: Tensor) -> Tensor:
        """Text encoder output (B, L, D) and slots (B, L, 4) -> scalar; 0 where no part is described."""
        targets = self.targets(slots)
        described = targets.sum(dim=-1) > 0  # (B, L)
        if not bool(described.any()):
            return context.sum() * 0
        # target distribution over words: uniform over the attributes of the part
        shares = targets[described]  # (N, words)
        scores = context[described] @ self.embeddings.weight[self.words].T  # (N, words)
        return functional.cross_entropy(scores, shares / shares.sum(dim=-1, keepdim=True))
