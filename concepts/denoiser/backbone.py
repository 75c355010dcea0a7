"""Backbones as data: the widths, token limits and latent shapes in which diffusion models differ.

A new backbone is one more record here and one more loader; no other file may name its numbers.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..errors import BestiaryError

BackboneName = Literal["bestiary-demo", "sd15", "sd2", "sdxl"]
HiddenState = Literal["final", "penultimate"]


@dataclass(frozen=True)
class TextEncoderSpec:
    """One text encoder of a backbone."""

    name: str
    """Tensor name of its embeddings in our files and in ComfyUI: clip_l, clip_h, clip_g."""
    width: int
    """Channels of a token embedding, and of one learned vector in this encoder."""
    output: HiddenState
    """Which hidden state conditions the denoiser: after the final norm, or the penultimate layer without it."""
    max_tokens: int = 77
    """Positions of one chunk, start and end token included."""
    pooled: bool = False
    """True where the denoiser also takes this encoder's pooled and projected vector (read at the end token)."""


@dataclass(frozen=True)
class Backbone:
    """What the method must know of a diffusion model before it is loaded."""

    name: BackboneName
    text_encoders: tuple[TextEncoderSpec, ...]
    image_size: int
    """Native edge in pixels."""
    latent_channels: int
    attention_divisor: int
    """Image edge divided by this gives the edge of the cross-attention grids the method reads (16 at the native size)."""
    latent_factor: int = 8
    """Image edge divided by latent edge."""

    @property
    def vector_width(self) -> int:
        """Width of one learned vector: all text encoders side by side (768; 1024; 768 + 1280)."""
        return sum(encoder.width for encoder in self.text_encoders)

    def split_vector(self, vectors: Tensor) -> dict[str, Tensor]:
        """Slice `(..., vector_width)` into one tensor per text encoder, in their order."""
        sizes = [encoder.width for encoder in self.text_encoders]
        pieces = vectors.split(sizes, dim=-1)
        return {encoder.name: piece for encoder, piece in zip(self.text_encoders, pieces, strict=True)}


BACKBONES: dict[str, Backbone] = {
    "bestiary-demo": Backbone("bestiary-demo", (TextEncoderSpec("clip_l", 128, "final"),), 128, 8, 8),
    "sd15": Backbone("sd15", (TextEncoderSpec("clip_l", 768, "final"),), 512, 4, 32),
    "sd2": Backbone("sd2", (TextEncoderSpec("clip_h", 1024, "final"),), 512, 4, 32),
    "sdxl": Backbone(
        "sdxl",
        (
            TextEncoderSpec("clip_l", 768, "penultimate"),
            TextEncoderSpec("clip_g", 1280, "penultimate", pooled=True),
        ),
        1024,
        4,
        32,
    ),
}


def get_backbone(name: str) -> Backbone:
    """The record of a backbone by its name.

    Raises:
        BestiaryError: no backbone has this name; the message lists those that exist.
    """
    if name not in BACKBONES:
        raise BestiaryError(f"unknown backbone {name!r}: choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name]
