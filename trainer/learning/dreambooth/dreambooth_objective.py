"""The DreamBooth objective over any denoiser: the loss of the thing's pictures, and of its class.

Paper: arXiv 2208.12242, equation 2: the mean over the thing's pictures plus a weight times the mean over the class's.
Letters: R rows of a batch, V vectors of the identifier, W width of a text encoder, C latent channels, h and w the latent grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ....concepts.denoiser.denoiser import Conditioning, Denoiser, PromptLayout, reordered
from ..denoiser.forward_process import Noised, add_noise
from ..denoiser.low_picture import GUIDE, LEVEL
from ..run.fit import LossReport

INSTANCE, CLASS, EMPTY = 0, 1, 2
"""Numbers of the three sentences."""


@dataclass(frozen=True)
class DreamBoothBatch:
    """Training pictures with everything drawn at random already drawn."""

    names: tuple[str, ...]
    """File names."""
    moments: Tensor
    """`(R, 2, C, h, w)`: posterior mean and log-variance, unscaled."""
    noise: Tensor
    """`(R, 2, C, h, w)` standard normal: the posterior draw and the diffusion noise."""
    times: Tensor
    """`(R,)` float32 in (0, 1]."""
    texts: tuple[int, ...]
    """Sentence of every row: INSTANCE, CLASS or EMPTY."""
    prompts: tuple[PromptLayout, ...]
    """The three sentences; the first has places for the identifier's vectors."""
    of_class: Tensor
    """`(R,)` bool: pictures of the class."""
    masks: Tensor | None = None
    """`(R, 1, h, w)` 0..1: what is learned from; None is everything."""
    sizes: Tensor | None = None
    """`(R, 6)` pixels: whole picture, crop corner and target, for backbones that are conditioned on them."""

    guide: Tensor | None = None
    """`(R, 3, h, w)` in -1..1: noised low pictures at full size, for a model that enlarges; None elsewhere."""
    levels: Tensor | None = None
    """`(R,)` long: their noise levels."""

    def to(self, device: torch.device) -> "DreamBoothBatch":
        """The batch with its tensors, (R, ...) each, on `device`."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("moments", "noise", "times", "of_class", "masks", "sizes", "guide", "levels")
            if getattr(self, name) is not None
        }
        return replace(self, **moved)


class DreamBoothObjective(nn.Module):
    """Owns every learned parameter: the adapters, and the vectors of a learned identifier."""

    def __init__(
        self,
        denoiser: Denoiser,
        adapters: Mapping[str, nn.Parameter],
        vectors: Tensor | None = None,
        *,
        prior_weight: float = 1.0,
        prior_of_model: bool = False,
        min_snr: float = 0.0,
    ) -> None:
        """Learn `adapters` through `denoiser`.

        Args:
            denoiser: frozen but for its adapters.
            adapters: the denoiser's trainable parameters by name.
            vectors: `(V, D)` that a learned identifier starts from, all text encoders side by side; None is a plain word.
            prior_weight: factor of the prior loss.
            prior_of_model: hold the class prompt to the untrained model's own predictions, in place of pictures of the class.
            min_snr: gamma of the min-SNR weights, 0 for none.
        """
        super().__init__()
        self._denoiser = (denoiser,)  # in a tuple, so that its frozen weights are not taken for ours
        self._adapter_names = tuple(adapters)
        self.adapters = nn.ParameterList(adapters.values())
        self.vectors = None if vectors is None else nn.Parameter(vectors.clone().float())
        self.prior_weight, self.prior_of_model, self.min_snr = prior_weight, prior_of_model, min_snr

    @property
    def denoiser(self) -> Denoiser:
        """The model that is adapted."""
        return self._denoiser[0]

    def named_adapters(self) -> dict[str, nn.Parameter]:
        """The adapters' parameters, down `(r, I)` and up `(O, r)`, under the denoiser's names."""
        return dict(zip(self._adapter_names, self.adapters, strict=True))

    def forward(self, batch: DreamBoothBatch) -> LossReport:
        """`mean over rows of the thing + weight * mean over rows of the class`, in float32."""
        noised = add_noise(self.denoiser, batch.moments, batch.noise, batch.times)
        prediction = self._predict(noised, self.encode(batch.prompts, batch.texts), batch)
        losses = noised.loss(prediction, weights=batch.masks, min_snr=self.min_snr)  # (R,)
        # rows by number: where memory is estimated with fake tensors, no shape may depend on what a tensor holds
        of_class = batch.of_class.tolist()
        instance = losses[[row for row, other in enumerate(of_class) if not other]].mean()
        total, curves = instance, {"instance_loss": instance.detach()}
        if self.prior_of_model:
            prior = self._model_prior(noised, batch)
        elif any(of_class):
            prior = losses[[row for row, other in enumerate(of_class) if other]].mean()
        else:
            return LossReport(total, {**curves, "loss": total.detach()})
        total = total + self.prior_weight * prior
        return LossReport(total, {**curves, "prior_loss": prior.detach(), "loss": total.detach()})

    def encode(self, prompts: tuple[PromptLayout, ...], texts: tuple[int, ...]) -> Conditioning:
        """Sentences `(R, T, E)` of rows; every distinct one is encoded once."""
        distinct = sorted(set(texts))
        count = 0 if self.vectors is None else len(self.vectors)
        # sentences without the identifier have no place for any of its vectors
        laid = [prompts[n] if n == INSTANCE else reordered(prompts[n], [], count) for n in distinct]
        vectors = None
        if self.vectors is not None:
            every = self.vectors.expand(len(laid), -1, -1)  # (U, V, D)
            vectors = self.denoiser.backbone.split_vector(every)
        encoded = self.denoiser.text.encode(laid, vectors)
        rows = [distinct.index(number) for number in texts]
        return encoded.rows(torch.tensor(rows, device=encoded.context.device))

    def _predict(self, noised: Noised, text: Conditioning, batch: DreamBoothBatch) -> Tensor:
        conditioned = text.with_extras(sizes=batch.sizes, **{GUIDE: batch.guide, LEVEL: batch.levels})
        return self.denoiser.network.predict(noised.x, noised.times, conditioned).prediction

    def _model_prior(self, noised: Noised, batch: DreamBoothBatch) -> Tensor:
        """How far the class prompt has moved from what the untrained model predicts, for the same noised pictures `(B, C, h, w)`."""
        text = self.encode(batch.prompts, (CLASS,) * len(batch.texts))
        with torch.no_grad(), self.denoiser.network.adapters.switched_off():
            before = self._predict(noised, text, batch)
        after = self._predict(noised, text, batch)
        return (after.float() - before.float()).square().mean()
