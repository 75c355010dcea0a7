"""Prompts with a different context per cross-attention layer (P+, XTI: arXiv 2303.09522; NeTI: arXiv 2305.15391).

The contexts of all layers are concatenated in the channels of one conditioning, `(1, T, L * E)`. They are distributed
either by the MODEL (`with_layer_prompts`, a wrapper on a clone), or by a hook in the conditioning: this works with any
MODEL, but with dynamic weights ComfyUI loads a second copy of the model for conditionings with hooks. Without both, the
width does not match the UNet: an error, never a silently wrong picture. Letters: T tokens, L cross-attention layers, E
width of a context.
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
"""Key in the options of a packed conditioning for its `LayerPacking`."""
PACKINGS_KEY = "bestiary_packings"
"""Key in the options of a sampling for the packings of its prompts, by number of channels."""
DONE_KEY = "bestiary_layers_told"
"""Key in the options of a call, set once its contexts are unpacked."""
CONTROLNET_KEY = "cross_attn_controlnet"
"""ComfyUI's key for a separate context of ControlNets."""

Block = tuple[str, int]
"""ComfyUI's name of a UNet block: ("input", 1), ("middle", 0), ("output", 11)."""


@dataclass(frozen=True)
class LayerPacking:
    """Layout of the layers' contexts in a packed conditioning."""

    layers: int
    """Number of layers L."""
    width: int
    """Width E of a context."""
    has_values: bool
    """True if separate contexts for values follow those for keys."""

    @property
    def packed_width(self) -> int:
        """Channels of a packed conditioning."""
        return self.layers * self.width * (2 if self.has_values else 1)

    def context(self, packed: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Contexts for keys and values of one layer, `(B, T, E)` each, from a packed `(B, T, packed_width)`."""
        # layout: keys of all layers first, then values of all layers
        begin = layer * self.width
        keys = packed[..., begin : begin + self.width]
        begin += self.layers * self.width
        return keys, packed[..., begin : begin + self.width] if self.has_values else keys


def pack_layers(keys: Sequence[Tensor], values: Sequence[Tensor] | None) -> tuple[Tensor, LayerPacking]:
    """One tensor `(1, T, packed_width)` with the contexts `(1, T, E)` of all layers, and its layout.

    Raises:
        BestiaryError: the contexts of the layers have different lengths.
    """
    lengths = sorted({one.shape[1] for one in (*keys, *(values or ()))})
    if len(lengths) > 1:
        raise BestiaryError(
            f"the layers of a prompt have {lengths} tokens: use texts of the same length for all layers"
        )
    packed = torch.cat([*keys, *(values or ())], dim=-1)  # (1, T, packed_width)
    return packed, LayerPacking(len(keys), keys[0].shape[-1], values is not None)


def packing_hooks(packing: LayerPacking) -> HookGroup:
    """Hooks for a packed conditioning; positive and negative must use the same object to share a batch.

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
    # ComfyUI applies the wrapper only to evaluations of prompts with this hook
    wrappers = {WrappersMP.DIFFUSION_MODEL: {HOOK_KEY: [partial(_with_own_contexts, packing)]}}
    group = HookGroup()
    group.add(TransformerOptionsHook({"wrappers": wrappers}, hook_scope=EnumHookScope.HookedOnly))
    return group


def is_packed(conditioning: Sequence[Sequence]) -> bool:
    """True if a conditioning, with entries of a tensor `(1, T, channels)` and options, is packed per layer."""
    return any(PACKING_KEY in options for _, options in conditioning)


def with_layer_prompts(model: ModelPatcher) -> ModelPatcher:
    """A clone of a MODEL that unpacks packed conditionings itself, so that they need no hooks; others are unaffected."""
    from comfy.patcher_extension import WrappersMP

    patched = model.clone()
    wrappers = (
        (WrappersMP.OUTER_SAMPLE, _note_packings),
        (WrappersMP.DIFFUSION_MODEL, partial(_with_own_contexts, None)),
    )
    for kind, wrapper in wrappers:
        # the clone has the wrappers of earlier nodes: add them only once
        if not patched.get_wrappers(kind, HOOK_KEY):
            patched.add_wrapper_with_key(kind, HOOK_KEY, wrapper)
    return patched


def _note_packings(executor: Callable[..., Tensor], *args: object, **kw: object) -> Tensor:
    """Wrapper of a whole sampling: collects the layouts of its packed prompts.

    Raises:
        BestiaryError: the model has another number of layers, or another node changed a prompt.
    """
    guider = executor.class_obj
    packings: dict[int, LayerPacking] = {}
    for entry in (entry for entries in guider.conds.values() for entry in entries if PACKING_KEY in entry):
        packing = entry[PACKING_KEY]
        _check_layers(packing, guider.model_patcher.model.diffusion_model)
        _check_width(packing, entry.get("cross_attn"))
        packings[packing.packed_width] = packing
    # the guider has copied the options for this sampling, so changes do not leak into the model
    guider.model_options["transformer_options"][PACKINGS_KEY] = packings
    return executor(*args, **kw)


def attention_blocks(unet: nn.Module) -> list[Block]:
    """The blocks of a UNet with cross-attention to the text `(B, T, E)`, in execution order: the layers of P+."""
    places: list[Block] = []
    parts = (("input", "input_blocks"), ("middle", "middle_block"), ("output", "output_blocks"))
    for part, attribute in parts:
        modules = getattr(unet, attribute, None)
        if modules is None:
            continue
        # ComfyUI's middle_block is a single block, the other two are lists of blocks
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
    """Wrapper of one UNet call with packed prompts `(B, T, packed_width)`: passes each layer its own context.

    With `packing` None, the layout is looked up by the width of the context; other prompts pass unchanged.
    """
    outer = dict(transformer_options or {})
    if packing is None:
        packing = outer.get(PACKINGS_KEY, {}).get(None if context is None else context.shape[-1])
    # hook and MODEL may both be present: unpack only once
    if packing is None or outer.get(DONE_KEY):
        return executor(x, timesteps, context, y, control, transformer_options, **options)
    layer_of = _check_layers(packing, executor.class_obj)
    _check_width(packing, context)

    def choose(n: Tensor, packed: Tensor, value: Tensor, facts: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """ComfyUI's attn2_patch: keys and values `(B, T, E)` of the current layer."""
        return n, *packing.context(packed, layer_of[tuple(facts["block"])])

    # a copy of the options for this call; ours comes first, so that patches of other nodes see one layer's context
    patches = dict(outer.get("patches", {}))
    patches["attn2_patch"] = [choose, *patches.get("attn2_patch", ())]
    return executor(x, timesteps, context, y, control, {**outer, "patches": patches, DONE_KEY: True}, **options)


def _check_layers(packing: LayerPacking, unet: nn.Module) -> dict[Block, int]:
    """Layer number of every cross-attention block; checks that their number matches the prompt."""
    layer_of = {block: layer for layer, block in enumerate(attention_blocks(unet))}
    if len(layer_of) != packing.layers:
        raise BestiaryError(
            f"the prompt contains vectors for {packing.layers} cross-attention layers, but this MODEL has {len(layer_of)}: "
            "connect the model the spectrum was trained for, or import its file with one vector for all layers"
        )
    return layer_of


def _check_width(packing: LayerPacking, context: Tensor | None) -> None:
    """Check the width of a conditioning `(B, T, packed_width)`, which other nodes may have concatenated or cut."""
    if context is None or context.shape[-1] != packing.packed_width:
        width = None if context is None else context.shape[-1]
        raise BestiaryError(
            f"a prompt with {packing.layers} layers of {packing.width} channels is now {width} channels wide: another "
            "node changed it; connect it directly to the sampler"
        )
