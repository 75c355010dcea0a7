"""Differences between the supported versions of ComfyUI, in one place. Features are detected, version numbers never compared.

| since | change | handled in |
|---|---|---|
| 0.8 to 0.15 | `io.Schema` and inputs have more fields (`search_aliases`, `advanced`, ...) | `schema`, `socket` |
| 0.15.1 | `CLIP.clone` has arguments, such as `disable_dynamic` of Set CLIP Hooks | `taught_clip.py` forwards them |
| 0.15.1 | a CLIP with dynamic weights is reloaded from its file for Set CLIP Hooks; our own model has no such file | `fixed_clip_options` |
| 0.15.1 | conditionings with hooks make ComfyUI load the MODEL a second time | `layer_prompts.py` avoids them |
| 0.22 | a CLIP sets the device of its text encoders after the layer, which resets a layer index that is out of range | `name_device` |
| 0.22 | prompts are evaluated in several threads, one per GPU | `attention_sampling.py` sums by thread and device |
| 0.10 to 0.15 | text encoders with scaled 8-bit weights are described by metadata per layer instead of one type | `quantised_text` |
| 0.28 | `SDTokenizer._try_get_embedding` returns (vector, name, remaining text) instead of (vector, remaining text) | `embedding_answer` |
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from .advanced_inputs import ADVANCED
from .comfy_objects import TextEncoder, Tokenizer
from .node_texts import node_texts

_answer_lengths: dict[Callable[..., tuple], int] = {}
"""Embedding search method of a tokenizer class -> number of values it returns."""

_QUANTISATION = ("convert_old_quants", "detect_layer_quantization")
"""Functions of `comfy.utils` that versions with quantisation per layer have."""


def schema(node_id: str, **fields: Any) -> io.Schema:
    """An `io.Schema` with the fields that this ComfyUI supports; unknown ones, such as `search_aliases`, are dropped.

    Names, descriptions and tooltips come from the English locale.
    """
    known = {field.name for field in dataclasses.fields(io.Schema)}
    texts = node_texts(node_id)
    fields |= {"display_name": texts["display_name"], "description": texts["description"]}
    made = io.Schema(node_id, **{name: value for name, value in fields.items() if name in known})
    for entry in made.inputs or ():
        entry.tooltip = texts["inputs"][entry.id]["tooltip"]
        if entry.id in ADVANCED.get(made.node_id, ()):
            # before 0.10 inputs have no field `advanced`, but forward their extra_dict to the frontend
            entry.extra_dict = {**(getattr(entry, "extra_dict", None) or {}), "advanced": True}
    for number, entry in enumerate(made.outputs or ()):
        entry.display_name, entry.tooltip = (texts["outputs"][str(number)][text] for text in ("name", "tooltip"))
    return made


def socket(kind: Callable[..., io.Input], name: str, **extras: object) -> io.Input:
    """An input such as `socket(io.Int.Input, "steps", default=20, advanced=True)`, without extras that are too new."""
    known = inspect.signature(kind).parameters
    return kind(name, **{extra: value for extra, value in extras.items() if extra in known})


def fixed_clip_options() -> dict[str, bool]:
    """Options of `comfy.sd.CLIP` that disable dynamic weights, if this ComfyUI has them."""
    import comfy.sd

    name = "disable_dynamic"
    return {name: True} if name in inspect.signature(comfy.sd.CLIP).parameters else {}


def quantised_text(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, object], dict[str, object]]:
    """Weights of a text encoder in the layout of this ComfyUI, the `model_options` for computing with them, and further
    options of `comfy.sd.CLIP`.

    Both options are empty unless the file contains scaled 8-bit weights.
    """
    import comfy.utils

    # newer versions describe quantisation per layer and convert the old layout on loading
    convert, detect = (getattr(comfy.utils, name, None) for name in _QUANTISATION)
    if convert and detect:
        weights, _ = convert(dict(weights), model_prefix="", metadata={})
        found = detect(weights, "")
        # quantised layers have no weight until they are loaded, so the weights must be passed to CLIP itself
        return (
            (weights, {}, {})
            if found is None
            else (weights, {"quantization_metadata": found}, {"state_dict": [weights]})
        )
    mark = weights.get("scaled_fp8")
    return weights, {} if mark is None else {"scaled_fp8": mark.dtype}, {}


def name_device(encoder: TextEncoder) -> None:
    """Set the device of a text encoder before encoding, as this ComfyUI does; no effect in older versions."""
    if hasattr(encoder, "execution_device"):
        encoder.set_clip_options({"execution_device": encoder.execution_device})


def embedding_answer(tokenizer: Tokenizer, vector: Tensor | int | None, name: str, rest: str) -> tuple:
    """Return value of a replacement for a tokenizer's embedding search (`embedding:`).

    Args:
        tokenizer: an `SDTokenizer` of ComfyUI or a subclass.
        vector: `(D,)`, `(n, D)`, a marked token, or None for an unknown name.
        name: the name that was searched, for messages to the user.
        rest: the remaining text, which is tokenized as text.
    """
    own: Callable[..., tuple] = type(tokenizer)._try_get_embedding
    # detect the number of values by one search in an empty folder list, cached per class
    if own not in _answer_lengths:
        blank = copy.copy(tokenizer)
        blank.embedding_directory = []
        _answer_lengths[own] = len(own(blank, "none"))
    return (vector, name, rest) if _answer_lengths[own] == 3 else (vector, rest)
