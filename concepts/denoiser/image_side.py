"""Images of models that denoise pixels: no autoencoder, only a change of range."""

import torch
from torch import Tensor

NO_SPREAD = -30.0
"""Log-variance where there is no posterior: what is denoised is the same at every draw."""


class PixelSpace:
    """The identity image side: pixels in -1..1 are what is denoised (`denoiser.ImageSide` for the protocol)."""

    def to_cache(self, images: Tensor) -> Tensor:
        """Pixels and no spread `(B, 2, 3, H, W)` float32 of images `(B, 3, H, W)` in 0..1."""
        pixels = (images * 2 - 1).float()
        return torch.stack([pixels, torch.full_like(pixels, NO_SPREAD)], dim=1)

    def from_cache(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """The pixels `(B, 3, H, W)` themselves of `(B, 2, 3, H, W)`; there is nothing to draw."""
        return moments[:, 0].float()

    def decode(self, latents: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` float32 in 0..1 of pixels `(B, 3, H, W)` in -1..1."""
        return (latents.float() / 2 + 0.5).clamp(0, 1)

    def shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(3, height, width)."""
        return 3, *size


def drawn_latents(moments: Tensor, noise: Tensor | None) -> Tensor:
    """A draw `(B, C, h, w)` float32 from posteriors `(B, 2, C, h, w)` by standard normal `noise`, or their means."""
    mean, log_variance = moments.float().unbind(1)  # (B, C, h, w) each
    return mean if noise is None else mean + (0.5 * log_variance).exp() * noise
