"""Reader and writer of concept files: safetensors with `bestiary.*` metadata, without executable content.

A file is `length (8 bytes) | JSON header | tensor bytes`. The header is read and checked separately first, so that a
damaged or malicious file is rejected before memory is allocated for it. Metadata values are JSON texts under keys
`bestiary.<name>`; `bestiary.kind` is the kind of content, `bestiary.format` the version of this layout.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..errors import BestiaryError
from ..name_search import LONGEST_SHOWN
from .atomic_file import replacing
from .wrong_download import wrong_download

DICTIONARY_KIND, CODEBOOK_KIND, SPECTRUM_KIND = "part-dictionary", "parts", "prompt-spectrum"
"""Kinds of our files, as stored in their metadata."""
FORMAT = 1
"""Version of the layout; readers reject newer ones."""
PREFIX = "bestiary."
LARGEST_HEADER = 1 << 20
"""Maximum bytes of our headers, because ComfyUI shows no metadata of files beyond this."""
LARGEST_FOREIGN_HEADER = 32 << 20
"""Maximum bytes of foreign headers; trained LoRA files contain long training logs."""

MOST_AXES = 16
"""Maximum number of axes of a tensor."""
LARGEST_SIZE = 1 << 48
"""Upper limit of axis sizes and tensor offsets."""
_LONGEST_NUMBER = 20

_DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip


_DTYPE_NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64",
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip


@dataclass(frozen=True)
class ConceptFile:
    """The content of a concept file."""

    tensors: dict[str, Tensor]
    metadata: dict[str, object]
    """Names without `bestiary.`; foreign keys keep their name and text."""


@dataclass(frozen=True)
class TensorEntry:
    """Header entry of one tensor."""

    dtype: str
    """Type name of safetensors: F16, F32, U8, ..."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """The header of any safetensors file, read without its tensors."""

    entries: dict[str, TensorEntry]
    metadata: dict[str, str]
    """As stored."""

    @property
    def concept(self) -> dict[str, object]:
        """Metadata with our names decoded; see ConceptFile.metadata."""
        return {_bare(key): _decoded(key, text) for key, text in self.metadata.items()}

    @property
    def kind(self) -> str | None:
        """Kind of concept file, None for foreign files."""
        kind = self.concept.get("kind")
        return kind if isinstance(kind, str) and PREFIX + "kind" in self.metadata else None


def write_concept_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Write a concept file atomically.

    Args:
        path: target; missing folders are created.
        tensors: by name, each of any shape, on any device; views are allowed.
        metadata: must contain `kind`; values are JSON values. Keys with a dot, such as `modelspec.title`, are stored
            under their own name as plain text.

    Raises:
        BestiaryError: no kind, a header beyond 1 MiB, or the file cannot be written.
    """
    stored = {_stored(key): _encoded(key, value) for key, value in metadata.items()}
    if not metadata.get("kind", metadata.get(PREFIX + "kind")):
        raise BestiaryError(f"a concept file needs a kind in its metadata; got {sorted(metadata)}")
    stored[PREFIX + "format"] = str(FORMAT)
    # upper estimate of the JSON size, including quotes, commas and the entries of the tensors
    size = sum(len(key.encode()) + len(text.encode()) + 8 for key, text in stored.items())
    size += sum(len(name.encode()) + 120 for name in tensors)
    if size > LARGEST_HEADER:
        raise BestiaryError(
            f"the header of {Path(path).name} would take {size:,} bytes, at most {LARGEST_HEADER:,} can be read by all programs: "
            "shorten its provenance or store long lists as a tensor"
        )
    write_tensors(path, tensors, stored)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors of any shape as a safetensors file, atomically.

    Equal content yields equal bytes, which the library's own writer does not guarantee.

    Raises:
        BestiaryError: a type that safetensors does not support, or the file cannot be written.
    """
    # wide types first, so that every tensor is aligned to its item size
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    # offsets first: the header precedes the tensor bytes
    end = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPE_NAMES:
            raise BestiaryError(f"tensor {name!r} is {tensor.dtype}, which safetensors does not support: convert it")
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    # the tensors begin at a multiple of 8 bytes
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        # one tensor at a time, so that memory never contains a second copy of the whole file
        for name in order:
            flat = tensors[name].detach().cpu().contiguous().flatten()
            stream.write(flat.view(torch.uint8).numpy().data)


def read_concept_file(path: Path, kind: str | None = None) -> ConceptFile:
    """Read a concept file, optionally of a required `kind`.

    Raises:
        BestiaryError: missing, damaged, foreign, of another kind or of a newer version.
    """
    path = Path(path)
    header = read_header(path, LARGEST_HEADER)
    found = header.kind
    if found is None:
        names = ", ".join(list(header.entries)[:3]) or "no tensors"
        raise BestiaryError(
            f"{path} was not written by Bestiary (it contains {names}); run `bestiary inspect` to see what it is"
        )
    # checked after the kind: foreign files have no version
    version = header.concept.get("format")
    if not isinstance(version, int) or not 1 <= version <= FORMAT:
        raise BestiaryError(
            f"{path} has format {_shortened(repr(version))}, this program reads up to {FORMAT}: update Bestiary"
        )
    if kind is not None and found != kind:
        raise BestiaryError(f"{path} is a {_shortened(found)} file, but a {kind} file is required: give such a file")
    return ConceptFile(read_tensors(path), header.concept)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors, by name and in their stored shape, of any safetensors file with a checked header.

    Raises:
        BestiaryError: the file is damaged or contains types that torch does not support.
    """
    try:
        # read instead of memory-mapping: a mapped file cannot be replaced on Windows and may change while in use
        return load(Path(path).read_bytes())
    except (SafetensorError, KeyError, ValueError, RuntimeError, AttributeError) as fault:
        raise BestiaryError(
            f"{path} is damaged, or contains a number type that this version of torch does not support; download or write it again"
        ) from fault
    except OSError as fault:
        raise BestiaryError(f"could not read {path}: {fault.strerror or fault}") from fault


def read_header(path: Path, largest: int = LARGEST_FOREIGN_HEADER) -> Header:
    """Read and check the header of any safetensors file, without reading its tensors.

    Raises:
        BestiaryError: missing, not a safetensors file, or a header that contradicts the file's size.
    """
    # the file starts with the length of the header; nothing beyond the header is read
    path = Path(path)
    try:
        total = path.stat().st_size
        with path.open("rb") as stream:
            if (mistake := wrong_download(stream.read(512))) is not None:
                raise BestiaryError(f"{path} {mistake}")
            stream.seek(0)
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            # both checks precede the read, so that a false length cannot allocate memory
            if not 2 <= length <= total - 8:
                raise BestiaryError(f"{path} is not a safetensors file, or is truncated ({total:,} bytes)")
            if length > largest:
                raise BestiaryError(f"{path} declares a header of {length:,} bytes; the limit is {largest:,}")
            text = stream.read(length)
    except OSError as fault:
        raise BestiaryError(f"could not read {path}: {fault.strerror or fault}") from fault
    try:
        content = json.loads(text, parse_int=_bounded_number)
    except RecursionError as fault:
        raise BestiaryError(
            f"{path} has a broken header: it is nested too deeply; download or write it again"
        ) from fault
    except ValueError as fault:
        raise BestiaryError(f"{path} has a broken header: it is not JSON; download or write it again") from fault
    try:
        return _parsed(content, total - 8 - length)
    except BestiaryError as fault:
        raise BestiaryError(f"{path} has a broken header: {fault}; download or write it again") from fault


def _bounded_number(digits: str) -> int:
    # longer numbers are neither sizes nor offsets, and their conversion takes quadratic time
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _parsed(content: object, room: int) -> Header:
    """The header's JSON as a record; `room` is the number of tensor bytes in the file."""
    if not isinstance(content, dict):
        raise BestiaryError("it is not a table of tensors")
    # __metadata__ is the only entry that is not a tensor
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise BestiaryError("its metadata contains values that are not text")
    if not all(_is_text(text) for pair in metadata.items() for text in pair):
        raise BestiaryError("its metadata contains text that is not valid Unicode")
    places, entries = [], {}
    for name, entry in content.items():
        dtype, shape, begin, end = _checked_entry(name, entry)
        if end > room or end - begin != math.prod(shape) * _DTYPE_BYTES[dtype]:
            raise BestiaryError(
                f"tensor {name[:80]!r} ({dtype} {list(shape)[:8]}) does not match its {end - begin:,} bytes"
            )
        places.append((begin, end))
        entries[name] = TensorEntry(dtype, shape)
    # tensors must cover the bytes exactly: overlaps or gaps could hide data
    places.sort()
    ends = [0, *(end for _, end in places)]
    if [begin for begin, _ in places] != ends[:-1] or ends[-1] != room:
        raise BestiaryError("its tensors overlap or do not fill the file")
    return Header(entries, dict(metadata))


def _checked_entry(name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape and offsets of one tensor, each within bounds."""
    shown = f"tensor {name[:80]!r}"
    if not _is_text(name) or not isinstance(entry, dict):
        raise BestiaryError(f"{shown} is not a tensor entry")
    dtype, shape, place = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _DTYPE_BYTES:
        raise BestiaryError(f"{shown} has the unknown type {str(dtype)[:20]!r}")
    # check bounds before any product: multiplying huge sizes could take minutes
    if not _are_sizes(shape, 0, MOST_AXES) or not _are_sizes(place, 2, 2):
        raise BestiaryError(f"{shown} has an invalid shape or offset")
    return dtype, tuple(shape), place[0], place[1]


def _are_sizes(value: object, least: int, most: int) -> TypeGuard[list[int]]:
    """True for a list of `least` to `most` whole numbers below `LARGEST_SIZE`."""
    if not isinstance(value, list) or not least <= len(value) <= most:
        return False
    return all(type(n) is int and 0 <= n < LARGEST_SIZE for n in value)


def _is_text(text: str) -> bool:
    """False for text with lone surrogates, which JSON can contain but no terminal can print."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_text_tensor(value: object) -> Tensor:
    """Any JSON value as a uint8 tensor of shape `(n,)`, for tables that are too long for a header."""
    return torch.tensor(list(json.dumps(value, ensure_ascii=False).encode()), dtype=torch.uint8)


def from_text_tensor(tensor: Tensor) -> object:
    """The JSON value stored by `to_text_tensor`, from a tensor of any shape.

    Raises:
        BestiaryError: the bytes are not JSON.
    """
    try:
        return json.loads(bytes(tensor.to(torch.uint8).flatten().numpy()), parse_int=_bounded_number)
    except (ValueError, RecursionError) as fault:
        raise BestiaryError(f"a table of {tensor.numel():,} bytes is not readable text") from fault


def _bare(key: str) -> str:
    return key.removeprefix(PREFIX)


def _stored(key: str) -> str:
    return key if "." in key else PREFIX + key


def _encoded(key: str, value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if _stored(key).startswith(PREFIX) else str(value)


def _decoded(key: str, text: str) -> object:
    if not key.startswith(PREFIX):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
