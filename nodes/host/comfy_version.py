"""What differs between versions of ComfyUI that the pack runs on, in one place. The version is never asked for, only what it does.

| since | what changed | where it is met |
|---|---|---|
| 0.8 to 0.15 | `io.Schema` and inputs take more fields (`search_aliases`, `advanced`, ...) | `schema`, `socket` |
| 0.15.1 | `CLIP.clone` takes arguments, such as `disable_dynamic` of Set CLIP Hooks | `taught_clip.py` hands them on |
| 0.15.1 | a CLIP whose weights move as they are needed is reloaded for Set CLIP Hooks, from a file that our own model has not | `fixed_clip_options` |
| 0.15.1 | conditionings with hooks make ComfyUI load the MODEL a second time | `layer_prompts.py` does without them |
| 0.22 | a CLIP names its device to the text encoders after the layer, which makes them forget a skip that is too great | `name_device` |
| 0.22 | prompts are evaluated in several threads, one per GPU | `attention_sampling.py` sums by thread and device |
| 0.10 to 0.15 | text encoders with scaled 8-bit weights are described by metadata per layer instead of one type | `quantised_text` |
| 0.28 | `SDTokenizer._try_get_embedding` gives (vector, name, text left over) instead of (vector, text left over) | `embedding_answer` |
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
"""Search of a class of tokenizers -> how many values it gives."""


def schema(node_id: str, **fields: Any) -> io.Schema:
    """An `io.Schema` of those fields that this ComfyUI knows; unknown ones, such as `search_aliases`, are left out.

    Names, descriptions and tooltips are those of the English locale.
    """
    known = {field.name for field in dataclasses.fields(io.Schema)}
    texts = node_texts(node_id)
    fields |= {"display_name": texts["display_name"], "description": texts["description"]}
    made = io.Schema(node_id, **{name: value for name, value in fields.items() if name in known})
    for entry in made.inputs or ():
        entry.tooltip = texts["inputs"][entry.id]["tooltip"]
        if entry.id in ADVANCED.get(made.node_id, ()):
            # before 0.10 an input does not know the word, but hands on what its extras say
            entry.extra_dict = {**(getattr(entry, "extra_dict", None) or {}), "advanced": True}
    for number, entry in enumerate(made.outputs or ()):
        entry.display_name, entry.tooltip = (texts["outputs"][str(number)][text] for text in ("name", "tooltip"))
    return made


def socket(kind: Callable[..., io.Input], name: str, **extras: object) -> io.Input:
    """An input such as `socket(io.Int.Input, "steps", default=20, advanced=True)` without the extras that are too new."""
    known = inspect.signature(kind).parameters
    return kind(name, **{extra: value for extra, value in extras.items() if extra in known})


def fixed_clip_options() -> dict[str, bool]:
    """Options of `comfy.sd.CLIP` that keep its weights in one place, where this ComfyUI would move them; none elsewhere."""
    import comfy.sd

    name = "disable_dynamic"
    return {name: True} if name in inspect.signature(comfy.sd.CLIP).parameters else {}


def quantised_text(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, object], dict[str, object]]:
    """Weights of a text encoder as this ComfyUI keeps them, the `model_options` by which its classes compute with them, and
    further options of `comfy.sd.CLIP`.

    Both options are empty unless the file holds scaled 8-bit weights.
    """
    import comfy.utils

    # one converts the layout of the other when it loads a file
    if hasattr(comfy.utils, "convert_old_quants"):
        weights, _ = comfy.utils.convert_old_quants(dict(weights), model_prefix="", metadata={})
        found = comfy.utils.detect_layer_quantization(weights, "")
        # such layers have no weight at all before they are loaded, which is when the encoder is first moved
        return (
            (weights, {}, {})
            if found is None
            else (weights, {"quantization_metadata": found}, {"state_dict": [weights]})
        )
    mark = weights.get("scaled_fp8")
    return weights, {} if mark is None else {"scaled_fp8": mark.dtype}, {}


def name_device(encoder: TextEncoder) -> None:
    """Tell a text encoder its device as this ComfyUI does before it encodes; nothing where it is not told."""
    if hasattr(encoder, "execution_device"):
        encoder.set_clip_options({"execution_device": encoder.execution_device})


def embedding_answer(tokenizer: Tokenizer, vector: Tensor | int | None, name: str, rest: str) -> tuple:
    """What a tokenizer expects of whoever answers in place of its own search behind `embedding:`.

    Args:
        tokenizer: an `SDTokenizer` of ComfyUI, or a kind of it.
        vector: `(D,)`, `(n, D)`, a marked token, or None where the name is unknown.
        name: the name that was looked for, as it is told to the user.
        rest: text behind it, which is read as text.
    """
    own: Callable[..., tuple] = type(tokenizer)._try_get_embedding
    # its own search tells how many values it gives: asked for nothing in no folder, once per class
    if own not in _answer_lengths:
        blank = copy.copy(tokenizer)
        blank.embedding_directory = []
        _answer_lengths[own] = len(own(blank, "none"))
    return (vector, name, rest) if _answer_lengths[own] == 3 else (vector, rest)
