"""What the pack uses of ComfyUI's own objects, as types: each says which attributes and methods must be there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
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


class ClipTokenizer(Tokenizer, Protocol):
    """The tokenizer of a CLIP text encoder."""

    start_token: int
    end_token: int
    pad_token: int
    tokenizer_adds_end_token: bool


class TextEncoder(Protocol):
    """One text encoder of a CLIP."""

    execution_device: object

    def set_clip_options(self, options: dict[str, object]) -> None:
        """Settings of the next run, such as the layer and the device."""
        ...


class ClipTextEncoder(TextEncoder, Protocol):
    """A text encoder of CLIP's kind: an `SDClipModel`."""

    transformer: Any
    """The network, in ComfyUI's own layers."""
    layer: str
    """Which states are read: last, hidden, or others."""
    layer_idx: int | None
    layer_norm_hidden_state: bool

    def reset_clip_options(self) -> None:
        """Back to the encoder's own settings."""
        ...


class Clip(Protocol):
    """A CLIP."""

    tokenizer: Any
    """Holds a `Tokenizer` for every text encoder, by attribute."""
    cond_stage_model: nn.Module
    """Holds the text encoders."""
    patcher: Any
    """Moves the weights."""
    layer_idx: int | None
    """The layer that the graph chose; None for the encoders' own choice."""

    def add_patches(self, patches: Mapping[str, Any], strength_patch: float = 1.0) -> Iterable[str]:
        """Add changes of weights; the names of those that were reached."""
        ...

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
    model: Any
    """The network with its configuration, latent format and kind of prediction: a `BaseModel`."""

    def add_patches(self, patches: Mapping[str, Any], strength_patch: float = 1.0) -> Iterable[str]:
        """Add changes of weights; the names of those that were reached."""
        ...

    def clone(self) -> Model:
        """Shares the weights."""
        ...

    def get_model_object(self, name: str) -> Any:
        """A part of the model, such as `model_sampling`."""
        ...


class Vae(Protocol):
    """A VAE."""

    first_stage_model: Any
    """The autoencoder itself; None where the file held none."""
    latent_channels: int
    latent_dim: int
    """Dimensions of a latent besides its channels: 2 for pictures."""
    output_channels: int
    vae_dtype: torch.dtype
    device: torch.device
    patcher: Any
    """Moves the weights."""
    process_input: Callable[[Tensor], Tensor]
    process_output: Callable[[Tensor], Tensor]
    memory_used_encode: Callable[[Sequence[int], torch.dtype], float]
    memory_used_decode: Callable[[Sequence[int], torch.dtype], float]

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
