"""Conversion of IMAGE tensors to squares for a feature source and to Pillow pictures, and back, with validation.

Letters: B pictures, (H, W) pixels, S edge of a square.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.pictures.square_fit import SQUARE_FITS, SquareFit, fit_square

MIN_EDGE = 16
"""Minimum pixels of the shorter edge; smaller pictures are rejected."""
_GRAPH_WORDS = {
    "--flip-foreground": "flip_foreground",
    'set run.dtype = "fp32"': "start ComfyUI with --force-fp32",
    "another --source": "another feature_source",
    "try flip_foreground or another feature source": "try flip_foreground, a foreground mask or another feature_source",
}

_INPUTS = {
    "base": "model",
    "images.size": "image_size",
    "images.class_images": "class_images",
    "method.initial_words": "initial_words",
    "method.vectors": "vectors",
    "captions.instance_prompt": "instance_prompt",
    "captions.class_prompt": "class_prompt",
}
"""`BestiaryError.option` -> the input of a node that sets it; every other setting is a line of more_settings."""


@contextlib.contextmanager
def named_faults(node: str) -> Iterator[None]:
    """Prefixes the message of every BestiaryError with the node's name, replaces command-line options by node inputs, and says which input it is about."""
    try:
        yield
    except BestiaryError as fault:
        message = str(fault)
        for option, word in _GRAPH_WORDS.items():
            message = message.replace(option, word)
        if fault.option is not None:
            place = _INPUTS.get(fault.option, f"more_settings, {fault.option}")
            message = f"{message} (see {place})"
        raise BestiaryError(f"{node}: {message}", option=fault.option) from fault


def checked_images(images: Tensor, place: str = "") -> Tensor:
    """Images `(B, H, W, 3)` float32 in 0..1, free of inference mode, so that models can be fitted to them.

    Args:
        place: their entry in a list of images, for messages.

    Raises:
        BestiaryError: not pictures, too small, or values that are not finite.
    """
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[3] not in (1, 3, 4) or not shape[0]:
        raise BestiaryError(f"images{place} of shape {shape}: connect pictures (count, height, width, 3)")
    if min(shape[1:3]) < MIN_EDGE:
        raise BestiaryError(
            f"images{place} of {shape[2]} x {shape[1]} pixels are too small: at least {MIN_EDGE} x {MIN_EDGE} are required"
        )
    # models in half precision sometimes produce NaN, which would silently yield no parts
    finite = torch.isfinite(images).flatten(1).all(1)  # (B,)
    if not bool(finite.all()):
        number = int((~finite).nonzero()[0]) + 1
        raise BestiaryError(
            f"picture {number} of {shape[0]}{place} contains NaN or infinity: "
            "check the node that made it, often a VAE in half precision"
        )
    with torch.inference_mode(False):
        # drop alpha, expand grey to three channels; cloned, because inference tensors cannot be used in training
        opaque = images.detach().float().cpu().clone()[..., :3]
        return opaque.clamp(0, 1).expand(-1, -1, -1, 3).contiguous()  # (B, H, W, 3)


def as_pictures(images: Tensor) -> list[Image.Image]:
    """Pictures of images `(B, H, W, 3)` in 0..1, rounded to 8 bits."""
    pixels = (images.float().cpu() * 255).round().clamp(0, 255).to(torch.uint8).numpy()  # (B, H, W, 3)
    return [Image.fromarray(picture) for picture in pixels]


def as_images(pictures: Sequence[Image.Image]) -> Tensor:
    """Images `(B, H, W, 3)` in 0..1 of RGB pictures of one size."""
    return torch.stack([torch.from_numpy(np.asarray(picture).copy()) for picture in pictures]).float() / 255


def as_squares(images: Tensor, size: int, fit: SquareFit) -> Tensor:
    """Input of a feature source `(B, 3, S, S)` in 0..1, made from 8-bit pictures as on the command line."""
    squares = [fit_square(picture, size, fit) for picture in as_pictures(images)]
    return as_images(squares).permute(0, 3, 1, 2).contiguous()  # (B, 3, S, S)


def checked_fit(fit: str) -> SquareFit:
    """The fit of that name; needed because linked values bypass ComfyUI's check of menus.

    Raises:
        BestiaryError: an unknown fit.
    """
    if fit not in SQUARE_FITS:
        raise BestiaryError(f"unknown fit {fit!r}: choose {' or '.join(SQUARE_FITS)}")
    return fit
