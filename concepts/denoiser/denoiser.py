"""The one protocol through which every method sees a diffusion model, and the records it speaks in.

Implemented over diffusers modules by the trainer and over ComfyUI's model patcher by the graph blocks. Objectives and
the training loop are written against this protocol alone. Letters: B batch, P inserted vectors of a prompt, C chunks
of text, L positions of a chunk, D width of a learned vector, E width of the conditioning, T timesteps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from .backbone import Backbone

Prediction = Literal["epsilon", "v_prediction"]
AttentionMethod = Literal["lse", "one_hot"]


@dataclass(frozen=True)
class PromptPiece:
    """A run of plain text, or one learned vector to be inserted."""

    text: str | None
    """Plain text; None for a learned vector."""
    weight: float = 1.0
    """Prompt weight, 1 is neutral."""
    joined: bool = False
    """For a vector: it continues the word of the vector before it, and the end of a chunk treats both as one word."""

    @classmethod
    def word(cls, vectors: int, weight: float = 1.0) -> "list[PromptPiece]":
        """One learned word of so many vectors, such as an embedding of several vectors."""
        return [cls(None, weight, joined=number > 0) for number in range(vectors)]


@dataclass(frozen=True)
class PromptTokens:
    """One prompt laid out for the text encoders of a backbone."""

    ids: Mapping[str, Tensor]
    """Per text encoder: token ids `(C, L)` long; a filler id stands where a learned vector goes."""
    positions: Tensor
    """`(P,)` long: place of each learned vector in the concatenated chunks, chunk * L + position; -1 where cut off."""
    weights: Tensor
    """`(C, L)` float: prompt weight of every position."""


@dataclass(frozen=True)
class TextConditioning:
    """What the denoiser is told: cross-attention context, and for some backbones a pooled vector."""

    context: Tensor
    """`(B, C * L, E)`."""
    pooled: Tensor | None = None
    """`(B, E_pooled)`."""
    positions: Tensor | None = None
    """`(B, P)` long: places of the learned vectors, -1 where absent."""
    sizes: Tensor | None = None
    """`(B, 6)` float, pixels: original height and width, crop top and left, target height and width, for backbones that
    are told them (SDXL); None says the whole picture at the size of the latent."""


@dataclass(frozen=True)
class AttentionRequest:
    """Which cross-attention probabilities a prediction shall return besides the noise."""

    positions: Tensor
    """`(B, P)` long, token places in the context, -1 where absent: such a map is all zero."""
    layers: tuple[str, ...] | None = None
    """Names of cross-attention layers (`Denoiser.cross_attention_layers`); None takes those on the method's grid."""
    method: AttentionMethod = "lse"


@dataclass(frozen=True)
class DenoiserOutput:
    """A prediction and what was asked for besides it."""

    prediction: Tensor
    """`(B, C, h, w)` in the model's own parameterisation (epsilon or v)."""
    attention: Mapping[str, Tensor]
    """Layer name -> probabilities `(B, P, h, w)` averaged over heads; empty if none were asked for."""
    features: Mapping[str, Tensor]
    """Block name -> activations `(B, D, h, w)`; empty if none were asked for."""


@dataclass(frozen=True)
class NoiseSchedule:
    """The forward process of a discrete-time diffusion model."""

    alphas_cumprod: Tensor
    """`(T,)` float32, decreasing."""
    prediction: Prediction

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noised latents `(B, C, h, w)` at integer timesteps `(B,)` (DDPM, equation 4)."""
        alpha = self.alphas_cumprod.to(latents.device)[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt().to(latents.dtype) * latents + (1 - alpha).sqrt().to(latents.dtype) * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model shall predict `(B, C, h, w)`: the noise, or the velocity (Salimans and Ho 2022, appendix D)."""
        if self.prediction == "epsilon":
            return noise
        alpha = self.alphas_cumprod.to(latents.device)[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt().to(latents.dtype) * noise - (1 - alpha).sqrt().to(latents.dtype) * latents

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio `(B,)` at integer timesteps `(B,)`, of latents `(B, C, h, w)`."""
        alpha = self.alphas_cumprod.to(timesteps.device)[timesteps]
        return alpha / (1 - alpha)


@dataclass(frozen=True)
class LoraSpec:
    """Low-rank adapters on the denoiser's attention layers."""

    rank: int = 4
    alpha: float = 4.0
    """Scale of the update is alpha / rank."""
    self_attention: bool = True
    """Also adapt the self-attention layers; cross-attention layers always are."""


class Denoiser(Protocol):
    """A latent diffusion model with text conditioning, whatever library holds its weights."""

    backbone: Backbone
    schedule: NoiseSchedule
    device: torch.device
    dtype: torch.dtype

    def tokenize(self, pieces: Sequence[PromptPiece], chunks: int | None = None) -> PromptTokens:
        """Lay out a prompt; `chunks` fixes C (longer prompts are cut, shorter ones filled), None takes what it needs."""

    def encode_prompts(self, prompts: Sequence[PromptTokens], vectors: Tensor | None) -> TextConditioning:
        """Encode B prompts with learned vectors `(B, P, D)` in their places; differentiable in the vectors."""

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: TextConditioning,
        attention: AttentionRequest | None = None,
        features: Sequence[str] = (),
    ) -> DenoiserOutput:
        """One evaluation at scaled, noised latents `(B, C, h, w)` and integer timesteps `(B,)`."""

    def cross_attention_layers(self) -> Mapping[str, int]:
        """Name of every cross-attention layer -> its downsampling relative to the latent (1, 2, 4, 8)."""

    def feature_blocks(self) -> Mapping[str, int]:
        """Name of every block whose activations can be read -> its downsampling relative to the latent."""

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log-variance `(B, C, h, w)`, unscaled, of images `(B, 3, H, W)` in 0..1."""

    def scale_latents(self, latents: Tensor) -> Tensor:
        """Latents of the autoencoder `(B, C, h, w)` -> latents of the denoiser, of the same shape."""

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Denoiser latents `(B, C, h, w)` -> images `(B, 3, H, W)` in 0..1."""

    def word_vectors(self, words: str) -> Tensor:
        """Embedding rows `(n, D)` of plain words, all text encoders side by side."""

    def unknown_words(self, words: str) -> list[str]:
        """Those of several words that the tokenizer does not know and reads as one and the same token."""

    def add_lora(self, spec: LoraSpec) -> Mapping[str, nn.Parameter]:
        """Attach fresh adapters, down `(r, I)` and up `(O, r)` per layer, and return their trainable parameters."""

    def lora_tensors(self) -> dict[str, Tensor]:
        """The adapters by kohya name (`lora_unet_....lora_down.weight` `(r, I)`, `.lora_up.weight` `(O, r)`, ...)."""

    def load_lora(self, tensors: Mapping[str, Tensor], strength: float = 1.0) -> int:
        """Load adapters `(r, I)` and `(O, r)` under any naming; how many layers they reached, zero is an error."""


ProgressCallback = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""
