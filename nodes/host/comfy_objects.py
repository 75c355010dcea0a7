"""Protocols of ComfyUI's objects: the attributes and methods that the pack uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Tokens = dict[str, list[list[tuple]]]
"""Output of a CLIP's tokenizer: encoder -> C chunks of L entries, each an id or a vector with its weight."""
Conditioning = list[list]
"""Input of ComfyUI's samplers: pairs of a tensor `(1, C * L, E)` and its options."""


class Tokenizer(Protocol):
    """The tokenizer of one text encoder: an `SDTokenizer` or a subclass."""

    embedding_directory: Sequence[str] | str | None
    embedding_key: str
    """Name of the text encoder, such as clip_l."""
    tokens_start: int
    """Number of tokens before the first word."""
    tokenizer: Callable[[str], Mapping[str, Sequence[int]]]
    inv_vocab: Mapping[int, str]
    """Names of all tokens, in the writing of its vocabulary."""
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
        """Set options of the next run, such as layer and device."""
        ...


class ClipTextEncoder(TextEncoder, Protocol):
    """A CLIP text encoder: an `SDClipModel`."""

    transformer: Any
    """The network, built from ComfyUI's layers."""
    layer: str
    """Hidden states used as output: last, hidden, or others."""
    layer_idx: int | None
    layer_norm_hidden_state: bool
    return_projected_pooled: bool

    def reset_clip_options(self) -> None:
        """Reset to the encoder's own settings."""
        ...


class Clip(Protocol):
    """A CLIP."""

    tokenizer: Any
    """Has a `Tokenizer` attribute per text encoder."""
    cond_stage_model: nn.Module
    """Contains the text encoders."""
    patcher: Any
    """Moves the weights."""
    layer_idx: int | None
    """Layer set in the graph; None for the encoders' default."""

    def add_patches(self, patches: Mapping[str, Any], strength_patch: float = 1.0) -> Iterable[str]:
        """Add changes of weights; the names of those that were reached."""
        ...

    def clone(self) -> Clip:
        """Shares the weights."""
        ...

    def tokenize(self, text: str, *args: Any, **options: Any) -> Tokens:
        """Text to tokens."""
        ...

    def encode_from_tokens(self, tokens: Tokens, return_pooled: bool = False) -> Any:
        """Tokens to states `(1, C * L, E)`, with `return_pooled` also to the feature `(1, F)` of the text."""
        ...

    def encode_from_tokens_scheduled(self, tokens: Tokens, *args: Any, **options: Any) -> Conditioning:
        """Tokens to a conditioning, one entry per time range with different hooks."""
        ...


class Model(Protocol):
    """A MODEL."""

    model_options: dict[str, Any]
    model: Any
    """The network with its configuration, latent format and prediction type: a `BaseModel`."""

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
    """The autoencoder; None if the file contained none."""
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
    """Noise schedule of a model."""

    def percent_to_sigma(self, percent: float) -> float:
        """Noise level at a share of the sampling, 0 to 1."""
        ...
