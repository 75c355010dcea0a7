"""ComfyUI's VAE for training: the posterior's moments instead of one draw, and latents back to pictures."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ...concepts.errors import BestiaryError

NO_SPREAD = -30.0
"""Log-variance of an autoencoder without a posterior: its latents are the same at every draw."""
LARGEST_LOG_VARIANCE = 20.0


class ComfyAutoencoder:
    """A VAE as ComfyUI loaded it."""

    def __init__(self, vae: object) -> None:
        """`vae`: ComfyUI's VAE object.

        Raises:
            BestiaryError: it is no picture autoencoder.
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
