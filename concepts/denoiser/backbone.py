"""Backbones as data: the widths, token limits and latent shapes in which diffusion models differ.

A new backbone is one more record here and one more loader; no other file may name its numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import BestiaryError
from .lora_forms import TRANSFORMER_PREFIX, UNET_PREFIX

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
    """True where the network also takes this encoder's pooled vector (read at the end token)."""
    projected: bool = True
    """Whether the pooled vector goes through the encoder's projection; Flux reads it as it is."""
    role: Literal["context", "pooled_only"] = "context"
    """Whether its states are attended to, or only its pooled vector is read (CLIP in Flux)."""
    place: Literal["beside", "behind"] = "beside"
    """Where its states stand in the context: channels beside those of the encoder before it, or positions behind them (T5 in SD3)."""
    runs: Literal["chunked", "single"] = "chunked"
    """Chunks of `max_tokens` with start and end token each (CLIP), or one run without a start token (T5)."""
    min_tokens: int = 1
    """Positions to which a single run is padded at least."""
    mask: bool = False
    """Whether padding of a single run is hidden from the network."""


@dataclass(frozen=True)
class Backbone:
    """What the method must know of a diffusion model before it is loaded."""

    name: str
    text_encoders: tuple[TextEncoderSpec, ...]
    image_size: int
    """Native edge in pixels."""
    latent_channels: int
    attention_divisor: int
    """Image edge divided by this gives the edge of the cross-attention grids the method reads (16 at the native size)."""
    latent_factor: int = 8
    """Image edge divided by latent edge."""
    patch: int = 1
    """Latent places on an edge of a token, where a transformer reads latents patch by patch."""
    lora_prefix: str = UNET_PREFIX
    """Before the names of its layers in LoRA files."""

    @property
    def pixel_step(self) -> int:
        """Edges of pictures are multiples of this."""
        return self.latent_factor * self.patch

    @property
    def context_groups(self) -> tuple[tuple[TextEncoderSpec, ...], ...]:
        """Encoders whose states make up the context: those of a group side by side, groups one behind the other."""
        groups: list[list[TextEncoderSpec]] = []
        for encoder in self.text_encoders:
            if encoder.role == "pooled_only":
                continue
            if not groups or encoder.place == "behind":
                groups.append([])
            groups[-1].append(encoder)
        return tuple(tuple(group) for group in groups)

    @property
    def context_width(self) -> int:
        """Channels of the context: those of the widest group, to which the others are padded."""
        return max(sum(encoder.width for encoder in group) for group in self.context_groups)

    @property
    def vector_width(self) -> int:
        """Width of one learned vector: all text encoders side by side (768; 1024; 768 + 1280)."""
        return sum(encoder.width for encoder in self.text_encoders)

    def split_vector(self, vectors: Tensor) -> dict[str, Tensor]:
        """Slice `(..., vector_width)` into one tensor per text encoder, in their order."""
        sizes = [encoder.width for encoder in self.text_encoders]
        pieces = vectors.split(sizes, dim=-1)
        return {encoder.name: piece for encoder, piece in zip(self.text_encoders, pieces, strict=True)}

    def join_vectors(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """One tensor `(..., vector_width)` of one per text encoder, `(..., W)` each: the form of tables and state files."""
        return torch.cat([vectors[encoder.name] for encoder in self.text_encoders], dim=-1)


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

_T5_WIDTH = 4096
_LONGEST_T5 = 512
"""Positions after which a prompt is cut."""
# diffusion transformers; one token of an attention grid is a patch of 2 x 2 latent places. Text lengths are ComfyUI's, which are part of what a
# model is used with: T5 is padded to 77 in SD3 and to 256 in Flux, and not masked (diffusers pads to 256 and 512 where it is not asked otherwise)
BACKBONES |= {
    "sd3": Backbone(
        "sd3",
        (
            TextEncoderSpec("clip_l", 768, "penultimate", pooled=True),
            TextEncoderSpec("clip_g", 1280, "penultimate", pooled=True),
            TextEncoderSpec("t5xxl", _T5_WIDTH, "final", _LONGEST_T5, place="behind", runs="single", min_tokens=77),
        ),
        1024,
        16,
        16,
        patch=2,
        lora_prefix=TRANSFORMER_PREFIX,
    ),
    "flux": Backbone(
        "flux",
        (
            TextEncoderSpec("clip_l", 768, "final", pooled=True, projected=False, role="pooled_only"),
            TextEncoderSpec("t5xxl", _T5_WIDTH, "final", _LONGEST_T5, runs="single", min_tokens=256),
        ),
        1024,
        16,
        16,
        patch=2,
        lora_prefix=TRANSFORMER_PREFIX,
    ),
    "bestiary-demo-dit": Backbone(
        "bestiary-demo-dit",
        (TextEncoderSpec("clip_l", 128, "final", pooled=True),),
        128,
        8,
        16,
        patch=2,
        lora_prefix=TRANSFORMER_PREFIX,
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


class WrongBackboneError(BestiaryError):
    """A file that was learned for another model than the one that is loaded; a face may word it from its fields."""

    def __init__(self, message: str, *, learned_for: str, loaded: str) -> None:
        """`learned_for` and `loaded`: names of backbones; the option at fault is the base model."""
        super().__init__(message, option="base")
        self.learned_for, self.loaded = learned_for, loaded


def check_learned_for(
    kind: str, name: str, learned_for: str, vectors: Mapping[str, Tensor], backbone: Backbone
) -> None:
    """Make sure that a file was learned for the model that is loaded.

    Args:
        kind: what the file is: dictionary or spectrum.
        name: what the user calls it.
        learned_for: name of its backbone.
        vectors: its vectors, text encoder -> `(..., width)`.
        backbone: the record of the loaded model.

    Raises:
        WrongBackboneError: it was trained for another backbone, or its vectors have other widths.
    """
    fields = {"learned_for": learned_for, "loaded": backbone.name}
    if learned_for != backbone.name:
        raise WrongBackboneError(
            f"{kind} {name} was trained for {learned_for}, but the base model is {backbone.name}: "
            f"load a {learned_for} model, or train a {kind} for {backbone.name}",
            **fields,
        )
    # the same kind of model may still have other widths, as small test models do
    widths = {encoder: own.shape[-1] for encoder, own in vectors.items()}
    expected = {encoder.name: encoder.width for encoder in backbone.text_encoders}
    if widths != expected:
        raise WrongBackboneError(
            f"{kind} {name} holds vectors of widths {widths}, but the base model takes {expected}: "
            "load the model it was trained for",
            **fields,
        )
