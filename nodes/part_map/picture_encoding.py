"""Pictures of a graph as a training reads them: squares, and what the VAE makes of each, encoded once.

Letters: N pictures, V views (as is, mirrored), C latent channels, S edge of the square, (h, w) latent grid, (H, W) pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.pictures.square_fit import SQUARE_FITS, fit_square
from ..denoiser.comfy_autoencoder import ComfyAutoencoder
from ..host.comfy_objects import Vae
from ..host.graph_progress import GraphProgress
from .part_pictures import as_pictures, checked_images

LATENT_FACTOR = 8
AREA = SQUARE_FITS[0]
"""Trainings cut the centre square, as the command line does."""
_AT_ONCE = 8


def checked_entries(images: Sequence[Tensor]) -> list[Tensor]:
    """Every entry `(B, H, W, 3)` of a list of images, checked; see `checked_images`."""
    return [checked_images(entry, f" in entry {n} of the list") for n, entry in enumerate(images, 1)]


def check_square(size: int) -> None:
    """Make sure that a training square has an edge that can be encoded.

    Raises:
        BestiaryError: it has not.
    """
    if size % LATENT_FACTOR or size < 64:
        raise BestiaryError(f"image_size {size}: choose 64 or more, in steps of {LATENT_FACTOR}")


def cut_squares(images: Sequence[Tensor], size: int) -> np.ndarray:
    """Centre squares (N, S, S, 3) uint8 of a list of images `(B, H, W, 3)`."""
    pictures = [fit_square(picture, size, AREA) for entry in images for picture in as_pictures(entry)]
    return np.stack([np.asarray(picture) for picture in pictures])


def encode_squares(squares: np.ndarray, vae: Vae, mirror: bool, progress: GraphProgress) -> np.ndarray:
    """Moments (N, V, 2, C, h, w) float16 of squares (N, S, S, 3): mean and log-variance of the autoencoder's posterior.

    Raises:
        BestiaryError: the autoencoder gave numbers that are not finite.
        InterruptProcessingException: the user cancelled.
    """
    autoencoder = ComfyAutoencoder(vae)
    moments: list[np.ndarray] = []
    for start in range(0, len(squares), _AT_ONCE):
        some = torch.from_numpy(squares[start : start + _AT_ONCE]).permute(0, 3, 1, 2).contiguous().float() / 255
        views = [some, some.flip(-1)] if mirror else [some]
        both = torch.stack([torch.stack(autoencoder.encode(view), dim=1) for view in views], dim=1)
        moments.append(both.float().cpu().half().numpy())  # (B, V, 2, C, h, w)
        _check_finite(moments[-1], start, autoencoder.precision)
        progress.add(len(some))
    return np.concatenate(moments)


def _check_finite(moments: np.ndarray, start: int, precision: str) -> None:
    """Refuse moments (B, V, 2, C, h, w) of pictures from `start` on that would spoil a training."""
    spoilt = np.flatnonzero(~np.isfinite(moments).all((1, 2, 3, 4, 5)))
    if len(spoilt):
        listed = ", ".join(f"picture {start + row + 1}" for row in spoilt)
        raise BestiaryError(
            f"the VAE gave latents that are not finite for {listed}, computed in {precision}: start ComfyUI with --fp32-vae, or, "
            "if it computes in float32 already, look at these pictures and connect another VAE"
        )


def checked_masks(masks: Sequence[Tensor], images: Sequence[Tensor]) -> list[Tensor]:
    """Masks `(H, W)` float32, one for every picture of a list of images `(B, H, W, 3)`.

    Args:
        masks: `(H, W)` or `(B, H, W)` each, white is the thing.

    Raises:
        BestiaryError: another number of masks, or one of another size than its picture.
    """
    single = [mask for entry in masks for mask in entry.reshape(-1, *entry.shape[-2:]).float().cpu()]
    sizes = [tuple(entry.shape[1:3]) for entry in images for _ in entry]
    if len(single) != len(sizes):
        raise BestiaryError(f"{len(single)} masks for {len(sizes)} pictures: connect one mask per picture, or none")
    for number, (mask, (height, width)) in enumerate(zip(single, sizes, strict=True), start=1):
        if tuple(mask.shape) != (height, width):
            raise BestiaryError(
                f"mask {number} has {mask.shape[1]} x {mask.shape[0]} pixels, its picture {width} x {height}: resize it"
            )
    return single


def mask_picture(mask: Tensor) -> Image.Image:
    """A mask `(H, W)` 0..1 as a grey picture."""
    return Image.fromarray((mask * 255).round().clamp(0, 255).to(torch.uint8).numpy()).convert("RGB")
