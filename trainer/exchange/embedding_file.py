"""Textual inversion as ComfyUI, AUTOMATIC1111, diffusers and kohya wrote it over the years: one reader for all of it.

| form | what it is |
|---|---|
| one tensor, or a list of tensors or of dictionaries | the oldest scripts; a list is one embedding, as ComfyUI reads it |
| `string_to_param` | AUTOMATIC1111; a dictionary or a container of parameters |
| `<name>`: vectors, several of them | diffusers and kohya; each name is an embedding |
| `clip_l` and `clip_g` | SDXL, both encoders of one embedding |
| `bundle_emb.NAME.string_to_param.*`, `bundle_emb.NAME.clip_l` | embeddings carried in a LoRA |

Letters: n vectors, W width of a text encoder.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...concepts.denoiser.lora_names import BUNDLED, kohya_name
from ...concepts.errors import BestiaryError
from ...concepts.files.concept_file import read_header, read_tensors
from ...concepts.files.inert_pickle import Shell
from ...concepts.files.safe_pickle import load_inert, tensors_in
from .partcraft_files import holds_safetensors

MOST_VECTORS = 150
"""Vectors of one embedding: two prompts' worth."""
WIDTHS = (768, 1024, 1280, 128)
"""Widths of text encoders that embeddings are made for."""
SDXL_KEYS = ("clip_l", "clip_g")

_BUNDLE = re.compile(re.escape(BUNDLED) + r"(.+?)\.(?:string_to_param\.)?([^.]+)")
_WEIGHTS = re.compile(r"\.(?:weight|bias|alpha|gamma|beta)$|^(?:weight|bias|pe)$")

Embedding = dict[str, Tensor]
"""Text encoder -> `(n, W)`; the empty name where a file has one encoder only."""


def read_embeddings(path: Path) -> dict[str, Embedding]:
    """Every embedding of a file, by the name it has there.

    Raises:
        BestiaryError: the file is unsafe, broken or holds no embedding; the message names the form it found.
    """
    path = Path(path)
    if holds_safetensors(path):
        read_header(path)
        content: object = read_tensors(path)
    else:
        content = load_inert(path)
    found = embeddings_of(content, path.name.split(".")[0])
    if not found:
        raise BestiaryError(f"{path} holds no embedding: it is {described_form(content)}")
    return found


def embeddings_of(content: object, name: str) -> dict[str, Embedding]:
    """Embeddings in the content of a file; empty where there are none.

    Args:
        content: as `load_inert` or `read_tensors` gives it, tensors of any shape.
        name: of an embedding that has none in the file.
    """
    if isinstance(content, Tensor):
        return _named({name: content})
    if isinstance(content, list | tuple):
        # as ComfyUI reads it: all entries are vectors of one embedding
        rows = [rows for _, tensor in tensors_in(content) if (rows := _rows(tensor)) is not None]
        alike = len({piece.shape[-1] for piece in rows}) == 1
        return _named({name: torch.cat(rows)}) if alike else {}
    if not isinstance(content, Mapping):
        return {}
    if isinstance(parameters := content.get("string_to_param"), Mapping | Shell):
        stored = content.get("name")
        tensors = {key.rpartition(".")[2]: tensor for key, tensor in tensors_in(parameters)}
        own = stored if isinstance(stored, str) and stored else name
        # the placeholder is a star as a rule, which is nobody's name
        return _named({own if len(tensors) == 1 else key: tensor for key, tensor in tensors.items()})
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    bundled = _bundled(tensors)
    if bundled or any(kohya_name(key) for key in tensors):
        return bundled
    if set(SDXL_KEYS) <= tensors.keys():
        pair = {key: rows for key in SDXL_KEYS if (rows := _rows(tensors[key])) is not None}
        return {name: pair} if len(pair) == len(SDXL_KEYS) else {}
    named = {key: tensor for key, tensor in tensors.items() if not _WEIGHTS.search(key)}
    if len(named) == 1:
        only = next(iter(named))
        return _named({name if only in ("*", "") else only: named[only]})
    return _named(named)


def described_form(content: object) -> str:
    """What stands in the place of an embedding, in a few words."""
    tensors = list(tensors_in(content))
    kind = {Tensor: "one tensor", dict: "a table", list: "a list", tuple: "a list"}.get(type(content), "something else")
    if isinstance(content, Mapping):
        kind = "a table"
    shapes = ", ".join(f"{name[:40] or 'tensor'} {list(tensor.shape)}" for name, tensor in tensors[:3])
    held = f"of {len(tensors)} tensors ({shapes})" if tensors else "without tensors"
    return f"{kind} {held}; expected vectors of width {', '.join(map(str, WIDTHS))}"


def chosen(found: Mapping[str, Embedding], name: str | None, path: Path) -> tuple[str, Embedding]:
    """The embedding that is meant, tensors `(n, W)`.

    Raises:
        BestiaryError: no embedding is called so, or there are several and none was named.
    """
    known = ", ".join(sorted(found)[:12])
    if name is None and len(found) > 1:
        raise BestiaryError(f"{path} holds {len(found)} embeddings ({known}): choose one with --name")
    own = next(iter(found)) if name is None else name if name in found else f"<{name.strip('<>')}>"
    if own not in found:
        raise BestiaryError(f"{path} holds no embedding {name!r}: it has {known}")
    return own, found[own]


def _bundled(tensors: Mapping[str, Tensor]) -> dict[str, Embedding]:
    found: dict[str, Embedding] = {}
    for key, tensor in tensors.items():
        match, rows = _BUNDLE.fullmatch(key), _rows(tensor)
        if match and rows is not None:
            found.setdefault(match[1], {})[match[2] if match[2] in SDXL_KEYS else ""] = rows
    return found


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Embedding]:
    """One embedding for every tensor that can be one; none at all where a tensor among them cannot."""
    found = {name: {"": rows} for name, tensor in tensors.items() if (rows := _rows(tensor)) is not None}
    return found if len(found) == len(tensors) else {}


def _rows(tensor: Tensor) -> Tensor | None:
    """Vectors `(n, W)` of a tensor that may be an embedding, None otherwise."""
    if not tensor.is_floating_point() or tensor.ndim not in (1, 2, 3) or not tensor.numel():
        return None
    rows = tensor.detach().reshape(-1, tensor.shape[-1])
    return rows if len(rows) <= MOST_VECTORS else None
