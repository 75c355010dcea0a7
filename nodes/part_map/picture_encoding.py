"""Pictures of a graph prepared for training: centre squares and their latent moments, encoded once.

Letters: N pictures, V views (original, mirrored), C latent channels, S edge of the square, (h, w) latent grid, (H, W) pixels.
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
"""Trainings use the centre square, as on the command line."""
_AT_ONCE = 8


def checked_entries(images: Sequence[Tensor]) -> list[Tensor]:
    """Every entry `(B, H, W, 3)` of a list of images, validated; see `checked_images`."""
    return [checked_images(entry, f" in entry {n} of the list") for n, entry in enumerate(images, 1)]


def check_square(size: int) -> None:
    """Check that the edge of a training square can be encoded.

    Raises:
        BestiaryError: it is too small or not a multiple of the latent factor.
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
        BestiaryError: the autoencoder returned values that are not finite.
        InterruptProcessingException: the user cancelled.
    """
    autoencoder = ComfyAutoencoder(vae)
    moments: list[np.ndarray] = []
    for start in range(0, len(squares), _AT_ONCE):
        some = torch.from_numpy(squares[start : start + _AT_ONCE]).permute(0, 3, 1, 2).contiguous().float() / 255
        views = [some, some.flip(-1)] if mirror else [some]
        # mirrored pictures are encoded separately: a mirrored latent is not the latent of a mirrored picture
        both = torch.stack([torch.stack(autoencoder.encode(view), dim=1) for view in views], dim=1)
        moments.append(both.float().cpu().half().numpy())  # (B, V, 2, C, h, w)
        _check_finite(moments[-1], start, autoencoder.precision)
        progress.add(len(some))
    return np.concatenate(moments)


def _check_finite(moments: np.ndarray, start: int, precision: str) -> None:
    """Reject moments (B, V, 2, C, h, w) of pictures from `start` on with values that are not finite."""
    spoilt = np.flatnonzero(~np.isfinite(moments).all((1, 2, 3, 4, 5)))
    if len(spoilt):
        listed = ", ".join(f"picture {start + row + 1}" for row in spoilt)
        raise BestiaryError(
            f"the VAE returned latents that are not finite for {listed}, computed in {precision}: start ComfyUI with --fp32-vae; "
            "if it already uses float32, check these pictures or connect another VAE"
        )


def checked_masks(masks: Sequence[Tensor], images: Sequence[Tensor]) -> list[Tensor]:
    """Masks `(H, W)` float32, one per picture of a list of images `(B, H, W, 3)`.

    Args:
        masks: `(H, W)` or `(B, H, W)` each, object in white.

    Raises:
        BestiaryError: the number of masks, or the size of one, does not match the pictures.
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
