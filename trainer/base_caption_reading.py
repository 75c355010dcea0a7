"""An extra loss that teaches the text encoder which words of a caption belong to which part."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..demo.species import COLORS, PARTS, PATTERNS, SHAPES
from .base_model_parts import BaseModel

ATTRIBUTE_WORDS: tuple[str, ...] = (*COLORS, *PATTERNS, *(shape for part in PARTS for shape in SHAPES[part]))
"""Every word that can stand before a part's word."""


class ReadingLoss:
    """Cross-entropy of reading a part's attribute words off the text encoder's output at the part's own word.

    The words are read by their own input embeddings, so no weights are added. Left to the denoiser's loss alone, the
    encoder takes far longer to carry "red" from its own place to the "head" that it describes.
    """

    def __init__(self, model: BaseModel) -> None:
        vocabulary = model.tokenizer.get_vocab()
        self.embeddings = model.text_encoder.get_input_embeddings()
        device = self.embeddings.weight.device
        self.words = torch.tensor([vocabulary[word] for word in ATTRIBUTE_WORDS], device=device)
        self.parts = torch.tensor([vocabulary[part] for part in PARTS], device=device)
        self.number = torch.full((len(vocabulary),), -1, device=device)
        self.number[self.words] = torch.arange(len(ATTRIBUTE_WORDS), device=device)

    def targets(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) -> (B, L, words): 1 at a part's word for each of the up to three attributes right before it."""
        found = torch.zeros((*ids.shape, len(self.words)), device=ids.device)
        number = self.number[ids]  # (B, L), -1 for words that are no attribute
        unbroken = torch.isin(ids, self.parts)
        for distance in (1, 2, 3):
            before = number.roll(distance, dims=1)
            unbroken = unbroken & (before >= 0)
            found.scatter_add_(2, before.clamp_min(0)[..., None], unbroken[..., None].float())
        return found

    def __call__(self, context: Tensor, ids: Tensor) -> Tensor:
        """Text encoder output (B, L, D) and ids (B, L) -> scalar; 0 where no part is described."""
        targets = self.targets(ids)
        described = targets.sum(dim=-1) > 0  # (B, L)
        if not bool(described.any()):
            return context.sum() * 0
        shares = targets[described]  # (N, words)
        scores = context[described] @ self.embeddings.weight[self.words].T  # (N, words)
        return functional.cross_entropy(scores, shares / shares.sum(dim=-1, keepdim=True))
