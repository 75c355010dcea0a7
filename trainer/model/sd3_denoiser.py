"""Stable Diffusion 3 and 3.5 over diffusers' SD3Transformer2DModel: what of this family differs from other transformers.

Latents enter as they are, time as 1000 sigma, text stands behind the image in joint attention. Blocks of 3.5 medium also have an attention of
the image to itself (`attn2`), which shows no text. The last block gives no text: its text rows have no output projection.
Letters: B batch, H heads, N image tokens, L text tokens, T = N + L, D width of a token, d of a head.
"""

from typing import Any

import torch
from torch import Tensor

from ...concepts.denoiser.denoiser import Conditioning
from ...concepts.denoiser.process import FlowProcess
from ..learning.denoiser.attention_capture import AttentionCapture, attend, split_heads
from .denoiser_lora import AttentionLayers
from .transformer_network import ReadAttention, TransformerDenoiser, TransformerNetwork, refuse_other_processors

TIME_SCALE = 1000
"""The network receives 1000 sigma as its time."""
READ_BLOCK = 9 / 24
"""Share of the depth at which words are grounded best: block 9 of the 24 of 3.0 medium (Seg4Diff, arXiv 2509.18096)."""
SHIFT = 3.0
"""Of the published models."""
SD3_LAYERS = AttentionLayers(
    (".attn.to_", ".attn.add_", ".attn2.to_"),
    (".attn.to_q", ".attn.to_out.0", ".attn.add_k_proj", ".attn.add_v_proj"),
)


class SD3Network(TransformerNetwork):
    """An SD3Transformer2DModel as a `Network`."""

    text_first = False
    attention = SD3_LAYERS

    def method_layers(self) -> tuple[str, ...]:
        """One middle block."""
        names = self._attention_names()
        return (names[int(READ_BLOCK * len(names))],)

    def _install(self) -> None:
        layers = dict(self.transformer.named_modules())
        layers = {name: layer for name, layer in layers.items() if name.endswith((".attn", ".attn2"))}
        refuse_other_processors(layers, ("JointAttnProcessor2_0", "SD3Attention"))
        for name, layer in layers.items():
            layer.set_processor(SD3Attention(name))

    def _attention_names(self) -> list[str]:
        return [f"transformer_blocks.{number}.attn" for number in range(len(self.transformer.transformer_blocks))]

    def _image_tokens(self, output: Any) -> Tensor:
        return output[1]  # (B, N, D), behind the text

    def _evaluate(self, latents: Tensor, sigma: Tensor, text: Conditioning, options: dict[str, Any] | None) -> Tensor:
        return self.transformer(
            latents,
            encoder_hidden_states=text.context.to(self.device, self.dtype),
            pooled_projections=self._pooled(text),
            timestep=sigma * TIME_SCALE,
            joint_attention_kwargs=options,
            return_dict=False,
        )[0]


class SD3Denoiser(TransformerDenoiser):
    """Stable Diffusion 3 or 3.5."""

    family = SD3Network
    published = FlowProcess(SHIFT, draw="logit_normal")


class SD3Attention(ReadAttention):
    """Same operations as diffusers' JointAttnProcessor2_0; outputs are bit-equal."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        capture: AttentionCapture | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Image `(B, N, D)` and text `(B, L, D)`, or the image alone, attend to themselves; called by diffusers."""
        image = [split_heads(layer(hidden_states), attn.heads) for layer in (attn.to_q, attn.to_k, attn.to_v)]
        q, k, v = _normed(image, attn.norm_q, attn.norm_k)  # (B, H, N, d) each
        if encoder_hidden_states is not None:
            projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            text = [split_heads(layer(encoder_hidden_states), attn.heads) for layer in projections]
            text = _normed(text, attn.norm_added_q, attn.norm_added_k)  # (B, H, L, d) each
            q, k, v = (torch.cat(pair, dim=2) for pair in zip((q, k, v), text, strict=True))  # (B, H, T, d)
        mixed = attend(q, k, v, q.shape[-1] ** -0.5, self.layer, capture)  # (B, H, T, d)
        mixed = mixed.transpose(1, 2).flatten(2)  # (B, T, D)
        tokens = hidden_states.shape[1]
        output = attn.to_out[1](attn.to_out[0](mixed[:, :tokens]))  # (B, N, D)
        if encoder_hidden_states is None:
            return output
        rest = mixed[:, tokens:]  # (B, L, D)
        return output, rest if attn.context_pre_only else attn.to_add_out(rest)


def _normed(parts: list[Tensor], norm_q: Any, norm_k: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `(B, H, N, d)`, the first two after their norms where a model has them."""
    q, k, v = parts
    return (q if norm_q is None else norm_q(q)), (k if norm_k is None else norm_k(k)), v
