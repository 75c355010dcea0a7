"""What the pack uses of ComfyUI's own objects, as types: each says which attributes and methods must be there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

Tokens = dict[str, list[list[tuple]]]
"""What a CLIP's tokenizer gives: encoder -> C chunks of L entries, each an id or a vector with its weight."""
Conditioning = list[list]
"""What ComfyUI's samplers take: pairs of a tensor `(1, C * L, E)` and its options."""


class Tokenizer(Protocol):
    """The tokenizer of one text encoder: an `SDTokenizer`, or a kind of it."""

    embedding_directory: Sequence[str] | str | None
    embedding_key: str
    """Name of the text encoder, such as clip_l."""
    tokens_start: int
    """Tokens that stand before the first word."""
    tokenizer: Callable[[str], Mapping[str, Sequence[int]]]
    _try_get_embedding: Callable[[str], tuple]


class TextEncoder(Protocol):
    """One text encoder of a CLIP."""

    execution_device: object

    def set_clip_options(self, options: dict[str, object]) -> None:
        """Settings of the next run, such as the layer and the device."""
        ...


class Clip(Protocol):
    """A CLIP."""

    tokenizer: Any
    """Holds a `Tokenizer` for every text encoder, by attribute."""
    cond_stage_model: nn.Module
    """Holds the text encoders."""

    def clone(self) -> Clip:
        """Shares the weights."""
        ...

    def tokenize(self, text: str, *args: Any, **options: Any) -> Tokens:
        """Text to tokens."""
        ...

    def encode_from_tokens_scheduled(self, tokens: Tokens, *args: Any, **options: Any) -> Conditioning:
        """Tokens to a conditioning, one entry for each time at which the CLIP differs."""
        ...


class Model(Protocol):
    """A MODEL."""

    model_options: dict[str, Any]

    def clone(self) -> Model:
        """Shares the weights."""
        ...

    def get_model_object(self, name: str) -> Any:
        """A part of the model, such as `model_sampling`."""
        ...


class Vae(Protocol):
    """A VAE."""

    def decode(self, samples_in: Tensor) -> Tensor:
        """Latents `(N, C, h, w)` to pictures `(N, H, W, 3)` in 0..1."""
        ...


class ClipVision(Protocol):
    """A CLIP_VISION."""

    def encode_image(self, image: Tensor) -> Mapping[str, Tensor]:
        """Pictures `(N, H, W, 3)` to `image_embeds` `(N, F)` and more."""
        ...


class ModelSampling(Protocol):
    """How a model counts its noise."""

    def percent_to_sigma(self, percent: float) -> float:
        """Noise level at a share of the way, 0 to 1."""
        ...
