"""What hangs on the modules of SD3 and Flux while we compute: attention that can be asked for columns, adapters, recomputed blocks.

Flux adds to its streams in place, which a backward pass forbids: its norms get a copy of their input, and a block that is computed again a copy of its streams.
Letters: B batch, H heads, T = L + N rows of text and image, D width of a token, I and O widths of a layer, d of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...concepts.denoiser.adapters import Adapters, adapted_output
from ...concepts.denoiser.low_rank import LowRankUpdate
from ...concepts.errors import BestiaryError
from ...trainer.learning.denoiser.attention_capture import AttentionCapture, attend
from .forward_overrides import Forward, ForwardOverrides
from .patched_network import NetworkHooks
from .trainable_weights import cast_layer, needs_cast
from .transformer_layers import LayerPlace, TransformerLayers

OVERRIDE = "optimized_attention_override"
"""ComfyUI's key for a function that is asked instead of its attention."""
OPTIONS = "transformer_options"
_NORMS = ("img_norm1", "img_norm2", "txt_norm1", "txt_norm2", "pre_norm")
"""Norms of Flux's blocks whose input is written over afterwards."""
_STREAMS = ("img", "txt", "x")
"""Names under which Flux's blocks are given what they write into."""


class TransformerHooks(NetworkHooks):
    """Adapters of one transformer and the forward functions that use them."""

    def __init__(self, layers: TransformerLayers, device: Callable[[], torch.device], prefix: str) -> None:
        """Nothing is attached; `device` is where the transformer computes, `prefix` stands before its layers in LoRA files."""
        super().__init__(Adapters(layers.linear, layers.attention_projections, device, prefix=prefix))
        self._layers = layers

    def put_on(self, overrides: ForwardOverrides) -> None:
        """Hang everything on the modules: blocks, norms that keep a copy of their input, and layers with adapters."""
        for name, block in self._layers.blocks.items():
            overrides.put(block, lambda forward, n=name: partial(self._block, n, forward))
            for norm in (getattr(block, own) for own in _NORMS if hasattr(block, own)):
                overrides.put(norm, lambda forward: partial(_of_a_copy, forward))
        for module, pieces in self._pieces().items():
            overrides.put(module, lambda forward, m=module, own=pieces: partial(self._adapted, m, own, forward))

    def _block(self, name: str, original: Forward, *args: Any, **options: Any) -> Any:
        """A block whose attention is ours; with `recompute` it keeps its inputs only."""
        given = dict(options.get(OPTIONS) or {})
        options = {**options, OPTIONS: {**given, OVERRIDE: partial(self._attend, f"{name}.attn")}}
        if not (self.recompute and torch.is_grad_enabled()):
            return original(*args, **options)
        capture = self._capture

        def run() -> Any:
            before, self._capture = self._capture, capture
            try:
                # the streams as they were: the block writes into them each time that it runs
                fresh = {key: _copied(value) if key in _STREAMS else value for key, value in options.items()}
                return original(*map(_copied, args), **fresh)
            finally:
                self._capture = before

        # nothing in the network draws random numbers, but patches of other nodes may
        return checkpoint(run, use_reentrant=False, preserve_rng_state=bool(given.get("patches")))

    def _attend(
        self,
        layer: str,
        original: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        attn_precision: Any = None,
        skip_reshape: bool = False,
        skip_output_reshape: bool = False,
        **options: Any,
    ) -> Tensor:
        """Fused attention in ComfyUI's form: of `(B, T, H * d)`, or `(B, H, T, d)` with `skip_reshape`, to `(B, T, H * d)`."""
        if not skip_reshape:
            q, k, v = (x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2) for x in (q, k, v))  # (B, H, T, d)
        capture = self._capture if self._capture is not None and layer in self._capture.grids else None
        # blocks of SD3.5 medium also have an attention of the image to itself, which shows no text
        if capture is not None and q.shape[2] == _tokens(capture, layer):
            capture = None
        if capture is not None:
            self._check_rows(layer, q, mask, capture)
        mixed = attend(q, k, v, q.shape[-1] ** -0.5, layer, capture, mask)  # (B, H, T, d)
        if skip_output_reshape:
            return mixed
        return mixed.transpose(1, 2).flatten(2)  # (B, T, H * d)

    def _check_rows(self, layer: str, q: Tensor, mask: Tensor | None, capture: AttentionCapture) -> None:
        text = 0 if capture.keys is None else capture.keys.text
        if mask is not None or q.shape[2] != text + _tokens(capture, layer):
            raise BestiaryError(
                f"another pack changes the attention of {layer} (a mask, reference pictures, or {q.shape[2]} rows in place of "
                f"{text + _tokens(capture, layer)}), so that nobody can say where a part looks: train with the MODEL from before it"
            )

    def _pieces(self) -> dict[nn.Linear, dict[str, LayerPlace]]:
        """Modules with the layers that lie in each."""
        found: dict[nn.Linear, dict[str, LayerPlace]] = {}
        for name, place in self._layers.places.items():
            found.setdefault(place.module, {})[name] = place
        return found

    def _adapted(self, module: nn.Linear, pieces: Mapping[str, LayerPlace], original: Forward, x: Tensor) -> Tensor:
        """A frozen layer `(..., I)` -> `(..., O)` with the adapters of its slices; without any it is the layer itself, bit by bit."""
        needs = needs_cast(module, x.device, x.dtype)
        # the frozen product on cast weights is ours where it must be differentiated
        frozen = partial(cast_layer, layer=module) if needs and torch.is_grad_enabled() else original
        updates = {name: self.adapters.of(name) for name in pieces}
        if len(pieces) == 1 and next(iter(pieces.values())).size is None:
            return adapted_output(x, module, next(iter(updates.values())), frozen, shares_step=not needs)
        out = frozen(x)  # (..., O)
        if not any(updates.values()):
            return out
        return torch.cat(list(_slices(x, out, pieces, updates)), dim=-1)


def _slices(
    x: Tensor, out: Tensor, pieces: Mapping[str, LayerPlace], updates: Mapping[str, Sequence[LowRankUpdate]]
) -> Iterator[Tensor]:
    """Slices of an output `(..., O)` in their order, each with its adapters; what lies between them as it is."""
    end = 0
    for name, place in sorted(pieces.items(), key=lambda piece: piece[1].start):
        size = out.shape[-1] if place.size is None else place.size
        if place.start > end:
            yield out[..., end : place.start]
        end = place.start + size
        own = out[..., place.start : end]
        for update in updates[name]:
            inner = nn.functional.linear(x, update.down.to(x.dtype))  # (..., r)
            own = own + nn.functional.linear(inner, update.up.to(x.dtype)) * update.scale
        yield own
    if end < out.shape[-1]:
        yield out[..., end:]


def _tokens(capture: AttentionCapture, layer: str) -> int:
    height, width = capture.grids[layer]
    return height * width


def _of_a_copy(original: Forward, x: Tensor) -> Tensor:
    """A norm that keeps a copy of its input `(B, T, D)` for the backward pass, since the block writes over the input itself."""
    return original(x.clone() if torch.is_grad_enabled() else x)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
