"""Inputs shared by nodes that segment pictures, and the segmentation."""

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
"""A model of the graph as feature source: a `Denoiser`."""


def fit_input() -> io.Input:
    """Input for the handling of pictures that are not square."""
    return socket(io.Combo.Input, "fit", options=list(SQUARE_FITS), default=SQUARE_FITS[0], optional=True)


def features_input() -> io.Input:
    """Input for the feature source of codebooks that use a diffusion model."""
    return FeaturesSocket.Input("features", optional=True)


def segment(
    images: Tensor, codebook: NamedCodebook, features: Denoiser | None, fit: str, progress: GraphProgress
) -> tuple[Tensor, SeenParts]:
    """Validated images `(B, H, W, 3)` and their segmentation by a codebook.

    Raises:
        BestiaryError: invalid pictures, or features that are missing or do not match the codebook.
    """
    from .feature_choice import open_source
    from .seen_parts import describe_images, see_parts

    # validate pictures first: opening a source may load a large network
    area, pictures = checked_fit(fit), checked_images(images)
    source = open_source(codebook.codebook.feature_spec, features)
    progress.begin(len(pictures))
    grid = describe_images(pictures, source, area, progress.add)
    _, height, width, _ = pictures.shape
    return pictures, see_parts(codebook.codebook, grid, (height, width), area)
