"""Prompts that tell every cross-attention layer something else (P+, XTI: arXiv 2303.09522; NeTI: arXiv 2305.15391).

The contexts of all layers stand side by side in the channels of one conditioning, `(1, T, L * E)`, and a hook that the
conditioning carries along gives each layer its own. Without that hook the UNet cannot multiply a tensor so wide: an error,
never a silently wrong picture. Letters: T tokens, L cross-attention layers, E width of a context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..concepts.errors import BestiaryError

if TYPE_CHECKING:
    from comfy.hooks import HookGroup

HOOK_KEY = "bestiary_layers"
CONTROLNET_KEY = "cross_attn_controlnet"
"""Where ComfyUI looks for what a ControlNet is told instead."""

Block = tuple[str, int]
"""ComfyUI's name of a UNet block: ("input", 1), ("middle", 0), ("output", 11)."""


@dataclass(frozen=True)
class LayerPacking:
    """How the contexts of the layers lie in a packed conditioning."""

    layers: int
    """L."""
    width: int
    """E."""
    has_values: bool
    """Contexts for values follow those for keys."""

    @property
    def packed_width(self) -> int:
        """Channels of a packed conditioning."""
        return self.layers * self.width * (2 if self.has_values else 1)

    def context(self, packed: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """What keys and values of one layer read, `(B, T, E)` each, of a packed `(B, T, packed_width)`."""
        # keys of all layers first, then the values of all layers
        begin = layer * self.width
        keys = packed[..., begin : begin + self.width]
        begin += self.layers * self.width
        return keys, packed[..., begin : begin + self.width] if self.has_values else keys


def pack_layers(keys: Sequence[Tensor], values: Sequence[Tensor] | None) -> tuple[Tensor, LayerPacking]:
    """One tensor `(1, T, packed_width)` of the contexts `(1, T, E)` of all layers, and how it is read.

    Raises:
        BestiaryError: the layers have contexts of different lengths.
    """
    lengths = sorted({one.shape[1] for one in (*keys, *(values or ()))})
    if len(lengths) > 1:
        raise BestiaryError(f"the layers of a prompt have {lengths} tokens: their texts must be equally long")
    packed = torch.cat([*keys, *(values or ())], dim=-1)  # (1, T, packed_width)
    return packed, LayerPacking(len(keys), keys[0].shape[-1], values is not None)


def packing_hooks(packing: LayerPacking) -> HookGroup:
    """What a conditioning packed so carries along; positive and negative must share the same object to share a batch.

    Raises:
        BestiaryError: this ComfyUI cannot attach hooks to a conditioning.
    """
    try:
        from comfy.hooks import EnumHookScope, HookGroup, TransformerOptionsHook
        from comfy.patcher_extension import WrappersMP
    except ImportError as fault:
        raise BestiaryError(
            f"this ComfyUI is too old for prompts with vectors per cross-attention layer ({fault}): update it to 0.3.64 "
            "or newer, or import the file with one vector for all layers"
        ) from fault
    # ComfyUI gives the wrapper to evaluations of prompts that carry the hook, and to no others
    wrappers = {WrappersMP.DIFFUSION_MODEL: {HOOK_KEY: [partial(_with_own_contexts, packing)]}}
    group = HookGroup()
    group.add(TransformerOptionsHook({"wrappers": wrappers}, hook_scope=EnumHookScope.HookedOnly))
    return group


def attention_blocks(unet: nn.Module) -> list[Block]:
    """The blocks of a UNet that read the text `(B, T, E)`, in the order in which they run: the layers of P+."""
    places: list[Block] = []
    parts = (("input", "input_blocks"), ("middle", "middle_block"), ("output", "output_blocks"))
    for part, attribute in parts:
        modules = getattr(unet, attribute, None)
        if modules is None:
            continue
        # the middle is one block, the others are lists of them
        blocks = [modules] if part == "middle" else list(modules)
        places += [(part, number) for number, block in enumerate(blocks) if _reads_text(block)]
    return places


def _reads_text(block: nn.Module) -> bool:
    from comfy.ldm.modules.attention import SpatialTransformer

    return any(isinstance(module, SpatialTransformer) for module in block.children())


def _with_own_contexts(
    packing: LayerPacking,
    executor: Callable[..., Tensor],
    x: Tensor,
    timesteps: Tensor | None = None,
    context: Tensor | None = None,
    y: Tensor | None = None,
    control: object = None,
    transformer_options: Mapping[str, object] | None = None,
    **options: object,
) -> Tensor:
    """Wrapper of one call of the UNet on packed prompts `(B, T, packed_width)`: each layer gets its own context."""
    layer_of = {block: layer for layer, block in enumerate(attention_blocks(executor.class_obj))}
    if len(layer_of) != packing.layers:
        raise BestiaryError(
            f"the prompt holds vectors for {packing.layers} cross-attention layers, but this MODEL has {len(layer_of)}: "
            "connect the model the spectrum was learned for, or import its file with one vector for all layers"
        )
    # other nodes may have joined or cut the conditioning: an error, never a silently wrong picture
    if context is None or context.shape[-1] != packing.packed_width:
        width = None if context is None else context.shape[-1]
        raise BestiaryError(
            f"a prompt with {packing.layers} layers of {packing.width} channels has become {width} channels wide: another "
            "node changed it; connect it straight to the sampler"
        )

    def choose(n: Tensor, packed: Tensor, value: Tensor, facts: Mapping[str, object]) -> tuple[Tensor, Tensor, Tensor]:
        """ComfyUI's attn2_patch: keys and values `(B, T, E)` of the layer that asks."""
        return n, *packing.context(packed, layer_of[tuple(facts["block"])])

    # the options of this call alone; patches of other nodes come after and see one layer's context
    outer = dict(transformer_options or {})
    patches = dict(outer.get("patches", {}))
    patches["attn2_patch"] = [choose, *patches.get("attn2_patch", ())]
    return executor(x, timesteps, context, y, control, {**outer, "patches": patches}, **options)
