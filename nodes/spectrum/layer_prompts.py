"""Prompts that tell every cross-attention layer something else (P+, XTI: arXiv 2303.09522; NeTI: arXiv 2305.15391).

The contexts of all layers stand side by side in the channels of one conditioning, `(1, T, L * E)`. Either the MODEL gives
each layer its own (`with_layer_prompts`, a wrapper on a clone), or a hook that the conditioning carries along does: then any
MODEL will do, but where ComfyUI moves weights as they are needed it loads a second copy of the model for conditionings with
hooks. Without both the UNet cannot multiply a tensor so wide: an error, never a silently wrong picture. Letters: T tokens,
L cross-attention layers, E width of a context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...concepts.errors import BestiaryError

if TYPE_CHECKING:
    from comfy.hooks import HookGroup
    from comfy.model_patcher import ModelPatcher

HOOK_KEY = "bestiary_layers"
PACKING_KEY = "bestiary_packing"
"""Key of the options beside a packed conditioning that holds its `LayerPacking`."""
PACKINGS_KEY = "bestiary_packings"
"""Key of a sampling's options that holds the packings of its prompts by their channels."""
DONE_KEY = "bestiary_layers_told"
"""Key of a call's options: its contexts have been taken apart."""
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
            f"this version of ComfyUI is too old for prompts with vectors per cross-attention layer ({fault}): update it to 0.3.64 "
            "or newer, or import the file with one vector for all layers"
        ) from fault
    # ComfyUI gives the wrapper to evaluations of prompts that carry the hook, and to no others
    wrappers = {WrappersMP.DIFFUSION_MODEL: {HOOK_KEY: [partial(_with_own_contexts, packing)]}}
    group = HookGroup()
    group.add(TransformerOptionsHook({"wrappers": wrappers}, hook_scope=EnumHookScope.HookedOnly))
    return group


def is_packed(conditioning: Sequence[Sequence]) -> bool:
    """Whether a conditioning tells layers apart: entries of a tensor `(1, T, channels)` and its options."""
    return any(PACKING_KEY in options for _, options in conditioning)


def with_layer_prompts(model: ModelPatcher) -> ModelPatcher:
    """A clone of a MODEL that understands packed conditionings by itself, so that they need no hooks; all others stay as they are."""
    from comfy.patcher_extension import WrappersMP

    patched = model.clone()
    wrappers = (
        (WrappersMP.OUTER_SAMPLE, _note_packings),
        (WrappersMP.DIFFUSION_MODEL, partial(_with_own_contexts, None)),
    )
    for kind, wrapper in wrappers:
        if not patched.get_wrappers(kind, HOOK_KEY):
            patched.add_wrapper_with_key(kind, HOOK_KEY, wrapper)
    return patched


def _note_packings(executor: Callable[..., Tensor], *args: object, **kw: object) -> Tensor:
    """Wrapper of a whole sampling: how the prompts of this one are packed.

    Raises:
        BestiaryError: the model has another number of layers, or a prompt was changed on its way.
    """
    guider = executor.class_obj
    packings: dict[int, LayerPacking] = {}
    for entry in (entry for entries in guider.conds.values() for entry in entries if PACKING_KEY in entry):
        packing = entry[PACKING_KEY]
        _check_layers(packing, guider.model_patcher.model.diffusion_model)
        _check_width(packing, entry.get("cross_attn"))
        packings[packing.packed_width] = packing
    # a copy that the guider made for this sampling alone
    guider.model_options["transformer_options"][PACKINGS_KEY] = packings
    return executor(*args, **kw)


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
    packing: LayerPacking | None,
    executor: Callable[..., Tensor],
    x: Tensor,
    timesteps: Tensor | None = None,
    context: Tensor | None = None,
    y: Tensor | None = None,
    control: object = None,
    transformer_options: Mapping[str, Any] | None = None,
    **options: object,
) -> Tensor:
    """Wrapper of one call of the UNet on packed prompts `(B, T, packed_width)`: each layer gets its own context.

    Without a `packing` it is one of those noted for this sampling, found by the width of the context; other prompts pass.
    """
    outer = dict(transformer_options or {})
    if packing is None:
        packing = outer.get(PACKINGS_KEY, {}).get(None if context is None else context.shape[-1])
    # hook and MODEL may both know how
    if packing is None or outer.get(DONE_KEY):
        return executor(x, timesteps, context, y, control, transformer_options, **options)
    layer_of = _check_layers(packing, executor.class_obj)
    _check_width(packing, context)

    def choose(n: Tensor, packed: Tensor, value: Tensor, facts: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """ComfyUI's attn2_patch: keys and values `(B, T, E)` of the layer that asks."""
        return n, *packing.context(packed, layer_of[tuple(facts["block"])])

    # the options of this call alone; patches of other nodes come after and see one layer's context
    patches = dict(outer.get("patches", {}))
    patches["attn2_patch"] = [choose, *patches.get("attn2_patch", ())]
    return executor(x, timesteps, context, y, control, {**outer, "patches": patches, DONE_KEY: True}, **options)


def _check_layers(packing: LayerPacking, unet: nn.Module) -> dict[Block, int]:
    """The layer of every block of a UNet that has as many as the prompt."""
    layer_of = {block: layer for layer, block in enumerate(attention_blocks(unet))}
    if len(layer_of) != packing.layers:
        raise BestiaryError(
            f"the prompt holds vectors for {packing.layers} cross-attention layers, but this MODEL has {len(layer_of)}: "
            "connect the model the spectrum was trained for, or import its file with one vector for all layers"
        )
    return layer_of


def _check_width(packing: LayerPacking, context: Tensor | None) -> None:
    """Other nodes may have joined or cut a conditioning `(B, T, packed_width)`: an error, never a silently wrong picture."""
    if context is None or context.shape[-1] != packing.packed_width:
        width = None if context is None else context.shape[-1]
        raise BestiaryError(
            f"a prompt with {packing.layers} layers of {packing.width} channels has become {width} channels wide: another "
            "node changed it; connect it directly to the sampler"
        )
