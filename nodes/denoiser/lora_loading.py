"""LoRA tensors of any common naming in a clone of a MODEL, with every layer accounted for.

ComfyUI drops layers whose names it does not know and, when it samples, layers whose shapes do not fit, both without an
error. Here names become kohya's first (concepts/denoiser/lora_names.py), and a LoRA that reaches no layer is reported.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from ...concepts.denoiser.lora_family import family_hint
from ...concepts.denoiser.lora_forms import TRANSFORMER_PREFIX, UNET_PREFIX
from ...concepts.denoiser.lora_names import DOWN, UP, to_kohya
from ...concepts.errors import BestiaryError
from .transformer_layers import family_of

if TYPE_CHECKING:
    from ..host.comfy_objects import Clip, Model

logger = logging.getLogger(__name__)


class AppliedLora(NamedTuple):
    """The patched clones, and how much of the file they hold."""

    model: Model
    clip: Clip | None
    """The given one where no layer is for it: clones that nobody keeps make ComfyUI search for leaks."""
    reached: int
    """Layers of the model and the text encoders that are changed."""
    given: int
    """Layers of the file."""


def apply_lora(
    model: Model,
    tensors: Mapping[str, Tensor],
    strength: float,
    *,
    clip: Clip | None = None,
    alpha: float | None = None,
) -> AppliedLora:
    """Clones of MODEL and CLIP with a LoRA added; the originals stay as they are.

    Args:
        model: a ModelPatcher.
        tensors: a LoRA in any naming of concepts/denoiser/lora_names.py, down `(r, in, ...)` and up `(out, r, ...)`.
        strength: factor of the whole update; 0 adds nothing.
        clip: takes the layers of text encoders, if there are any.
        alpha: scale alpha / rank of layers that name none (PEFT keeps it outside the file).

    Raises:
        BestiaryError: no layer belongs to this model, or one has another shape; the message shows names of both.
    """
    import comfy.lora

    # one spelling for all, then the layers of this model that it names
    is_transformer = family_of(model.model.diffusion_model) is not None
    named = to_kohya(tensors, alpha, prefix=TRANSFORMER_PREFIX if is_transformer else UNET_PREFIX)
    given = sum(name.endswith(DOWN) for name in named)
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        known = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, known)
    # kohya's own block numbers are diffusers' only with two residual blocks per level; ComfyUI knows them as they are
    loaded = max((comfy.lora.load_lora(dict(one), known, log_missing=False) for one in (named, tensors)), key=len)
    if not loaded:
        raise BestiaryError(_nothing_reached(tensors, given, known))
    _check_shapes(named, known, model, clip)
    patched = model.clone()
    # nothing to add: not even a rounding of weights
    if strength == 0:
        return AppliedLora(patched, clip, 0, given)
    # layers of the model, then those of the text encoders
    reached = set(patched.add_patches(loaded, strength))
    if clip is not None and loaded.keys() & clip.cond_stage_model.state_dict().keys():
        clip = clip.clone()
        reached |= set(clip.add_patches(loaded, strength))
    if len(reached) < given:
        logger.warning("%d of %d LoRA layers belong to no layer of this model", given - len(reached), given)
    return AppliedLora(patched, clip, len(reached), given)


def _check_shapes(named: Mapping[str, Tensor], known: Mapping[str, object], model: Model, clip: Clip | None) -> None:
    """Raises BestiaryError for a pair whose product has not the shape of its layer `(out, in, ...)`."""
    roots = [model.model] if clip is None else [model.model, clip.cond_stage_model]
    for name in named:
        module = name.removesuffix(DOWN)
        # a third matrix or a slice of a layer has shapes of its own
        weight, plain = known.get(module), name.endswith(DOWN) and module + ".lora_mid.weight" not in named
        if not plain or not isinstance(weight, str) or module + UP not in named:
            continue
        down, up, shape = named[name], named[module + UP], _layer_shape(roots, weight)
        if shape is None:
            continue
        fits = up.shape[0] == shape[0] and down[0].numel() == math.prod(shape[1:]) and up.shape[1] == down.shape[0]
        if not fits:
            raise BestiaryError(
                f"LoRA layer {module} is {tuple(up.shape)} times {tuple(down.shape)}, the model's layer is "
                f"{shape}: it was trained for another model"
            )


def _layer_shape(roots: Sequence[nn.Module], weight: str) -> tuple[int, ...] | None:
    """Shape `(out, in, ...)` of the layer whose weight has this name, however it is stored; None if that is unknown."""
    path, _, name = weight.rpartition(".")
    for root in roots:
        try:
            layer = root.get_submodule(path)
        except AttributeError:
            continue
        # four bits packed in bytes, or a layout of its own: only the layer knows what it stands for
        outer, inner = getattr(layer, "out_features", None), getattr(layer, "in_features", None)
        if outer is not None and inner is not None:
            return outer, inner
        stored = getattr(layer, name, None)
        if isinstance(stored, Tensor):
            return tuple(stored.shape) if stored.is_floating_point() else None
    return None


def _nothing_reached(tensors: Mapping[str, Tensor], given: int, known: Mapping[str, object]) -> str:
    wanted = next((name for name in known if name.startswith("lora_unet_") and name.endswith("to_q")), "lora_unet_...")
    # one name of each side says more than shapes (out, in) would
    return (
        f"none of the {given} LoRA layers belongs to this model{family_hint(tensors, known)}: the file has {next(iter(tensors))!r}, the model has "
        f"layers such as {wanted!r} (also with the prefixes unet., base_model.model. and none); "
        "load a LoRA that was trained for this base model"
    )
