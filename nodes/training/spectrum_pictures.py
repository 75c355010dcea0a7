"""Pictures of one concept as a spectrum training in the graph learns from them: encoded once, remembered while ComfyUI runs.

Letters: N pictures, V views (as is, mirrored), C latent channels, S edge of the cached square, (h, w) latent grid.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...trainer.learning.pictures.mask_files import coverage, coverage_text
from ...trainer.learning.spectrum.spectrum_images import square_mask
from ..denoiser.comfy_autoencoder import ComfyAutoencoder
from ..host.comfy_objects import Vae
from ..host.graph_progress import GraphProgress
from ..part_map.picture_encoding import (
    LATENT_FACTOR,
    check_square,
    checked_entries,
    checked_masks,
    cut_squares,
    encode_squares,
    mask_picture,
)

logger = logging.getLogger("bestiary")
KEPT_BYTES = 256 * 2**20
"""Encoded pictures of this size in all are remembered, the newest at least."""
_encoded: OrderedDict[str, np.ndarray] = OrderedDict()


@dataclass(frozen=True)
class SpectrumPictures:
    """N pictures ready for training."""

    names: tuple[str, ...]
    """What messages call them."""
    squares: np.ndarray = field(repr=False)
    """(N, S, S, 3) uint8."""
    moments: np.ndarray = field(repr=False)
    """(N, V, 2, C, h, w) float16: mean and log-variance of the autoencoder's posterior."""
    masks: np.ndarray | None = field(repr=False)
    """(N, h, w) float32 0..1: what is learned from; None is everything."""

    def picture(self, row: int) -> Image.Image:
        """The square of one picture."""
        return Image.fromarray(self.squares[row])

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with pictures, masks or the way they were encoded."""
        masks = () if self.masks is None else (self.masks,)
        return _digest((self.moments, *masks))


def prepare_pictures(
    images: Sequence[Tensor],
    masks: Sequence[Tensor] | None,
    vae: Vae,
    size: int,
    mirror: bool,
    progress: GraphProgress,
) -> SpectrumPictures:
    """Pictures of a list of images `(B, H, W, 3)`.

    Args:
        masks: the thing in each picture `(B, H, W)`, in white; None learns from all of it.
        vae: ComfyUI's VAE of the model that is learned on.
        size: edge S in pixels; it holds the margin for crops.

    Raises:
        BestiaryError: no picture, a bad one, or masks that do not fit or are black.
    """
    check_square(size)
    checked = checked_entries(images)
    if not checked:
        raise BestiaryError("images: connect at least one picture of the concept")
    # later the pictures are trained on, which the executor's inference mode would forbid
    with torch.inference_mode(False), torch.no_grad():
        edge = size // LATENT_FACTOR
        single = None if masks is None else checked_masks(masks, checked)
        cut = single and [square_mask(mask_picture(m), edge, f"mask {n}") for n, m in enumerate(single, start=1)]
        squares = cut_squares(checked, size)
        moments = _remembered(squares, vae, mirror, progress)
    names = tuple(f"picture {row + 1}" for row in range(len(squares)))
    if single:
        logger.info("%s", coverage_text([coverage(mask.numpy()) for mask in single], names))
    return SpectrumPictures(names, squares, moments, np.stack(cut) if cut else None)


def _remembered(squares: np.ndarray, vae: Vae, mirror: bool, progress: GraphProgress) -> np.ndarray:
    """Moments of squares (N, S, S, 3), those of an earlier run where VAE and pictures are the same."""
    autoencoder = ComfyAutoencoder(vae)
    key = f"{autoencoder.fingerprint()} {autoencoder.precision} {mirror} {_digest((squares,))}"
    progress.begin(len(squares))
    moments = _encoded.pop(key, None)
    if moments is None:
        moments = encode_squares(squares, vae, mirror, progress)
    progress.finish()
    _encoded[key] = moments
    while len(_encoded) > 1 and sum(kept.nbytes for kept in _encoded.values()) > KEPT_BYTES:
        _encoded.popitem(last=False)
    return moments


def _digest(arrays: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
