"""ProSpect's objective over any denoiser: the noise loss through the sampled stages' vectors.

Paper: arXiv 2305.16225; reference: zyxElsa/ProSpect @ 31314f1, ldm/models/diffusion/ddpm.py. Where that encodes all stages every
step and uses one, only the stages of the batch are encoded here, each prompt once. Letters: B pictures, S stages, U distinct
prompts, V vectors of a stage, D width, C latent channels, h and w the latent grid.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ....concepts.denoiser.denoiser import Conditioning, Denoiser, PromptLayout, PromptPiece
from ....concepts.spectrum.stage_table import ProspectNetwork, StageTable
from ..denoiser.forward_process import add_noise
from ..run.fit import LossReport


def curve_labels(stages: int) -> dict[str, tuple[str, ...]]:
    """What the entries of the curves belong to: stages, counted from 1."""
    return {"stage_loss": tuple(f"stage {number}" for number in range(1, stages + 1))}


@dataclass(frozen=True)
class SpectrumBatch:
    """Training pictures with everything drawn at random already drawn."""

    names: tuple[str, ...]
    """File names."""
    moments: Tensor
    """`(B, 2, C, h, w)`: posterior mean and log-variance, unscaled."""
    noise: Tensor
    """`(B, 2, C, h, w)` standard normal: the posterior draw and the diffusion noise."""
    times: Tensor
    """`(B,)` float32 in (0, 1]."""
    stages: tuple[int, ...]
    """Stage of every time, counted from 0."""
    templates: tuple[int, ...]
    """Number of the sentence of every picture."""
    prompts: tuple[PromptLayout, ...]
    """The sentences, with places for the vectors of a stage."""
    masks: Tensor | None = None
    """`(B, 1, h, w)` 0..1: what is learned from; None is everything."""
    sizes: Tensor | None = None
    """`(B, 6)` pixels: whole picture, crop corner and target, for backbones that are told them."""

    def to(self, device: torch.device) -> "SpectrumBatch":
        """The batch with its tensors, (B, ...) each, on `device`."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("moments", "noise", "times", "masks", "sizes")
            if getattr(self, name) is not None
        }
        return replace(self, **moved)


class SpectrumObjective(nn.Module):
    """Owns every learned parameter: the vectors of all stages, or the network that gives them."""

    def __init__(
        self,
        denoiser: Denoiser,
        table: StageTable | ProspectNetwork,
        *,
        stages: int,
        min_snr: float = 0.0,
    ) -> None:
        """Learn `table` of so many stages through the frozen `denoiser`; `min_snr` is the gamma of the weights, 0 for none."""
        super().__init__()
        self._denoiser = (denoiser,)  # in a tuple, so that its frozen weights are not taken for ours
        self.table = table
        self.stages, self.min_snr = stages, min_snr

    @property
    def denoiser(self) -> Denoiser:
        """The model that is learned through."""
        return self._denoiser[0]

    def forward(self, batch: SpectrumBatch) -> LossReport:
        """Loss of one batch: the mean over its pictures."""
        noised = add_noise(self.denoiser, batch.moments, batch.noise, batch.times)
        text = self.encode(batch).with_extras(sizes=batch.sizes)
        output = self.denoiser.network.predict(noised.x, batch.times, text)
        loss = noised.loss(output.prediction, weights=batch.masks, min_snr=self.min_snr)  # (B,)
        total = loss.mean()
        # one column per stage, so that each curve averages its own pictures
        by_stage = torch.full((len(batch.stages), self.stages), torch.nan, device=loss.device)  # (B, S)
        by_stage[torch.arange(len(batch.stages)), torch.tensor(batch.stages)] = loss.detach()
        return LossReport(total, {"loss": total.detach(), "stage_loss": by_stage})

    def encode(self, batch: SpectrumBatch) -> Conditioning:
        """The conditioning `(B, T, E)`; every distinct (sentence, stage) is encoded once, all of them as one batch."""
        wanted = list(zip(batch.templates, batch.stages, strict=True))
        distinct = sorted(set(wanted))
        vectors = self.table.stages_of([stage for _, stage in distinct])  # (U, V, D)
        prompts = [batch.prompts[wanted.index(pair)] for pair in distinct]
        text = self.denoiser.text.encode(prompts, self.denoiser.backbone.split_vector(vectors))
        return text.rows(torch.tensor([distinct.index(pair) for pair in wanted], device=text.context.device))  # (B,)


def pieces_of(template: str, vectors: int) -> list[PromptPiece]:
    """A sentence with learned vectors where its `{}` stands."""
    before, after = template.split("{}")
    texts = [PromptPiece(before), *PromptPiece.word(vectors), PromptPiece(after)]
    return [piece for piece in texts if piece.text != ""]
