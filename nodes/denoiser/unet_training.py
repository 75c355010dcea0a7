"""What hangs on a UNet's modules while we compute: attention that can be asked for columns, adapters, recomputed blocks.

Letters: B batch, N places of a grid, L context tokens, D width, I and O widths of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...concepts.denoiser.adapters import Adapters, adapted_output
from ...concepts.errors import BestiaryError
from ...trainer.learning.denoiser.attention_capture import attend, split_heads
from .forward_overrides import Forward, ForwardOverrides
from .patched_network import NetworkHooks
from .trainable_weights import cast_layer, needs_cast
from .unet_layers import UnetLayers


class AttentionLayer(Protocol):
    """What is used of an attention layer of ComfyUI."""

    heads: int
    dim_head: int
    to_q: Callable[[Tensor], Tensor]
    to_k: Callable[[Tensor], Tensor]
    to_v: Callable[[Tensor], Tensor]
    to_out: Callable[[Tensor], Tensor]


class UnetHooks(NetworkHooks):
    """Adapters of one UNet and the forward functions that use them."""

    def __init__(self, layers: UnetLayers, device: Callable[[], torch.device]) -> None:
        """Nothing is attached; `device` is where the UNet computes."""
        super().__init__(Adapters(layers.linear, layers.attention_projections, device))
        self._layers = layers

    # forward functions

    def put_on(self, overrides: ForwardOverrides) -> None:
        """Hang everything on the modules; attention and residual blocks are those that may be computed again."""
        for name, attention in self._layers.attention.items():
            layer = cast(AttentionLayer, attention)
            overrides.put(attention, lambda forward, n=name, a=layer: partial(self._attend, n, a, forward))
        # loaded adapters may sit on any layer, trained ones on the projections; casts happen where weights are elsewhere
        for name, linear in self._layers.linear.items():
            overrides.put(linear, lambda forward, n=name, m=linear: partial(self._adapted, n, m, forward))
        for block in self._recomputed_blocks():
            overrides.put(block, lambda forward: partial(self._recomputed, forward))

    def _attend(
        self,
        name: str,
        layer: AttentionLayer,
        original: Forward,
        x: Tensor,
        context: Tensor | None = None,
        value: Tensor | None = None,
        mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Fused attention from `(B, N, D)` to itself or to a context `(B, L, E)`, differentiable on every device."""
        # a mask means another kind of attention than ours: the layer's own does it
        if mask is not None:
            return original(x, context=context, value=value, mask=mask, **options)
        source = x if context is None else context
        grid = self._capture.grids.get(name) if self._capture is not None else None
        if grid is not None and (x.shape[0] != source.shape[0] or x.shape[1] != grid[0] * grid[1]):
            raise BestiaryError(
                f"another pack hands the cross-attention {name} its queries in pieces of {x.shape[1]} places instead of "
                f"{grid[0]} x {grid[1]}, so that nobody can say where a part looks: train with the MODEL from before it"
            )
        q = split_heads(layer.to_q(x), layer.heads)  # (B, H, N, d)
        k = split_heads(_rows_like(x, layer.to_k(source)), layer.heads)  # (B, H, L, d)
        v = split_heads(_rows_like(x, layer.to_v(source if value is None else value)), layer.heads)
        mixed = attend(q, k, v, layer.dim_head**-0.5, name, self._capture)  # (B, H, N, d)
        b, heads, n, width = mixed.shape
        return layer.to_out(mixed.transpose(1, 2).reshape(b, n, heads * width))  # (B, N, D)

    def _adapted(self, name: str, layer: nn.Linear | nn.Conv2d, original: Forward, x: Tensor) -> Tensor:
        """A frozen layer `(..., I)` -> `(..., O)` with its adapters; without any it is the layer itself, bit by bit."""
        needs = needs_cast(layer, x.device, x.dtype)
        # the frozen product on cast weights is ours where it must be differentiated
        frozen = partial(cast_layer, layer=layer) if needs and torch.is_grad_enabled() else original
        return adapted_output(x, layer, self.adapters.of(name), frozen, shares_step=not needs)

    def _recomputed(self, original: Forward, *args: Any, **options: Any) -> Tensor:
        """A block that keeps its inputs only; dictionaries are as they were at the forward pass when it runs again."""
        if not (self.recompute and torch.is_grad_enabled()):
            return original(*args, **options)
        capture = self._capture
        # copies, since the UNet writes into its dictionaries after this block has run
        args = tuple(dict(value) if isinstance(value, dict) else value for value in args)
        options = {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}

        def run(*inputs: Any) -> Tensor:
            before, self._capture = self._capture, capture
            try:
                fresh = {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}
                return original(*(dict(value) if isinstance(value, dict) else value for value in inputs), **fresh)
            finally:
                self._capture = before

        # nothing in the denoiser draws random numbers, but patches of other nodes may, as HyperTile does for its tiles
        given = [value for value in (*args, *options.values()) if isinstance(value, dict)]
        is_patched = any(value.get("patches") for value in given)
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=is_patched)

    def _recomputed_blocks(self) -> list[nn.Module]:
        """Transformer blocks and residual layers: the grain at which diffusers recomputes too."""
        found: list[nn.Module] = []
        # an attention layer holds several transformer blocks
        for name, block in self._layers.blocks.items():
            if ".attentions." in name:
                found += block.get_submodule("transformer_blocks").children()
            elif ".resnets." in name:
                found.append(block)
        return found


def _rows_like(x: Tensor, keys: Tensor) -> Tensor:
    """Keys or values `(B, L, D)` in as many rows as the queries `(R, N, D)` have: ComfyUI's attention cuts them so for tiles."""
    return keys if len(keys) == len(x) else keys.reshape(len(x), -1, keys.shape[-1])
