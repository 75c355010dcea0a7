"""ComfyUI's VAE for training: the posterior's moments instead of one draw, and latents back to pictures."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from ...concepts.denoiser.backbone import Backbone
from ...concepts.denoiser.image_side import NO_SPREAD, drawn_latents
from ...concepts.errors import BestiaryError
from ..host.comfy_objects import Vae

LARGEST_LOG_VARIANCE = 20.0


class ComfyAutoencoder:
    """A VAE as ComfyUI loaded it."""

    def __init__(self, vae: Vae) -> None:
        """`vae`: ComfyUI's VAE object.

        Raises:
            BestiaryError: it is not a picture autoencoder.
        """
        if vae.first_stage_model is None or vae.latent_dim != 2 or vae.output_channels != 3:
            kind = type(vae.first_stage_model).__name__
            raise BestiaryError(f"this VAE ({kind}) makes no pictures: connect the VAE of an image checkpoint")
        self._vae = vae

    @property
    def precision(self) -> str:
        """In what it computes, such as "float16 on cuda"."""
        return f"{str(self._vae.vae_dtype).removeprefix('torch.')} on {torch.device(self._vae.device).type}"

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log-variance `(B, C, h, w)` float32, unscaled, of images `(B, 3, H, W)` in 0..1."""
        vae = self._vae
        self._load(vae.memory_used_encode(images.shape, vae.vae_dtype))
        pixels = vae.process_input(images).to(vae.device, vae.vae_dtype)  # (B, 3, H, W)
        stage = vae.first_stage_model
        if hasattr(stage, "regularization"):
            # ComfyUI's own call would draw from the posterior with torch's generator
            both = stage.encoder(pixels)  # (B, 2 * C, h, w)
            both = stage.quant_conv(both) if hasattr(stage, "quant_conv") else both
            mean, log_variance = both.float().chunk(2, dim=1)
            return mean, log_variance.clamp(NO_SPREAD, LARGEST_LOG_VARIANCE)
        latents = stage.encode(pixels).float()  # (B, C, h, w)
        return latents, torch.full_like(latents, NO_SPREAD)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures `(B, 3, H, W)` float32 in 0..1 of unscaled latents `(B, C, h, w)`."""
        vae = self._vae
        self._load(vae.memory_used_decode(latents.shape, vae.vae_dtype))
        pixels = vae.first_stage_model.decode(latents.to(vae.device, vae.vae_dtype))
        return vae.process_output(pixels.float())  # (B, 3, H, W)

    def fingerprint(self) -> str:
        """Sixteen hex digits that change when the weights do: kind, shapes, and some numbers of every tensor."""
        digest = hashlib.sha256(type(self._vae.first_stage_model).__name__.encode())
        for name, tensor in self._vae.first_stage_model.state_dict().items():
            some = tensor.detach().flatten()[:: max(1, tensor.numel() // 16)].float().cpu()  # (n,)
            digest.update(f"{name}{tuple(tensor.shape)}".encode() + some.numpy().tobytes())
        return digest.hexdigest()[:16]

    def _load(self, memory: float) -> None:
        import comfy.model_management

        comfy.model_management.load_models_gpu([self._vae.patcher], memory_required=memory)


class ComfyImages:
    """A VAE, and the scale of latents that a MODEL expects, as an `ImageSide`."""

    def __init__(self, patcher: Any, vae: Vae | None, backbone: Backbone) -> None:
        """`patcher`: the MODEL; without a `vae` only cached latents can be used."""
        self._patcher, self._backbone = patcher, backbone
        self._vae = None if vae is None else ComfyAutoencoder(vae)

    def to_cache(self, images: Tensor) -> Tensor:
        """Posterior mean and log-variance `(B, 2, C, h, w)` float32, unscaled, of images `(B, 3, H, W)` in 0..1."""
        return torch.stack(self._connected().encode(images), dim=1)

    def from_cache(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latents `(B, C, h, w)` of moments `(B, 2, C, h, w)`: a draw by standard normal `noise`, or the mean."""
        return self._patcher.model.process_latent_in(drawn_latents(moments, noise))

    def decode(self, latents: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` float32 in 0..1 of scaled latents `(B, C, h, w)`."""
        return self._connected().decode(self._patcher.model.process_latent_out(latents.float()))

    def shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of latents of images of (height, width) pixels."""
        factor = self._backbone.latent_factor
        return self._backbone.latent_channels, size[0] // factor, size[1] // factor

    def _connected(self) -> ComfyAutoencoder:
        if self._vae is None:
            raise BestiaryError("pictures are needed here: connect a VAE")
        return self._vae
