"""Text encoders and tokenizers of transformers, as prompts with learned vectors need them.

The encoders are run layer by layer from their weights, because transformers 5 takes no input embeddings; this also
keeps attention fused, stops at the layer that is read and never waits for the device. Letters: N chunks, L positions of a
chunk, D width of an encoder.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5EncoderModel

from ...concepts.denoiser.backbone import Backbone, TextEncoderSpec
from ..learning.denoiser.prompt_encoding import ClipStates, PromptEncoding

Projection = Callable[[Tensor], Tensor]
"""A layer that takes and gives `(N, L, D)`."""


class ClipAttention(Protocol):
    """What is used of the attention of a layer."""

    q_proj: Projection
    k_proj: Projection
    v_proj: Projection
    out_proj: Projection


class ClipLayer(Protocol):
    """What is used of a layer of a CLIP text model."""

    layer_norm1: Projection
    self_attn: ClipAttention
    layer_norm2: Projection
    mlp: Projection


class ClipLayers(Protocol):
    """The layers of a CLIP text model."""

    layers: Iterable[ClipLayer]


class ClipCore(Protocol):
    """What is used of a CLIP text model without its projection."""

    embeddings: Any
    """Holds `position_embedding`."""
    encoder: ClipLayers
    config: Any
    """Its sizes."""
    final_layer_norm: Projection


class Tokenizer(Protocol):
    """What is used of a tokenizer of transformers."""

    bos_token_id: Any
    eos_token_id: Any
    pad_token_id: Any
    unk_token_id: Any

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> Any:
        """A mapping with `input_ids`."""
        ...


def run_clip(model: nn.Module, embeddings: Tensor, spec: TextEncoderSpec, end_places: Tensor) -> ClipStates:
    """Run a CLIP text model from token embeddings `(N, L, D)`, positions not yet added.

    `end_places` `(N,)` long says where each chunk's end token stands; the pooled vector is read there, whatever ids
    stand elsewhere. Equal to transformers' CLIPTextModel (Radford et al. 2021) for ids without learned vectors.
    """
    core = cast(ClipCore, getattr(model, "text_model", model))
    length = embeddings.shape[1]
    positions: Tensor = core.embeddings.position_embedding.weight[:length]  # (L, D)
    hidden = embeddings + positions  # (N, L, D)
    # the last layer is run only where something reads it
    layers = list(core.encoder.layers)
    heads = core.config.num_attention_heads
    for layer in layers[:-1]:
        hidden = _clip_layer(layer, hidden, heads)
    if spec.output == "penultimate" and not spec.pooled:
        return ClipStates(hidden, None)
    final = core.final_layer_norm(_clip_layer(layers[-1], hidden, heads))  # (N, L, D)
    pooled = None
    # by place, not by id: the largest id, which older code looks for, may belong to something else
    if spec.pooled:
        places = end_places.view(-1, 1, 1).expand(-1, 1, final.shape[-1])  # (N, 1, D)
        pooled = final.gather(1, places).squeeze(1)  # (N, D)
    if pooled is not None and spec.projected:
        pooled = model.get_submodule("text_projection")(pooled)  # (N, D_pooled)
    return ClipStates(final if spec.output == "final" else hidden, pooled)


def _clip_layer(layer: ClipLayer, hidden: Tensor, heads: int) -> Tensor:
    """One pre-norm transformer layer with causal attention on `(N, L, D)`."""
    # attention: from each position to those before it
    n, length, width = hidden.shape
    normed = layer.layer_norm1(hidden)
    attention = layer.self_attn
    q, k, v = (
        projection(normed).view(n, length, heads, width // heads).transpose(1, 2)  # (N, H, L, D / H)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    hidden = hidden + attention.out_proj(mixed.transpose(1, 2).reshape(n, length, width))  # (N, L, D)
    return hidden + layer.mlp(layer.layer_norm2(hidden))


class TransformersEncoder:
    """One text encoder of transformers with its tokenizer."""

    def __init__(self, tokenizer: Tokenizer, model: nn.Module) -> None:
        """Transformers' own objects."""
        self._tokenizer, self._model = tokenizer, model
        self.start, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad = self.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        # byte-level vocabularies know everything and name their end token here
        self.unknown = None if tokenizer.unk_token_id in (self.start, self.end) else tokenizer.unk_token_id

    @property
    def device(self) -> torch.device:
        """Where the encoder runs."""
        return self._table.device

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of a text without start and end token."""
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings `(B, L, D)` of ids `(B, L)` in the encoder's dtype."""
        return F.embedding(ids, self._table)

    @property
    def _table(self) -> Tensor:
        """Token embeddings `(V, D)`; read anew each time, since a model may be moved."""
        embedding: nn.Embedding = cast(Any, self._model).get_input_embeddings()
        return embedding.weight

    def run(self, embeddings: Tensor, spec: TextEncoderSpec, end_places: Tensor) -> ClipStates:
        """States `(N, L, D)` of embeddings `(N, L, D)`; see `run_clip`."""
        return run_clip(self._model, embeddings, spec, end_places)


class T5Encoder(TransformersEncoder):
    """A T5 encoder of transformers with its tokenizer; padding is seen, as in ComfyUI and diffusers."""

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of a text; spaces at its ends, which T5 would give a token, give none, as in ComfyUI."""
        return super().plain_ids(text.strip()) if text.strip() else []

    def run(self, embeddings: Tensor, spec: TextEncoderSpec, end_places: Tensor) -> ClipStates:
        """States `(N, L, D)` of embeddings `(N, L, D)`, after the last norm; T5 has no pooled vector."""
        return ClipStates(self._model(inputs_embeds=embeddings, return_dict=False)[0], None)


class TextEncoders(PromptEncoding):
    """The frozen text encoders of one backbone with their tokenizers, by transformers."""

    def __init__(
        self, backbone: Backbone, tokenizers: Mapping[str, Tokenizer], models: Mapping[str, nn.Module]
    ) -> None:
        """`tokenizers` and `models` by encoder name, transformers' own objects; encoders may be missing."""
        self.tokenizers = dict(tokenizers)
        self.models = dict(models)
        for model in self.models.values():
            model.eval().requires_grad_(False)
        encoders = {
            name: (T5Encoder if isinstance(model, T5EncoderModel) else TransformersEncoder)(
                self.tokenizers[name], model
            )
            for name, model in self.models.items()
        }
        super().__init__(backbone, encoders)
