"""Staged prompts through the text encoder of any denoiser: distinct stages only, all in one batch.

Letters: N pictures, S stages, U distinct stage prompts, P learned vectors, E width of the conditioning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..denoiser.denoiser import Conditioning, Denoiser
from ..errors import BestiaryError
from .stage_bounds import StageBounds
from .staged_prompt import StagedPrompt, StagePrompt


@dataclass(frozen=True)
class StagedConditioning:
    """Text conditioning, stage by stage."""

    text: Conditioning
    """U rows: context `(U, T, E)`, pooled `(U, E_pooled)`."""
    rows: Tensor
    """`(N, S)` long: row of `text` for every picture and stage."""
    bounds: StageBounds

    def __len__(self) -> int:
        """N."""
        return len(self.rows)

    def at(self, time: float) -> Conditioning:
        """The conditioning at one time in (0, 1]: context `(N, T, E)`, pooled `(N, E_pooled)`."""
        stage = int(self.bounds.stage_at(time))
        return self.text.rows(self.rows[:, stage].to(self.text.context.device))

    def pictures(self, chosen: slice) -> "StagedConditioning":
        """Some of the pictures."""
        return replace(self, rows=self.rows[chosen])


def encode_staged(denoiser: Denoiser, prompts: Sequence[StagedPrompt]) -> StagedConditioning:
    """Encode N staged prompts: every distinct stage content once, all of them as one batch.

    Raises:
        BestiaryError: a prompt has different vectors per cross-attention layer, which need the patched model of the graph.
    """
    if any(prompt.layers for prompt in prompts):
        raise BestiaryError(
            "this prompt contains a spectrum with vectors per cross-attention layer (XTI, NeTI), which only the ComfyUI nodes "
            "can apply: use them, or import the file with one vector for all layers"
        )
    # stages as fine as any picture's prompt has them
    bounds = prompts[0].bounds
    for prompt in prompts[1:]:
        bounds = bounds.refined_by(prompt.bounds)
    # the same content in several pictures is encoded once too
    known: dict[tuple[object, ...], int] = {}
    contents: list[StagePrompt] = []
    rows = torch.zeros(len(prompts), bounds.stages, dtype=torch.long)  # (N, S)
    for number, prompt in enumerate(prompts):
        for stage, place in enumerate(prompt.bounds.stages_of_finer(bounds)):
            content = prompt.stages[place]
            if content.key not in known:
                known[content.key] = len(contents)
                contents.append(content)
            rows[number, stage] = known[content.key]
    return StagedConditioning(encode_stage_prompts(denoiser, contents), rows, bounds)


def encode_stage_prompts(denoiser: Denoiser, contents: Sequence[StagePrompt]) -> Conditioning:
    """Encode U stage prompts as one batch, `(U, T, E)`."""
    tokens = [denoiser.text.tokenize(content.pieces) for content in contents]
    most = max(len(content.vectors) for content in contents)
    if most == 0:
        return denoiser.text.encode(tokens, None)
    # prompts with fewer vectors are filled up with zeros; no position points there
    vectors = torch.zeros(len(contents), most, denoiser.backbone.vector_width)  # (U, P, D)
    for row, content in enumerate(contents):
        # prompts without vectors know no width
        if len(content.vectors):
            vectors[row, : len(content.vectors)] = content.vectors
    return denoiser.text.encode(tokens, denoiser.backbone.split_vector(vectors.to(denoiser.device)))
