"""Concept files: round trips, and refusals of what is broken, foreign, newer or hostile."""

import json
import os
import re
import struct
import time
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.concept_file import (
    CODEBOOK_KIND,
    DICTIONARY_KIND,
    SPECTRUM_KIND,
    from_text_tensor,
    read_concept_file,
    read_header,
    read_tensors,
    to_text_tensor,
    write_concept_file,
    write_tensors,
)
from bestiary.concepts.files.concept_names import CODEBOOK_SUFFIX
from safetensors import safe_open
from safetensors.torch import save_file

SHIPPED = Path(__file__).parents[3] / "demo" / "concepts"


def raw(path: Path, header: object, body: bytes = b"", length: int | None = None) -> Path:
    """A hand-made safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.safetensors"
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5, dtype=torch.uint8), "c": torch.randn(4, 6).half()[:, ::2]}
    metadata = {"kind": "test", "names": ["küken", "b"], "size": 3, "none": None, "modelspec.title": "Owls"}
    write_concept_file(path, tensors, metadata)
    ours = read_concept_file(path, "test")
    assert ours.tensors.keys() == tensors.keys()
    assert all(torch.equal(ours.tensors[name], tensors[name]) for name in tensors)
    assert ours.metadata == {**metadata, "format": 1}
    header = read_header(path)
    assert header.metadata["modelspec.title"] == "Owls"
    assert header.kind == "test"
    assert header.entries["c"].dtype == "F16"
    assert header.entries["c"].shape == (4, 3)


def test_shared_storage_is_written_twice_without_complaint(tmp_path: Path) -> None:
    whole = torch.randn(4)
    write_concept_file(tmp_path / "x", {"a": whole, "b": whole[:2]}, {"kind": "test"})
    assert torch.equal(read_concept_file(tmp_path / "x").tensors["b"], whole[:2])


def test_equal_content_gives_equal_bytes_in_any_order(tmp_path: Path) -> None:
    tensors = {
        "a": torch.ones(3),
        "b": torch.zeros(2, dtype=torch.uint8),
        "c": torch.tensor(4.0),
        "d": torch.zeros(0, 3),
    }
    metadata = {"kind": "test", **{f"key{number}": number for number in range(20)}}
    for number, order in enumerate((list, reversed)):
        shuffled = {name: tensors[name] for name in order(list(tensors))}
        write_concept_file(tmp_path / str(number), shuffled, {name: metadata[name] for name in order(list(metadata))})
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float64"]
)
def test_the_library_reads_what_we_write(tmp_path: Path, dtype: str) -> None:
    tensors = {"odd": torch.ones(3, dtype=torch.uint8), "x": torch.arange(6).view(2, 3).to(getattr(torch, dtype))}
    write_tensors(tmp_path / "x", tensors, {"note": "ü"})
    with safe_open(str(tmp_path / "x"), "pt") as theirs:
        assert theirs.metadata() == {"note": "ü"}
        assert theirs.get_tensor("x").dtype == tensors["x"].dtype
        assert torch.equal(theirs.get_tensor("x"), tensors["x"])
    assert torch.equal(read_tensors(tmp_path / "x")["odd"], tensors["odd"])


def test_types_without_a_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match="tensor 'x' is torch.complex128, which safetensors does not support"):
        write_tensors(tmp_path / "x", {"x": torch.zeros(1, dtype=torch.complex128)})
    assert os.listdir(tmp_path) == []


def test_our_prefix_in_a_key_is_not_doubled(tmp_path: Path) -> None:
    write_concept_file(tmp_path / "x", {"a": torch.zeros(1)}, {"bestiary.kind": "test"})
    assert read_header(tmp_path / "x").metadata["bestiary.kind"] == '"test"'


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_concept_file(path, {"a": torch.zeros(1)}, {"kind": "test"})
    before = path.read_bytes()
    with pytest.raises(BestiaryError, match="a concept file needs a kind"):
        write_concept_file(path, {"a": torch.zeros(1)}, {"name": "x"})
    with pytest.raises(BestiaryError, match="header of x would take 2,"):
        write_concept_file(path, {}, {"kind": "test", "log": "y" * (2 << 20)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_in_the_way_is_reported(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(BestiaryError, match="could not write .*taken"):
        write_concept_file(tmp_path / "taken" / "x", {"a": torch.zeros(1)}, {"kind": "test"})


def test_foreign_other_and_newer_files_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"emb_params": torch.zeros(1, 4)}, str(foreign))
    with pytest.raises(
        BestiaryError, match="was not written by Bestiary .it contains emb_params.; run `bestiary inspect`"
    ):
        read_concept_file(foreign)
    assert read_header(foreign).kind is None
    other = tmp_path / "other.safetensors"
    write_concept_file(other, {}, {"kind": "spectrum"})
    with pytest.raises(
        BestiaryError, match="other.safetensors is a spectrum file, but a part-dictionary file is required"
    ):
        read_concept_file(other, "part-dictionary")
    newer = tmp_path / "newer.safetensors"
    save_file({"a": torch.zeros(1)}, str(newer), {"bestiary.kind": '"test"', "bestiary.format": "2"})
    with pytest.raises(BestiaryError, match="has format 2, this program reads up to 1: update Bestiary"):
        read_concept_file(newer)


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{" * 500_000, "nested too deeply|broken header"),
        (b'{"a":' * 200_000, "nested too deeply|broken header"),
        (b"not json", "broken header"),
        ([1, 2], "broken header"),
        ({"a": 5}, "broken header"),
        ({"a": {"dtype": "F32"}}, "broken header"),
        ({"a": {**GOOD, "shape": [3]}}, r"tensor 'a' \(F32 \[3\]\) does not match its 8 bytes"),
        ({"a": {**GOOD, "dtype": "PICKLE"}}, "tensor 'a' has the unknown type 'PICKLE'"),
        ({"a": {**GOOD, "dtype": ["F32"]}}, "has the unknown type"),
        ({"a": {**GOOD, "shape": [1 << 62, 4]}}, "an invalid shape or offset"),
        ({"a": {**GOOD, "shape": [1 << 47, 1 << 47]}}, "does not match"),
        ({"a": {**GOOD, "shape": [1] * 17}}, "an invalid shape or offset"),
        ({"a": {**GOOD, "shape": [(1 << 48) - 1] * 100_000}}, "an invalid shape or offset"),
        ({"a": {**GOOD, "shape": [True, 2]}}, "an invalid shape or offset"),
        ({"a": {**GOOD, "shape": 2}}, "an invalid shape or offset"),
        ({"a": {**GOOD, "data_offsets": [0, 4, 8]}}, "an invalid shape or offset"),
        (b'{"a": {"shape": [' + b"9" * 1_000_000 + b"]}}", "it is not JSON"),
        (b'{"\\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', "is not a tensor entry"),
        (b'{"__metadata__": {"a": "\\ud800"}}', "text that is not valid Unicode"),
        (b'{"\xff": 1}', "it is not JSON"),
        ({"a": {**GOOD, "shape": [1], "data_offsets": [0, 4]}}, "overlap or do not fill the file"),
        ({"a": {**GOOD, "shape": [1], "data_offsets": [4, 8]}}, "overlap or do not fill the file"),
        ({}, "overlap or do not fill the file"),
        ({"a": {**GOOD, "shape": [-2], "data_offsets": [8, 0]}}, "an invalid shape or offset"),
        ({"a": {**GOOD, "shape": [1000], "data_offsets": [0, 4000]}}, "does not match its 4,000 bytes"),
        ({"__metadata__": {"bestiary.kind": 7}, "a": GOOD}, "metadata contains values that are not text"),
        ({"__metadata__": [1], "a": GOOD}, "broken header"),
    ],
)
def test_broken_headers_are_refused_before_any_tensor_is_read(tmp_path: Path, header: object, message: str) -> None:
    path = raw(tmp_path / "x.safetensors", header, b"\0" * 8)
    begin = time.process_time()
    with pytest.raises(BestiaryError, match=message) as fault:
        read_header(path)
    assert time.process_time() - begin < 10
    assert not re.search(r"Error|codec|Expecting|object|KeyErr", str(fault.value).split(".safetensors", 1)[1])


def test_giant_and_cut_headers_are_refused(tmp_path: Path) -> None:
    cut = raw(tmp_path / "cut", {"a": GOOD}, length=1 << 40)
    with pytest.raises(BestiaryError, match="is not a safetensors file, or is truncated"):
        read_header(cut)
    for content in (b"1234567", b"\0" * 8, b"PK\x03\x04" + b"\0" * 60):
        cut.write_bytes(content)
        with pytest.raises(BestiaryError, match="not a safetensors file"):
            read_header(cut)
    giant = tmp_path / "giant"
    with giant.open("wb") as stream:
        stream.write(struct.pack("<Q", 40 << 20))
        stream.truncate((40 << 20) + 8)
    with pytest.raises(BestiaryError, match="declares a header of 41,943,040 bytes; the limit is 33,554,432"):
        read_header(giant)
    with pytest.raises(BestiaryError, match="the limit is 1,048,576"):
        read_concept_file(giant)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match="could not read .*gone"):
        read_concept_file(tmp_path / "gone")
    with pytest.raises(BestiaryError, match="could not read"):
        read_header(tmp_path)


def test_overlapping_tensors_are_refused_as_broken(tmp_path: Path) -> None:
    metadata = {"bestiary.kind": '"test"', "bestiary.format": "1"}
    path = raw(tmp_path / "x", {"__metadata__": metadata, "a": GOOD, "b": GOOD}, b"\0" * 8)
    with pytest.raises(BestiaryError, match="its tensors overlap or do not fill the file"):
        read_concept_file(path)


def test_long_tables_travel_as_tensors() -> None:
    table = {"parts": ["hand", "<script>", "鳥"], "kinds": [[1, None]]}
    assert from_text_tensor(to_text_tensor(table)) == table
    with pytest.raises(BestiaryError, match="a table of 3 bytes is not readable text"):
        from_text_tensor(torch.tensor([255, 254, 0], dtype=torch.uint8))


def test_a_kind_of_thousands_of_letters_is_shown_short(tmp_path) -> None:
    path = tmp_path / "long.safetensors"
    write_concept_file(path, {"a": torch.zeros(1)}, {"kind": "y" * 5000})
    with pytest.raises(BestiaryError) as fault:
        read_concept_file(path, "part codebook")
    assert str(fault.value).endswith(f"is a {'y' * 60}… file, but a part codebook file is required: give such a file")


def test_kinds_and_ending_stay_what_files_in_use_say():
    assert (DICTIONARY_KIND, CODEBOOK_KIND, SPECTRUM_KIND) == ("part-dictionary", "parts", "prompt-spectrum")
    assert CODEBOOK_SUFFIX == ".parts.safetensors"


def test_shipped_files_are_of_these_kinds_and_codebooks_end_as_such():
    kinds = {path.name: read_header(path).kind for path in SHIPPED.glob("*.safetensors")}
    assert set(kinds.values()) == {DICTIONARY_KIND, CODEBOOK_KIND, SPECTRUM_KIND}
    assert {name for name, kind in kinds.items() if kind == CODEBOOK_KIND} == {
        name for name in kinds if name.endswith(CODEBOOK_SUFFIX)
    }
