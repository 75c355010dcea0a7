"""ProSpect's objective, written once against the Denoiser protocol: the noise loss through the sampled stages' vectors.

Paper: arXiv 2305.16225; reference: zyxElsa/ProSpect @ 31314f1, ldm/models/diffusion/ddpm.py. Where that encodes all stages every
step and uses one, only the stages of the batch are encoded here, each prompt once. Letters: B pictures, S stages, U distinct
prompts, V vectors of a stage, D width, C latent channels, h and w the latent grid.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ....concepts.denoiser.denoiser import Denoiser, PromptPiece, PromptTokens, TextConditioning
from ....concepts.denoiser.min_snr import min_snr_weights
from ....concepts.spectrum.stage_table import ProspectNetwork, StageTable
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
    timesteps: Tensor
    """`(B,)` long."""
    stages: tuple[int, ...]
    """Stage of every timestep, counted from 0."""
    templates: tuple[int, ...]
    """Number of the sentence of every picture."""
    prompts: tuple[PromptTokens, ...]
    """The sentences, with places for the vectors of a stage."""
    masks: Tensor | None = None
    """`(B, 1, h, w)` 0..1: what is learned from; None is everything."""
    sizes: Tensor | None = None
    """`(B, 6)` pixels: whole picture, crop corner and target, for backbones that are told them."""

    def to(self, device: torch.device) -> "SpectrumBatch":
        """The batch with its tensors, (B, ...) each, on `device`."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("moments", "noise", "timesteps", "masks", "sizes")
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
        denoiser, schedule = self.denoiser, self.denoiser.schedule
        # the forward process: posterior draw, scaling, noise
        mean, log_variance = batch.moments.float().unbind(1)  # (B, C, h, w) each
        posterior_noise, noise = batch.noise.unbind(1)
        latents = denoiser.scale_latents(mean + (0.5 * log_variance).exp() * posterior_noise)
        noised = schedule.add_noise(latents, noise, batch.timesteps)
        text = replace(self._told(batch), sizes=batch.sizes)
        prediction = denoiser.predict(noised, batch.timesteps, text).prediction
        loss = self._noise_loss(prediction, schedule.target(latents, noise, batch.timesteps), batch)  # (B,)
        total = loss.mean()
        # one column per stage, so that each curve averages its own pictures
        by_stage = torch.full((len(batch.stages), self.stages), torch.nan, device=loss.device)  # (B, S)
        by_stage[torch.arange(len(batch.stages)), torch.tensor(batch.stages)] = loss.detach()
        return LossReport(total, {"loss": total.detach(), "stage_loss": by_stage})

    def _told(self, batch: SpectrumBatch) -> TextConditioning:
        """The conditioning `(B, L, E)`; every distinct (sentence, stage) is encoded once, all of them as one batch."""
        wanted = list(zip(batch.templates, batch.stages, strict=True))
        distinct = sorted(set(wanted))
        vectors = self.table.stages_of([stage for _, stage in distinct])  # (U, V, D)
        prompts = [batch.prompts[wanted.index(pair)] for pair in distinct]
        text = self.denoiser.encode_prompts(prompts, vectors)
        rows = torch.tensor([distinct.index(pair) for pair in wanted], device=text.context.device)  # (B,)
        return TextConditioning(text.context[rows], None if text.pooled is None else text.pooled[rows])

    def _noise_loss(self, prediction: Tensor, target: Tensor, batch: SpectrumBatch) -> Tensor:
        """Mean squared error `(B,)` of every picture, where its mask is, weighted by noise level if asked."""
        error = (prediction.float() - target).square()  # (B, C, h, w)
        if batch.masks is not None:
            # weights average to 1 within a picture, so that small things do not weaken its loss
            error = error * batch.masks / batch.masks.mean((1, 2, 3), keepdim=True).clamp_min(1e-3)
        loss = error.mean((1, 2, 3))  # (B,)
        if not self.min_snr:
            return loss
        schedule = self.denoiser.schedule
        return loss * min_snr_weights(schedule.snr(batch.timesteps), self.min_snr, schedule.prediction)


def pieces_of(template: str, vectors: int) -> list[PromptPiece]:
    """A sentence with learned vectors where its `{}` stands."""
    before, after = template.split("{}")
    texts = [PromptPiece(before), *PromptPiece.word(vectors), PromptPiece(after)]
    return [piece for piece in texts if piece.text != ""]
