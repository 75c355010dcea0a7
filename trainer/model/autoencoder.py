"""The autoencoders of diffusers as an image side: posterior moments to cache, scaled draws from them, latents back to pictures."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from ...concepts.denoiser.backbone import Backbone
from ...concepts.denoiser.image_side import NO_SPREAD, drawn_latents
from ...concepts.errors import BestiaryError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny


class _Placed(Protocol):
    @property
    def device(self) -> torch.device:
        """Where latents are wanted."""
        ...


class Autoencoder:
    """An AutoencoderKL or AutoencoderTiny; frozen."""

    def __init__(
        self,
        vae: "AutoencoderKL | AutoencoderTiny | None",
        backbone: Backbone,
        network: _Placed,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        """Latents of `vae` lie on the device of `network`; None for a model that was loaded without its autoencoder."""
        self.vae = None if vae is None else vae.eval().requires_grad_(False)
        self.config: Mapping[str, Any] = {} if vae is None else dict(vae.config)
        self._backbone, self._network, self._memory_format = backbone, network, memory_format

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which it computes."""
        return self._loaded().dtype

    def to_cache(self, images: Tensor) -> Tensor:
        """Posterior mean and log-variance `(B, 2, C, h, w)` float32, unscaled, of images `(B, 3, H, W)` in 0..1."""
        vae, device = self._loaded(), self._network.device
        # the autoencoder works on -1..1
        pixels = (images * 2 - 1).to(device, vae.dtype, memory_format=self._memory_format)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            encoded: Any = vae.encode(pixels)  # an output record of diffusers, by the kind of autoencoder
        if not hasattr(encoded, "latent_dist"):  # AutoencoderTiny has no posterior
            latents = encoded.latents.float()  # (B, C, h, w)
            return torch.stack([latents, torch.full_like(latents, NO_SPREAD)], dim=1)
        return torch.stack([encoded.latent_dist.mean.float(), encoded.latent_dist.logvar.float()], dim=1)

    def from_cache(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latents `(B, C, h, w)` of moments `(B, 2, C, h, w)`: a draw by standard normal `noise`, or the mean."""
        # the denoiser wants about unit deviation around zero
        shift, scale = self._shift_and_scale()
        return (drawn_latents(moments, noise) - shift) * scale

    def decode(self, latents: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` float32 in 0..1 of scaled latents `(B, C, h, w)`."""
        vae, device = self._loaded(), self._network.device
        shift, scale = self._shift_and_scale()
        latents = (latents.float() / scale + shift).to(device, vae.dtype, memory_format=self._memory_format)
        with torch.autocast(device.type, enabled=False):
            decoded: Any = vae.decode(cast("torch.FloatTensor", latents), return_dict=False)
            pixels: Tensor = decoded[0]  # (B, 3, H, W) in -1..1
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of latents of images of (height, width) pixels."""
        factor = self._backbone.latent_factor
        return self._backbone.latent_channels, size[0] // factor, size[1] // factor

    def _loaded(self) -> "AutoencoderKL | AutoencoderTiny":
        if self.vae is None:
            raise BestiaryError("the autoencoder was dropped from this denoiser: load the model again to use images")
        return self.vae

    def _shift_and_scale(self) -> tuple[float, float]:
        return self.config.get("shift_factor") or 0.0, self.config["scaling_factor"]
