"""Flux.1 over diffusers' FluxTransformer2DModel: what of this family differs from other transformers.

Latents enter as a sequence of 2 x 2 patches, time as sigma, and guidance as a number where the model was distilled for it. Text stands before the
image: in two streams in the first blocks, in one in the others. Rotary positions are applied to queries and keys after their norms.
Letters: B batch, C channels of latents, h and w their grid, H heads, N image tokens, L text tokens, T = L + N, D width of a token, d of a head.
"""

from dataclasses import replace
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from einops import rearrange
from torch import Tensor

from ...concepts.denoiser.denoiser import Conditioning
from ...concepts.denoiser.process import FlowProcess
from ..learning.denoiser.attention_capture import AttentionCapture, attend, split_heads
from .denoiser_lora import AttentionLayers
from .transformer_network import ReadAttention, TransformerDenoiser, TransformerNetwork, refuse_other_processors

MU = 1.15
"""Shift of dev, as the logarithm that Flux writes."""
GUIDANCE = 1.0
"""Guidance that a distilled model receives where a conditioning has none: in training."""
READ_FROM = 15 / 19
"""Share of the two-stream blocks from which on words are grounded best: the last four of 19."""
FLUX_LAYERS = AttentionLayers(
    (".attn.to_", ".attn.add_"), (".attn.to_q", ".attn.to_out.0", ".attn.add_k_proj", ".attn.add_v_proj")
)


class FluxNetwork(TransformerNetwork):
    """A FluxTransformer2DModel as a `Network`."""

    text_first = True
    attention = FLUX_LAYERS

    def method_layers(self) -> tuple[str, ...]:
        """The last blocks of two streams."""
        names = [name for name in self._attention_names() if name.startswith("transformer_blocks.")]
        return tuple(names[int(READ_FROM * len(names)) :])

    def _install(self) -> None:
        layers = {name: self.transformer.get_submodule(name) for name in self._attention_names()}
        refuse_other_processors(layers, ("FluxAttnProcessor", "FluxAttnProcessor2_0", "FluxAttention"))
        for name, layer in layers.items():
            layer.set_processor(FluxAttention(name))

    def _attention_names(self) -> list[str]:
        return [
            f"{kind}.{number}.attn"
            for kind in ("transformer_blocks", "single_transformer_blocks")
            for number in range(len(getattr(self.transformer, kind)))
        ]

    def _image_tokens(self, output: Any) -> Tensor:
        return output[1]  # (B, N, D), behind the text

    def _evaluate(self, latents: Tensor, sigma: Tensor, text: Conditioning, options: dict[str, Any] | None) -> Tensor:
        rows, columns = self._grid((latents.shape[2], latents.shape[3]))
        context = text.context.to(self.device, self.dtype)  # (B, L, E)
        # channels of a patch: all places of one latent channel side by side
        tokens = rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=self._patch, q=self._patch)
        output: Tensor = self.transformer(
            tokens,
            encoder_hidden_states=context,
            pooled_projections=self._pooled(text),
            timestep=sigma,
            img_ids=self._image_places(rows, columns),
            txt_ids=torch.zeros(context.shape[1], 3, device=self.device),
            guidance=self._guidance(text, len(latents)),
            joint_attention_kwargs=options,
            return_dict=False,
        )[0]  # (B, N, C * patch * patch)
        return rearrange(output, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, w=columns, p=self._patch, q=self._patch)

    @property
    def is_guided(self) -> bool:
        """Whether the transformer has a place for guidance."""
        return bool(self.transformer.config["guidance_embeds"])

    def _image_places(self, rows: int, columns: int) -> Tensor:
        """Rotary positions `(N, 3)` of image tokens: zero, row, column."""
        row, column = torch.meshgrid(
            torch.arange(rows, device=self.device), torch.arange(columns, device=self.device), indexing="ij"
        )
        return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1).float()

    def _guidance(self, text: Conditioning, batch: int) -> Tensor | None:
        """Guidance `(B,)` of a distilled model; None for others, which have no place for it."""
        if not self.is_guided:
            return None
        given = text.extras.get("guidance")
        return torch.full((batch,), GUIDANCE, device=self.device) if given is None else given.to(self.device).float()


class FluxDenoiser(TransformerDenoiser):
    """Flux.1."""

    family = FluxNetwork
    published = replace(FlowProcess.exponential(MU), draw="logit_normal")
    network: FluxNetwork

    @property
    def is_guided(self) -> bool:
        """Whether this one was distilled for guidance: dev is, schnell is not."""
        return self.network.is_guided


class FluxAttention(ReadAttention):
    """Same operations as diffusers' FluxAttnProcessor; outputs are bit-equal."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        capture: AttentionCapture | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Image `(B, N, D)` and text `(B, L, D)`, or both in one stream `(B, T, D)`, attend to themselves; called by diffusers."""
        q, k, v = (split_heads(layer(hidden_states), attn.heads) for layer in (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)  # (B, H, N or T, d)
        if encoder_hidden_states is not None:
            projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            text_q, text_k, text_v = (split_heads(layer(encoder_hidden_states), attn.heads) for layer in projections)
            q = torch.cat([attn.norm_added_q(text_q), q], dim=2)  # (B, H, T, d)
            k, v = torch.cat([attn.norm_added_k(text_k), k], dim=2), torch.cat([text_v, v], dim=2)
        if image_rotary_emb is not None:
            q, k = _rotated(q, image_rotary_emb), _rotated(k, image_rotary_emb)
        mixed = attend(q, k, v, q.shape[-1] ** -0.5, self.layer, capture)  # (B, H, T, d)
        mixed = mixed.transpose(1, 2).flatten(2)  # (B, T, D)
        if encoder_hidden_states is None:
            return mixed
        length = encoder_hidden_states.shape[1]
        output = attn.to_out[1](attn.to_out[0](mixed[:, length:]))  # (B, N, D)
        return output, attn.to_add_out(mixed[:, :length])


_rotated: Any = apply_rotary_emb
"""From `(B, H, T, d)` and positions to the same shape; the library's own annotation says a pair."""
