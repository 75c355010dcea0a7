"""T5 encoders on disk: a folder as transformers saves one, or one file as ComfyUI's users have it for SD3 and Flux.

Weights have transformers' names in both. Eight-bit files keep a scale beside each weight, in one of two spellings. Letters: D width of the states.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ....concepts.errors import BestiaryError
from ....concepts.files.concept_file import read_header
from ....concepts.files.wrong_download import wrong_download

TABLE, LAST_NORM = "shared.weight", "encoder.final_layer_norm.weight"
VOCABULARY = 32_128
"""Rows of a T5 v1.1 token table: more than the 32,100 pieces of its tokenizer."""
UNREADABLE = (
    OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, UnpicklingError, SafetensorError,
)  # fmt: skip
"""What reading a broken file of weights raises."""
_FIRST = "encoder.block.0.layer.0.SelfAttention"
_SCALES = (".scale_weight", ".weight_scale")
"""Endings of the scales of eight-bit weights, older and newer."""
_BESIDE = (*_SCALES, ".scale_input", ".input_scale", ".comfy_quant")
_EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)


class HasShape(Protocol):
    """A tensor, or what is known of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        ...


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def t5_files(source: Path) -> list[Path]:
    """The weight files of an encoder: the file itself, or a folder's shards, safetensors before .bin, full precision before fp16.

    Raises:
        BestiaryError: nothing is there, or no weights are.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise BestiaryError(
            f"the T5 encoder {source} does not exist: choose the folder of a T5 encoder, or one file such as t5xxl_fp16.safetensors"
        )
    for suffix in (".safetensors", ".bin"):
        files = sorted(source.glob(f"*{suffix}"))
        plain = [path for path in files if ".fp16" not in path.name]
        if files:
            return plain or files
    raise BestiaryError(
        f"{source} holds no weights (.safetensors or .bin): download the model folder completely, or choose a T5 file in "
        "models/text_encoders, such as t5xxl_fp16.safetensors"
    )


def t5_identity(source: Path) -> str:
    """Sixteen hex digits that change when the encoder's files do (names, sizes, times), whatever folder they lie in."""
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in t5_files(source)]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]


def read_t5(source: Path, text_width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """An encoder's weights in one dtype, eight-bit ones multiplied by their scales.

    Args:
        source: folder or safetensors file.
        text_width: D, which the network reads.

    Raises:
        BestiaryError: no weights, weights of another model or of another width, or in a form that cannot be read.
    """
    readers: dict[str, _Stored] = {}
    for path in t5_files(source):
        readers |= _open_file(path)
    check_t5(source, readers, text_width)
    plain: dict[str, Tensor] = {}
    # one after the other, so that both precisions of only one tensor are held
    for name in sorted(readers):
        if name.endswith(_BESIDE) or name in ("scaled_fp8", "encoder.embed_tokens.weight"):
            continue
        stem = name.removesuffix(".weight")
        scales = [readers[stem + ending].read() for ending in _SCALES if stem + ending in readers]
        plain[name] = _plain(readers[name].read(), scales[0] if scales else None, dtype, source)
    return plain


def check_t5(source: Path, tensors: Mapping[str, HasShape], text_width: int) -> None:
    """Make sure that tensors are those of a T5 v1.1 encoder whose states are `text_width` wide.

    Raises:
        BestiaryError: they are not; the message names what is missing or different.
    """
    table = tensors.get(TABLE)
    if table is None or f"{_FIRST}.q.weight" not in tensors:
        raise BestiaryError(
            f"{source} is not a T5 encoder: it has no {TABLE if table is None else 'encoder.block.0'}; choose "
            "the folder of a T5 encoder, or a file such as t5xxl_fp16.safetensors"
        )
    if table.shape[1] != text_width:
        raise BestiaryError(
            f"{source} gives states {table.shape[1]} wide, this model reads {text_width}: choose a T5 v1.1 XXL encoder"
        )
    if table.shape[0] != VOCABULARY:
        raise BestiaryError(
            f"{source} has {table.shape[0]} token rows, T5 v1.1 has {VOCABULARY}: choose a T5 v1.1 XXL encoder (not mT5, umT5)"
        )


def t5_shape(tensors: Mapping[str, HasShape]) -> dict[str, int | bool]:
    """An encoder's sizes, as its weights show them; queries `(heads * d_kv, D)`, bias `(buckets, heads)`."""
    heads = tensors[f"{_FIRST}.relative_attention_bias.weight"].shape[1]
    return {
        "num_layers": len({name.split(".")[2] for name in tensors if name.startswith("encoder.block.")}),
        "d_model": tensors[TABLE].shape[1],
        "d_kv": tensors[f"{_FIRST}.q.weight"].shape[0] // heads,
        "d_ff": tensors["encoder.block.0.layer.1.DenseReluDense.wo.weight"].shape[1],
        "num_heads": heads,
        "vocab_size": tensors[TABLE].shape[0],
        "is_gated_act": "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in tensors,
    }


def t5_header(path: Path) -> Mapping[str, HasShape]:
    """What a file of weights holds, by name; none of it is read yet.

    Raises:
        BestiaryError: the file is broken, or of a format that cannot be read.
    """
    return _open_file(path)


def _plain(tensor: Tensor, scale: Tensor | None, dtype: torch.dtype, source: Path) -> Tensor:
    if tensor.dtype in _EIGHT_BITS:
        full = tensor.float()
        return (full if scale is None else full * scale.float()).to(dtype)
    if not tensor.is_floating_point():
        raise BestiaryError(
            f"{source} holds weights of type {tensor.dtype}, such as GGUF or 4-bit files have, which cannot be read here: choose a T5 file "
            "in fp16, bf16 or scaled fp8"
        )
    return tensor.to(dtype)


def _open_file(path: Path) -> dict[str, _Stored]:
    """All tensors of a file by name; none is read yet, since an encoder has 9 GB."""
    if path.suffix == ".gguf":
        raise BestiaryError(
            f"{path} is a GGUF file, which only ComfyUI reads: choose a T5 file in safetensors format, such as "
            "t5xxl_fp16.safetensors"
        )
    try:
        if path.suffix == ".bin":
            with path.open("rb") as stream:
                wrong = wrong_download(stream.read(512))
            if wrong is not None:
                raise BestiaryError(f"{path} {wrong}")
            held: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return {name: _Stored(tensor.shape, partial(held.__getitem__, name)) for name, tensor in held.items()}
        entries, opened = read_header(path).entries, safe_open(path, "pt")
        return {name: _Stored(entry.shape, partial(opened.get_tensor, name)) for name, entry in entries.items()}
    except UNREADABLE as fault:
        raise BestiaryError(f"{path} could not be read ({fault}): download it again") from fault
