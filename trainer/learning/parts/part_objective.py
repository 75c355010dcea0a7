"""The PartCraft objective over any denoiser: noise loss plus part attention loss.

Paper: arXiv 2407.04604; reference: kamwoh/partcraft @ dfe64e1, src/train_dreamcreature_sd.py. Letters: B pictures, M columns (parts, or
slots x parts in pictures of several things), D width of a learned vector, C latent channels, h and w the latent grid, g the
attention grid, whose height and width may differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....concepts.denoiser.attention_maps import average_maps
from ....concepts.denoiser.denoiser import (
    AttentionMethod,
    AttentionRequest,
    ColumnForm,
    Conditioning,
    Denoiser,
    NetworkOutput,
    PromptLayout,
)
from ....concepts.denoiser.part_attention_loss import FLOOR, attention_iou, per_part_attention_loss
from ....concepts.part_dictionary.token_projector import TokenProjector
from ..denoiser.forward_process import Noised, add_noise
from ..run.fit import LossReport

PART_CURVES = ("part_attention_loss", "attention_iou")
"""Curves with one entry per part."""


def curve_labels(part_names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What the entries of the curves belong to."""
    return {curve: tuple(part_names) for curve in PART_CURVES}


@dataclass(frozen=True)
class PartBatch:
    """Training pictures with everything drawn at random already drawn."""

    names: tuple[str, ...]
    """File names."""
    moments: Tensor
    """`(B, 2, C, h, w)`: posterior mean and log-variance, unscaled."""
    noise: Tensor
    """`(B, 2, C, h, w)` standard normal: the posterior draw and the diffusion noise."""
    times: Tensor
    """`(B,)` float32 in (0, 1]."""
    codes: Tensor
    """`(B, M)` long: kind of every part, -1 where it is not in the caption."""
    prompts: tuple[PromptLayout, ...]
    """Captions; slots `(M,)` in the order of the parts, -1 where a part is not in the caption."""
    masks: Tensor
    """`(B, M, g, g)` bool: region of every part."""
    sizes: Tensor | None = None
    """`(B, 6)` pixels: whole picture, crop corner and target, for backbones that are conditioned on them; None says no crop."""

    def to(self, device: torch.device) -> "PartBatch":
        """The batch with its tensors, (B, ...) each, on `device`; token ids move when they are embedded."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("moments", "noise", "times", "codes", "masks", "sizes")
            if getattr(self, name) is not None
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class AttentionLoss:
    """How the attention loss is taken."""

    weight: float
    form: Literal["bce", "softmax"] = "bce"
    layers: tuple[str, ...] | None = None
    columns: AttentionMethod = "lse"
    maps: ColumnForm = "text"


class PartObjective(nn.Module):
    """Owns every learned parameter (projector and adapters), so that wrapping it synchronises all of them."""

    def __init__(
        self,
        denoiser: Denoiser,
        projector: TokenProjector,
        adapters: Mapping[str, nn.Parameter],
        *,
        attention: AttentionLoss | None,
        min_snr: float = 5.0,
        region_weight: float = 0.0,
    ) -> None:
        """Learn `projector` and `adapters` through `denoiser`.

        Args:
            denoiser: frozen but for its adapters.
            projector: (part, kind) -> vector.
            adapters: the denoiser's trainable parameters by name.
            attention: None reads no attention maps at all.
            min_snr: gamma of the min-SNR weights, 0 for none.
            region_weight: share by which the noise loss leaves out what no part of the caption covers.
        """
        super().__init__()
        self._denoiser = (denoiser,)  # in a tuple, so that its frozen weights are not taken for ours
        self.projector = projector
        self._adapter_names = tuple(adapters)
        self.adapters = nn.ParameterList(adapters.values())
        self.attention = attention
        self.min_snr, self.region_weight = min_snr, region_weight

    @property
    def denoiser(self) -> Denoiser:
        """The model that is adapted."""
        return self._denoiser[0]

    def named_adapters(self) -> dict[str, nn.Parameter]:
        """The adapters' parameters, down `(r, I)` and up `(O, r)`, under the denoiser's names."""
        return dict(zip(self._adapter_names, self.adapters, strict=True))

    def forward(self, batch: PartBatch) -> LossReport:
        """Loss of one batch: mean over its pictures, so that equal shares of a batch average to the whole."""
        output, noised = self.predict(batch)
        noise_loss = noised.loss(output.prediction, weights=self._regions(batch), min_snr=self.min_snr)  # (B,)
        total = noise_loss.mean()
        curves = {"noise_loss": noise_loss.detach().mean()}
        # where tokens looked, against the regions of their parts
        if self.attention is not None:
            maps = average_maps(output.attention, (batch.masks.shape[-2], batch.masks.shape[-1]))  # (B, M, g, g)
            present = batch.codes >= 0  # (B, M)
            losses, areas = per_part_attention_loss(maps, batch.masks, present, self.attention.form)  # (B, M) each
            # averaged within every picture first: halves of a batch then average to the whole
            attention_loss = ((losses * areas).sum(1) / areas.sum(1).clamp(min=FLOOR)).mean()
            if self.attention.weight:
                total = total + self.attention.weight * attention_loss
            curves["attention_loss"] = attention_loss.detach()
            curves["part_attention_loss"] = self._by_part(losses.detach().masked_fill(~present, torch.nan))
            curves["attention_iou"] = self._by_part(attention_iou(maps, batch.masks, present))
        curves["loss"] = total.detach()
        return LossReport(total, curves)

    def predict(self, batch: PartBatch) -> tuple[NetworkOutput, Noised]:
        """The network's output for a batch, and what it was given `(B, C, h, w)`."""
        noised = add_noise(self.denoiser, batch.moments, batch.noise, batch.times)
        text = self.encode(batch).with_extras(sizes=batch.sizes)
        return self.denoiser.network.predict(noised.x, batch.times, text, self._request(text)), noised

    def encode(self, batch: PartBatch) -> Conditioning:
        """The captions `(B, T, E)` with the vectors of their parts."""
        # vectors of all parts; absent ones have no place in the prompt and are dropped there
        columns = torch.arange(batch.codes.shape[1], device=batch.codes.device)  # (S * M,)
        parts = (columns % self.projector.num_parts).expand_as(batch.codes)  # (B, S * M)
        vectors = self.projector(parts, batch.codes)  # (B, S * M, D)
        return self.denoiser.text.encode(batch.prompts, self.denoiser.backbone.split_vector(vectors))

    def _by_part(self, values: Tensor) -> Tensor:
        """Values of columns `(B, S*M)` as rows of parts `(B*S, M)`: things of one picture count like pictures."""
        return values.reshape(-1, self.projector.num_parts)

    def _request(self, text: Conditioning) -> AttentionRequest | None:
        """The attention to ask for at columns `(B, M, K)`; None where no loss reads it."""
        if self.attention is None or text.columns is None:
            return None
        return AttentionRequest(text.columns, self.attention.layers, self.attention.columns, self.attention.maps)

    def _regions(self, batch: PartBatch) -> Tensor | None:
        """How much each place counts in the noise loss `(B, 1, h, w)`; None where all count alike."""
        if not self.region_weight:
            return None
        captioned = (batch.masks & (batch.codes >= 0)[:, :, None, None]).any(1, keepdim=True)  # (B, 1, g, g)
        region = F.interpolate(captioned.float(), batch.noise.shape[-2:], mode="nearest-exact")  # (B, 1, h, w)
        return 1 - self.region_weight * (1 - region)
