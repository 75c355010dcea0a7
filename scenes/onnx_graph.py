"""The graph of an ONNX file and the numbers stored in it, read without the onnx package.

An ONNX file is one protobuf message: fields of a number, a wire type and a value; messages within messages are values too. Only
the fields that a network of convolutions needs are read, others are skipped. Numbers of fields: onnx/onnx.proto of ONNX, version 1.

Nothing in a file is trusted: every length is checked against what is left of it, and a tensor takes no more memory than its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..concepts.errors import BestiaryError
from ..concepts.files.wrong_download import wrong_download

LARGEST_FILE = 1 << 30
"""Bytes; larger files are refused unread."""
MOST_NODES = 100_000
MOST_AXES = 16
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10
_EXTERNAL = 1
# number of ONNX's data type -> that of numpy; 16 is bfloat16, the upper half of a float32
_DTYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "u1", 10: "<f2", 11: "<f8", 16: "<u2"}
_BFLOAT16 = 16


class _Broken(ValueError):
    """What is wrong with a message."""


@dataclass(frozen=True)
class OnnxNode:
    """One operation."""

    operation: str
    """Such as `Conv`."""
    inputs: tuple[str, ...]
    """Names of values; empty where an optional one is left out."""
    outputs: tuple[str, ...]
    integers: dict[str, tuple[int, ...]]
    """Attributes that are whole numbers, a single one as a tuple of one."""
    tensor: memoryview | None = None
    """Of a Constant: its value, still encoded."""


@dataclass(frozen=True)
class OnnxGraph:
    """What an ONNX file holds."""

    nodes: tuple[OnnxNode, ...]
    """In the order of the file."""
    inputs: tuple[str, ...]
    """Values that are given from outside, among them, in old files, stored ones."""
    outputs: tuple[str, ...]
    stored: dict[str, memoryview]
    """Tensors of the file by name, still encoded; `decoded` reads one."""


def read_onnx(path: Path) -> OnnxGraph:
    """Read the graph of an ONNX file.

    Raises:
        BestiaryError: it cannot be read, is cut off, or is not an ONNX file.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise BestiaryError(f"{path} has {size:,} bytes; ONNX files beyond {LARGEST_FILE:,} are refused")
        content = path.read_bytes()
    except OSError as fault:
        raise BestiaryError(f"could not read {path}: {fault.strerror or fault}") from fault
    if (hint := wrong_download(content[:512])) is not None:
        raise BestiaryError(f"{path} {hint}")
    return parsed_onnx(content, str(path))


def parsed_onnx(content: bytes, called: str) -> OnnxGraph:
    """The graph of an ONNX file's bytes; errors name it as it is `called`.

    Raises:
        BestiaryError: cut off, or no ONNX file.
    """
    try:
        graphs = [value for number, value in _fields(memoryview(content)) if number == 7]
        if len(graphs) != 1:
            raise _Broken("it holds no graph")
        return _graph(_message(graphs[0]))
    except (_Broken, UnicodeDecodeError) as fault:
        raise BestiaryError(f"{called} is not an ONNX file, or is truncated: {fault}; fetch it again") from fault


def decoded(tensor: memoryview) -> NDArray:
    """A stored tensor of any shape in its own type of numbers, bfloat16 as float32.

    Raises:
        BestiaryError: a type that is not known, numbers kept in another file, or fewer or more than its shape says.
    """
    dims: list[int] = []
    kind, place, raw, typed = 0, 0, None, []
    try:
        for number, value in _fields(tensor):
            if number == 1:
                dims += _integers(value)
            elif number == 2:
                kind = _integer(value)
            elif number in (4, 5):  # floats, or small integers, one field for all or one for each
                typed.append((number, value))
            elif number == 9:
                raw = _message(value)
            elif number == 14:
                place = _integer(value)
        if place == _EXTERNAL:
            raise _Broken("its numbers lie in another file; export it as one file")
        if kind not in _DTYPES:
            raise _Broken(f"it holds numbers of type {kind}, which is not read")
        flat = _raw(raw, kind) if raw is not None else _typed(typed, kind)
        # bounds come before the product
        bounded = len(dims) <= MOST_AXES and all(0 <= size < 1 << 32 for size in dims)
        if not bounded or math.prod(dims) != len(flat):
            raise _Broken(f"a tensor of {dims[:8]} has {len(flat):,} numbers")
    except _Broken as fault:
        raise BestiaryError(str(fault)) from fault
    return flat.reshape(dims)


def _raw(raw: memoryview, kind: int) -> NDArray:
    """Numbers `(n,)` that are stored as plain bytes."""
    dtype = np.dtype(_DTYPES[kind])
    if len(raw) % dtype.itemsize:
        raise _Broken(f"a tensor's {len(raw):,} bytes are not whole numbers")
    flat = np.frombuffer(raw, dtype)
    return (flat.astype(np.uint32) << 16).view(np.float32) if kind == _BFLOAT16 else flat


def _typed(fields: list[tuple[int, int | memoryview]], kind: int) -> NDArray:
    """Numbers `(n,)` that are stored as protobuf's own: float32 in field 4, small types in field 5."""
    if all(number == 4 for number, _ in fields) and kind == 1:
        return _raw(memoryview(b"".join(_message(value) for _, value in fields)), kind)
    if any(number == 4 for number, _ in fields) or _DTYPES[kind] not in ("<f2", "<u2", "<i4", "u1", "i1"):
        raise _Broken("its numbers are not stored where their type belongs")
    values = [one for _, value in fields for one in _integers(value)]
    # half floats stand there as the whole number that their bits spell
    low = np.array(values, np.int64).astype(np.dtype(_DTYPES[kind]).str.replace("f", "u"))
    return _raw(memoryview(low.tobytes()), kind)


def _graph(content: memoryview) -> OnnxGraph:
    nodes, inputs, outputs, stored = [], [], [], {}
    for number, value in _fields(content):
        if number == 1:
            nodes.append(_node(_message(value)))
        elif number == 5:
            tensor = _message(value)
            stored[_named(tensor, 8)] = tensor
        elif number == 11:
            inputs.append(_named(_message(value), 1))
        elif number == 12:
            outputs.append(_named(_message(value), 1))
        if len(nodes) > MOST_NODES:
            raise _Broken(f"it has more than {MOST_NODES:,} operations")
    if not nodes:
        raise _Broken("its graph has no operation")
    return OnnxGraph(tuple(nodes), tuple(inputs), tuple(outputs), stored)


def _node(content: memoryview) -> OnnxNode:
    inputs, outputs, operation, integers, tensor = [], [], "", {}, None
    for number, value in _fields(content):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 4:
            operation = _text(value)
        elif number == 5:
            name, numbers, held = _attribute(_message(value))
            integers[name] = numbers
            tensor = held if held is not None else tensor
    return OnnxNode(operation, tuple(inputs), tuple(outputs), integers, tensor)


def _attribute(content: memoryview) -> tuple[str, tuple[int, ...], memoryview | None]:
    name, numbers, tensor = "", [], None
    for number, value in _fields(content):
        if number == 1:
            name = _text(value)
        elif number in (3, 8):  # one whole number, or several
            numbers += _integers(value)
        elif number == 5:
            tensor = _message(value)
    return name, tuple(numbers), tensor


def _named(content: memoryview, field: int) -> str:
    """The text of a message's field that names it."""
    return next((_text(value) for number, value in _fields(content) if number == field), "")


def _fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of every field of a message: a whole number, or the bytes of anything else."""
    place, end = 0, len(content)
    while place < end:
        key, place = _varint(content, place)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, place = _varint(content, place)
            yield number, value
            continue
        if wire == _BYTES:
            size, place = _varint(content, place)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise _Broken(f"a field of wire type {wire} at byte {place:,}")
        if size > end - place:
            raise _Broken(f"a field of {size:,} bytes where {end - place:,} are left")
        yield number, content[place : place + size]
        place += size


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, and the place after it."""
    value = 0
    for shift in range(_LONGEST_VARINT):
        if place >= len(content):
            raise _Broken("it ends within a number")
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, place
    raise _Broken(f"a number of more than {_LONGEST_VARINT} bytes")


def _integers(value: int | memoryview) -> list[int]:
    """Whole numbers of 64 bits with their sign: one, or all that are packed in one field."""
    if isinstance(value, int):
        packed = [value]
    else:
        place, packed = 0, []
        while place < len(value):
            one, place = _varint(value, place)
            packed.append(one)
    return [one - (1 << 64) if one >> 63 == 1 else one for one in packed]


def _integer(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise _Broken("bytes where a whole number belongs")
    return value


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _Broken("a whole number where a message belongs")
    return value


def _text(value: int | memoryview) -> str:
    return str(_message(value), "utf-8")
