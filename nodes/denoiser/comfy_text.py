"""ComfyUI's text encoders for training: run layer by layer out of place, differentiable in learned vectors.

ComfyUI adds to a layer's input in place, which autograd forbids. Here the same modules are called one by one, so no layer
is patched; like ComfyUI it computes in float32. Letters: N chunks, L positions of a chunk, D width of an encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...concepts.denoiser.backbone import Backbone, TextEncoderSpec
from ...concepts.denoiser.denoiser import Conditioning, PromptLayout
from ...concepts.errors import BestiaryError
from ...trainer.learning.denoiser.prompt_encoding import ClipStates, PromptEncoding
from ..host.comfy_objects import Clip, ClipTextEncoder, ClipTokenizer
from ..host.comfy_version import name_device


class ComfyTextEncoder:
    """One text encoder of a CLIP with its tokenizer."""

    def __init__(
        self, encoder: ClipTextEncoder, tokenizer: ClipTokenizer, clip_skip: int | None, device: torch.device
    ) -> None:
        """`encoder` and `tokenizer` are ComfyUI's; `clip_skip` is the CLIP's own choice of layer, None its default."""
        self._encoder, self._tokenizer = encoder, tokenizer
        self.device = device
        self.start: int | None = tokenizer.start_token
        self.end, self.pad = tokenizer.end_token, tokenizer.pad_token
        # byte-level vocabularies know everything and name their end token here
        unknown = getattr(tokenizer.tokenizer, "unk_token_id", None)
        self.unknown = None if unknown in (self.start, self.end) else unknown
        self._layer = _read_layer(encoder, clip_skip)

    @property
    def width(self) -> int:
        """Channels of a token embedding."""
        return self._encoder.transformer.get_input_embeddings().weight.shape[1]

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of a text without start and end token."""
        end = -1 if self._tokenizer.tokenizer_adds_end_token else None
        return list(self._tokenizer.tokenizer(text)["input_ids"][self._tokenizer.tokens_start : end])

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings `(B, L, D)` float32 of ids `(B, L)`."""
        table = self._encoder.transformer.get_input_embeddings()
        with torch.no_grad():
            return table(ids.to(self.device), out_dtype=torch.float32).float()

    def run(self, embeddings: Tensor, spec: TextEncoderSpec, end_places: Tensor) -> ClipStates:
        """Hidden states and, where the backbone reads them, pooled ones; see `TextEncoder`."""
        import comfy.ops

        transformer = self._encoder.transformer
        core = transformer.text_model
        table = core.embeddings.position_embedding.weight
        positions = comfy.ops.cast_to(table, dtype=torch.float32, device=embeddings.device)  # (L, D)
        hidden = embeddings + positions[: embeddings.shape[1]]  # (N, L, D)
        # the layers behind the one that is read are run for the pooled state only
        layers = list(core.encoder.layers)
        read = None if self._layer is None else self._layer % len(layers)
        asked = None
        for number, layer in enumerate(layers):
            hidden = _out_of_place(layer, hidden)
            if number == read:
                asked = hidden
                if not spec.pooled:
                    return ClipStates(self._normed(hidden), None)
        final = core.final_layer_norm(hidden)  # (N, L, D)
        pooled = None
        if spec.pooled:
            places = end_places.to(final.device).view(-1, 1, 1).expand(-1, 1, final.shape[-1])  # (N, 1, D)
            pooled = final.gather(1, places).squeeze(1)  # (N, D)
        if pooled is not None and spec.projected and self._encoder.return_projected_pooled:
            pooled = transformer.text_projection(pooled)  # (N, D_pooled)
        return ClipStates(final if asked is None else self._normed(asked), pooled)

    def _normed(self, hidden: Tensor) -> Tensor:
        norm = self._encoder.transformer.text_model.final_layer_norm
        return norm(hidden) if self._encoder.layer_norm_hidden_state else hidden


class ComfyT5Encoder:
    """The T5 of an SD3's or Flux's CLIP with its tokenizer; padding is seen, as in ComfyUI."""

    def __init__(self, encoder: Any, tokenizer: Any, device: torch.device) -> None:
        """`encoder` and `tokenizer` are ComfyUI's.

        Raises:
            BestiaryError: the encoder hides its padding, which training does not.
        """
        if encoder.enable_attention_masks:
            raise BestiaryError("this CLIP's T5 hides padding (an attention mask): load it as the CLIP of SD3 or Flux")
        self._encoder, self._tokenizer = encoder, tokenizer
        self.device = device
        self.start: int | None = None
        self.end, self.pad = tokenizer.end_token, tokenizer.pad_token
        self.unknown: int | None = tokenizer.tokenizer.unk_token_id

    @property
    def width(self) -> int:
        """Channels of a token embedding."""
        return self._encoder.transformer.get_input_embeddings().weight.shape[1]

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of a text without its end; spaces at its ends give none."""
        return list(self._tokenizer.tokenizer(text.strip())["input_ids"][:-1]) if text.strip() else []

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings `(B, L, D)` float32 of ids `(B, L)`."""
        with torch.no_grad():
            return self._encoder.transformer.get_input_embeddings()(
                ids.to(self.device), out_dtype=torch.float32
            ).float()

    def run(self, embeddings: Tensor, spec: TextEncoderSpec, end_places: Tensor) -> ClipStates:
        """States `(N, L, D)` of embeddings `(N, L, D)`, after the last norm; T5 has no pooled vector."""
        core, hidden, bias = self._encoder.transformer.encoder, embeddings, None
        for block in core.block:
            attention, gated = block.layer[0], block.layer[-1]
            given = attention.layer_norm(hidden)
            mixed, bias = attention.SelfAttention(given, past_bias=bias, optimized_attention=_biased_attention)
            # ComfyUI's layers add in place
            hidden = hidden + mixed
            hidden = hidden + gated.DenseReluDense(gated.layer_norm(hidden))
        return ClipStates(core.final_layer_norm(hidden), None)


class ComfyTextSide(PromptEncoding):
    """The text encoders of a CLIP as a `TextSide`."""

    def __init__(self, backbone: Backbone, encoders: Mapping[str, ComfyEncoder], load: Callable[[], None]) -> None:
        """`load` is called before the encoders run: ComfyUI moves weights to the device when they are needed."""
        super().__init__(backbone, encoders)
        self._load = load

    def encode(self, prompts: Sequence[PromptLayout], vectors: Mapping[str, Tensor] | None) -> Conditioning:
        """Encode B prompts with learned vectors, encoder -> `(B, P, D)`; see `PromptEncoding.encode`."""
        self._load()
        with torch.autocast(self.device.type, enabled=False):
            return super().encode(prompts, vectors)

    def word_vectors(self, words: str) -> dict[str, Tensor]:
        """Embedding rows of plain words, encoder -> `(n, D)`."""
        self._load()
        return super().word_vectors(words)


ComfyEncoder = ComfyTextEncoder | ComfyT5Encoder


def text_encoders(clip: Clip) -> dict[str, ComfyEncoder]:
    """Text encoders of a CLIP by name (clip_l, clip_g, clip_h, t5xxl), in the order in which their states are joined.

    Raises:
        BestiaryError: the CLIP is not one of Stable Diffusion's or Flux's.
    """
    stage = clip.cond_stage_model
    held = {
        name: (getattr(stage, name), getattr(clip.tokenizer, name))
        for name in ("clip_l", "clip_h", "clip_g", "t5xxl")
        if getattr(stage, name, None) is not None and hasattr(clip.tokenizer, name)
    }
    # T5 alone belongs to models that are not trained here
    if not held or (held.keys() == {"t5xxl"} and not hasattr(stage, "clip_l")):
        raise BestiaryError(
            f"this CLIP is a {type(stage).__name__}: connect the CLIP of a Stable Diffusion 1.5, 2 or XL checkpoint, of Stable Diffusion 3 or "
            "Flux.1, or of a demo model"
        )
    device = device_of(clip)
    return {
        name: ComfyT5Encoder(*pair, device) if name == "t5xxl" else ComfyTextEncoder(*pair, clip.layer_idx, device)
        for name, pair in held.items()
    }


def device_of(clip: Clip) -> torch.device:
    """Where a CLIP computes."""
    return torch.device(clip.patcher.load_device)


def _read_layer(encoder: ClipTextEncoder, clip_skip: int | None) -> int | None:
    """Number of the layer whose states are read, None for the last one with the final norm."""
    # versions of ComfyUI differ in what they make of too great a skip: the encoder itself is asked, on a copy of its settings
    asked = copy.copy(encoder)
    asked.reset_clip_options()
    if clip_skip is not None:
        asked.set_clip_options({"layer": clip_skip})
    name_device(asked)
    if asked.layer not in ("last", "hidden"):
        raise BestiaryError(
            f"this CLIP reads the layers {asked.layer!r}: connect it without a node that chooses layers"
        )
    return asked.layer_idx if asked.layer == "hidden" else None


def _out_of_place(layer: Any, hidden: Tensor) -> Tensor:
    """One pre-norm transformer layer on `(N, L, D)`."""
    hidden = hidden + layer.self_attn(layer.layer_norm1(hidden), None, _causal_attention)
    return hidden + layer.mlp(layer.layer_norm2(hidden))


def _causal_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Fused causal attention of `(N, L, D)` each, in the form in which ComfyUI's layers call it."""
    n, length, width = q.shape
    q, k, v = (x.view(n, length, heads, width // heads).transpose(1, 2) for x in (q, k, v))  # (N, H, L, D / H)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return mixed.transpose(1, 2).reshape(n, length, width)  # (N, L, D)


def _biased_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Fused attention of `(N, L, H * d)` each with a bias of positions `(1, H, L, L)`, in the form in which ComfyUI's T5 calls it."""
    n, length, width = q.shape
    q, k, v = (x.view(n, length, heads, width // heads).transpose(1, 2) for x in (q, k, v))  # (N, H, L, d)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return mixed.transpose(1, 2).reshape(n, length, width)
