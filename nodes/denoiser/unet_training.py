"""What hangs on a UNet's modules while we compute: attention that can be asked for columns, adapters, recomputed blocks.

Letters: B batch, N places of a grid, L context tokens, D width, I and O widths of a layer, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...concepts.denoiser.denoiser import LoraSpec
from ...concepts.denoiser.lora_names import ALPHA, DOWN, UNET_PREFIX, UP, resolve_lora
from ...concepts.denoiser.low_rank import LowRankUpdate, fresh_update, low_rank_linear
from ...concepts.errors import BestiaryError
from ...trainer.learning.denoiser.attention_capture import AttentionCapture, attend, split_heads
from .forward_overrides import Forward, ForwardOverrides
from .trainable_weights import cast_layer, needs_cast
from .unet_layers import UnetLayers


class UnetHooks:
    """Adapters of one UNet and the forward functions that use them."""

    def __init__(self, layers: UnetLayers, device: torch.device, dtype: torch.dtype) -> None:
        """Nothing is attached; `device` and `dtype` are those in which the UNet computes."""
        self._layers, self._device, self._dtype = layers, device, dtype
        self._trained: dict[str, LowRankUpdate] = {}
        self._loaded: dict[str, list[LowRankUpdate]] = {}
        self._capture: AttentionCapture | None = None
        self.recompute = False
        """Compute attention and residual blocks again in the backward pass instead of keeping their activations."""

    # adapters

    def add_lora(self, spec: LoraSpec) -> dict[str, nn.Parameter]:
        """Attach fresh adapters to the attention projections; parameters by kohya name, down `(r, I)` and up `(O, r)`.

        Raises:
            BestiaryError: trainable adapters are attached already, or the rank is below 1.
        """
        if self._trained:
            raise BestiaryError("the denoiser has trainable adapters already: unload them first")
        if spec.rank < 1:
            raise BestiaryError(f"LoRA rank is {spec.rank}: it must be at least 1")
        # in the order in which diffusers makes layers, so that a seed gives the same adapters
        for name, layer in self._layers.attention_projections(spec.self_attention).items():
            self._trained[name] = fresh_update(layer, spec, self._device)
        named: dict[str, nn.Parameter] = {}
        for name, update in self._trained.items():
            named[_kohya(name) + DOWN] = update.down
            named[_kohya(name) + UP] = update.up
        return named

    def lora_tensors(self) -> dict[str, Tensor]:
        """The trainable adapters as float32 CPU tensors under kohya names: `(r, I)`, `(O, r)` and the scalar alpha."""
        exported: dict[str, Tensor] = {}
        for name, update in self._trained.items():
            exported[_kohya(name) + DOWN] = update.down.detach().float().cpu().clone()
            exported[_kohya(name) + UP] = update.up.detach().float().cpu().clone()
            exported[_kohya(name) + ALPHA] = torch.tensor(update.scale * update.down.shape[0])
        return exported

    def load_lora(self, tensors: Mapping[str, Tensor], strength: float) -> int:
        """Add frozen adapters and return the number of layers reached; strength 0 attaches nothing.

        Raises:
            BestiaryError: no layer of this UNet is named, or a shape does not fit.
        """
        layers = resolve_lora(tensors, self._layers.linear)
        updates: dict[str, LowRankUpdate] = {}
        # every layer is checked before the first is attached, so a fault changes nothing
        for name, layer in layers.items():
            # some files keep linear layers as 1 x 1 convolutions
            weight = self._layers.linear[name].weight
            down, up = (t.flatten(1) if weight.ndim == 2 else t for t in (layer.down, layer.up))
            if down.shape[1:] != weight.shape[1:] or up.shape[:2] != (weight.shape[0], down.shape[0]):
                raise BestiaryError(
                    f"LoRA layer {name}: down {tuple(down.shape)} and up {tuple(up.shape)} do not fit a layer of shape "
                    f"{tuple(weight.shape)}: this LoRA was trained for another base model"
                )
            place = {"device": self._device, "dtype": torch.float32}
            scale = strength * layer.scale
            updates[name] = LowRankUpdate(down.detach().to(**place), up.detach().to(**place), scale, trainable=False)
        for name, update in updates.items() if strength else ():
            self._loaded.setdefault(name, []).append(update)
        return len(updates)

    def unload_lora(self) -> None:
        """Take off all adapters."""
        self._trained.clear()
        self._loaded.clear()

    # forward functions

    def put_on(self, overrides: ForwardOverrides) -> None:
        """Hang everything on the modules; adapters and `recompute` may still change afterwards."""
        for name, attention in self._layers.attention.items():
            overrides.put(attention, lambda forward, n=name, a=attention: partial(self._attend, n, a, forward))
        # loaded adapters may sit on any layer, trained ones on the projections; casts happen where weights are elsewhere
        for name, layer in self._layers.linear.items():
            overrides.put(layer, lambda forward, n=name, m=layer: partial(self._adapted, n, m, forward))
        for block in self._recomputed_blocks():
            overrides.put(block, lambda forward: partial(self._recomputed, forward))

    @contextmanager
    def reading(self, capture: AttentionCapture | None) -> Iterator[None]:
        """Collect attention columns into `capture` as long as the context lasts, and not in a later backward pass."""
        self._capture = capture
        try:
            yield
        finally:
            self._capture = None
            if capture is not None:
                capture.open = False

    def _attend(
        self,
        name: str,
        layer: nn.Module,
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

    def _adapted(self, name: str, layer: nn.Module, original: Forward, x: Tensor) -> Tensor:
        """A frozen layer `(..., I)` -> `(..., O)` with its adapters; without any it is the layer itself, bit by bit."""
        updates = [*self._loaded.get(name, ()), *([self._trained[name]] if name in self._trained else ())]
        first = None
        # the frozen product: on cast weights, together with one adapter, or as the layer does it
        if torch.is_grad_enabled() and needs_cast(layer, x.device, x.dtype):
            out = cast_layer(x, layer)
        elif updates and isinstance(layer, nn.Linear) and not needs_cast(layer, x.device, x.dtype):
            # the last adapter shares its step with the frozen product
            first = updates.pop()
            out = low_rank_linear(x, layer.weight, layer.bias, first)
        else:
            out = original(x)
        for update in updates:
            out = out + _update(x, layer, update)
        return out

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
                found += list(block.transformer_blocks)
            elif ".resnets." in name:
                found.append(block)
        return found


def _rows_like(x: Tensor, keys: Tensor) -> Tensor:
    """Keys or values `(B, L, D)` in as many rows as the queries `(R, N, D)` have: ComfyUI's attention cuts them so for tiles."""
    return keys if len(keys) == len(x) else keys.reshape(len(x), -1, keys.shape[-1])


def _update(x: Tensor, layer: nn.Module, update: LowRankUpdate) -> Tensor:
    """What one adapter adds, `(..., O)` or `(B, O, h, w)`: down to r channels, up to O, scaled."""
    down, up = update.down.to(x.dtype), update.up.to(x.dtype)
    if isinstance(layer, nn.Linear):
        return F.linear(F.linear(x, down), up) * update.scale
    inner = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)  # (B, r, h, w)
    return F.conv2d(inner, up) * update.scale


def _kohya(name: str) -> str:
    return UNET_PREFIX + name.replace(".", "_")
