"""The reader of ONNX files, on messages spelled out byte by byte."""

import struct
from pathlib import Path

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.onnx_graph import decoded, parsed_onnx, read_onnx


def number(value: int) -> bytes:
    """A whole number, seven bits a byte, negative ones in 64 bits."""
    value &= (1 << 64) - 1
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + number(rest) if rest else bytes([low])


def whole(place: int, value: int) -> bytes:
    return number(place << 3) + number(value)


def packed(place: int, content: bytes) -> bytes:
    return number(place << 3 | 2) + number(len(content)) + content


def model(*parts: bytes) -> bytes:
    return whole(1, 8) + packed(7, b"".join(parts))


RELU = packed(1, packed(1, b"x") + packed(2, b"y") + packed(4, b"Relu"))
DIMS = packed(1, number(2) + number(2))
VALUES = np.array([[0.5, -1.25], [3.0, 0.0]], np.float32)
HALVES = VALUES.astype(np.float16)


def test_nodes_names_and_attributes() -> None:
    strides = packed(5, packed(1, b"strides") + packed(8, number(2) + number(3)) + whole(20, 7))
    axis = packed(5, packed(1, b"axis") + whole(3, -1))
    node = packed(1, packed(1, b"x") + packed(1, b"") + packed(2, b"z") + packed(4, b"Conv") + strides + axis)
    stored = packed(5, packed(8, b"w") + DIMS + whole(2, 1) + packed(9, VALUES.tobytes()))
    graph = parsed_onnx(model(RELU, node, stored, packed(11, packed(1, b"x")), packed(12, packed(1, b"z"))), "a.onnx")
    assert [one.operation for one in graph.nodes] == ["Relu", "Conv"]
    assert graph.nodes[1].inputs == ("x", "") and graph.nodes[1].outputs == ("z",)
    assert graph.nodes[1].integers == {"strides": (2, 3), "axis": (-1,)}
    assert graph.inputs == ("x",) and graph.outputs == ("z",) and list(graph.stored) == ["w"]


@pytest.mark.parametrize(
    "content",
    [
        whole(2, 1) + packed(9, VALUES.tobytes()),
        whole(2, 1) + packed(4, VALUES.tobytes()),
        whole(2, 1) + b"".join(number(4 << 3 | 5) + struct.pack("<f", value) for value in VALUES.flat),
        whole(2, 10) + packed(9, HALVES.tobytes()),
        whole(2, 10) + packed(5, b"".join(number(int(bits)) for bits in HALVES.view(np.uint16).flat)),
        whole(2, 11) + packed(9, VALUES.astype(np.float64).tobytes()),
        whole(2, 16) + packed(9, (VALUES.view(np.uint32) >> 16).astype(np.uint16).tobytes()),
    ],
    ids=["raw", "floats", "floats one by one", "half raw", "half as numbers", "double", "bfloat16"],
)
def test_numbers_in_every_form(content: bytes) -> None:
    read = decoded(memoryview(DIMS + content))
    assert read.dtype.kind == "f" and (read == VALUES).all()


def test_small_whole_numbers() -> None:
    values = np.array([[-3, 4], [127, -128]], np.int8)
    one_by_one = b"".join(number(int(value)) for value in values.flat)
    for content in (packed(9, values.tobytes()), packed(5, one_by_one)):
        assert (decoded(memoryview(DIMS + whole(2, 3) + content)) == values).all()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (DIMS + whole(2, 1) + packed(9, VALUES.tobytes()[:12]), r"a tensor of \[2, 2\] has 3 numbers"),
        (DIMS + whole(2, 1) + packed(9, VALUES.tobytes()[:13]), "13 bytes are not whole numbers"),
        (DIMS + whole(2, 8) + packed(9, b"text"), "numbers of type 8, which is not read"),
        (DIMS + whole(2, 1) + whole(14, 1), "its numbers lie in another file"),
        (DIMS + whole(2, 10) + packed(4, VALUES.tobytes()), "not stored where their type belongs"),
        (packed(1, number(-2)) + whole(2, 1) + packed(9, b""), r"a tensor of \[-2\] has 0 numbers"),
        (packed(1, number(1 << 31) * 40) + whole(2, 1) + packed(9, b""), "a tensor of .* has 0 numbers"),
    ],
)
def test_tensors_that_cannot_be(content: bytes, told: str) -> None:
    with pytest.raises(BestiaryError, match=told):
        decoded(memoryview(content))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (whole(1, 8), "it holds no graph"),
        (model(), "its graph has no operation"),
        (model(RELU) + model(RELU), "it holds no graph"),
        (model(RELU)[:-3], r"a field of \d+ bytes where \d+ are left"),
        (b"\x80" * 12, "a number of more than 10 bytes"),
        (b"\x0a", "it ends within a number"),
        (b"\x0b\x00", "a field of wire type 3"),
        (whole(7, 5), "a whole number where a message belongs"),
        (model(packed(1, packed(4, b"\xff\xfe"))), "utf-8"),
        (model(packed(1, whole(4, 5))), "a whole number where a message belongs"),
    ],
)
def test_what_is_no_onnx_file(content: bytes, told: str) -> None:
    with pytest.raises(BestiaryError, match=f"a.onnx is not an ONNX file, or is truncated: .*{told}.*; fetch it again"):
        parsed_onnx(content, "a.onnx")


def test_every_cut_of_a_file_is_noticed() -> None:
    content = model(RELU, packed(11, packed(1, b"x")))
    for length in range(1, len(content)):
        with pytest.raises(BestiaryError, match="not an ONNX file"):
            parsed_onnx(content[:length], "a.onnx")


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(model(RELU))
    assert read_onnx(path).nodes[0].operation == "Relu"
    monkeypatch.setattr("bestiary.scenes.onnx_graph.LARGEST_FILE", 10)
    with pytest.raises(BestiaryError, match=r"a\.onnx has \d+ bytes; ONNX files beyond 10 are refused"):
        read_onnx(path)
    with pytest.raises(BestiaryError, match=r"could not read .*b\.onnx"):
        read_onnx(tmp_path / "b.onnx")
