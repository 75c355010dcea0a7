"""Inputs that nodes looking at pictures share, and the look itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io
from torch import Tensor

from ...concepts.pictures.square_fit import SQUARE_FITS
from ..host.comfy_version import socket
from .part_pictures import checked_fit, checked_images

if TYPE_CHECKING:
    from ...concepts.denoiser.denoiser import Denoiser
    from ..host.graph_progress import GraphProgress
    from ..host.socket_types import NamedCodebook
    from .seen_parts import SeenParts

FeaturesSocket = io.Custom("BESTIARY_FEATURES")
"""A model of the graph whose activations are read: a `Denoiser`."""


def fit_input() -> io.Input:
    """How pictures that are not square are looked at."""
    return socket(io.Combo.Input, "fit", options=list(SQUARE_FITS), default=SQUARE_FITS[0], optional=True)


def features_input() -> io.Input:
    """The source of codebooks that were made with a diffusion model."""
    return FeaturesSocket.Input("features", optional=True)


def segment(
    images: Tensor, codebook: NamedCodebook, features: Denoiser | None, fit: str, progress: GraphProgress
) -> tuple[Tensor, SeenParts]:
    """Checked images `(B, H, W, 3)` and what a codebook sees in them.

    Raises:
        BestiaryError: bad pictures, or features that are missing or not those of the codebook.
    """
    from .feature_choice import open_source
    from .seen_parts import describe_images, see_parts

    # pictures are checked before a source is opened, which may take long
    area, pictures = checked_fit(fit), checked_images(images)
    source = open_source(codebook.codebook.feature_spec, features)
    progress.begin(len(pictures))
    grid = describe_images(pictures, source, area, progress.add)
    _, height, width, _ = pictures.shape
    return pictures, see_parts(codebook.codebook, grid, (height, width), area)
