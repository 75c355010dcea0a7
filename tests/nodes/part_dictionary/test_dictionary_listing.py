"""Tests of what a browser is told of a dictionary, against the dictionary itself and the grammar's writer."""

import io
import json
import random
import struct

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.concept_file import to_text_tensor, write_concept_file
from bestiary.concepts.files.thumbnail_atlas import ThumbnailAtlas
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_prompt.mention_writing import written_kinds
from bestiary.nodes.part_dictionary.dictionary_listing import ThumbnailPages, cut_pages, list_dictionary
from PIL import Image

HOSTILE = "<img src=x onerror=alert(1)>"


def made(kinds: int = 3, names: dict[int, str] | None = None, atlas: ThumbnailAtlas | None = None) -> PartDictionary:
    rows = torch.tensor([[part, kind] for part in range(2) for kind in range(kinds)])
    return PartDictionary(
        backbone="bestiary-demo",
        part_names=("head", "a.b:c"),
        kind_names=(names or {}, {}),
        background=1,
        rows=rows,
        embeddings={"clip_l": torch.ones(len(rows), 128)},
        thumbnails=atlas,
        id_base=1,
    )


def colored_atlas(count: int, edge: int = 8) -> ThumbnailAtlas:
    images = {(0, n): Image.new("RGB", (edge, edge), (n * 5 % 256, n * 3 % 256, 200)) for n in range(count)}
    return ThumbnailAtlas.from_images(images, edge)


def test_parts_kinds_numbers_and_tiles_are_those_of_the_dictionary(tmp_path):
    path = tmp_path / "birds.safetensors"
    dictionary = made(4, {0: "cardinal", 2: "blue+jay", 3: "17"}, colored_atlas(2))
    dictionary.save(path)
    listed = list_dictionary(path)
    head, other = listed["parts"]
    assert (listed["backbone"], listed["id_base"]) == ("bestiary-demo", 1)
    assert head["kinds"]["numbers"] == [1, 2, 3, 4]
    assert head["kinds"]["names"] == ["cardinal", None, "blue+jay", "17"]
    assert head["kinds"]["tiles"] == [0, 1, -1, -1]
    # the grammar's own writer
    assert head["kinds"]["written"] == [written_kinds(dictionary, 0, ((kind, 1.0),)) for kind in range(4)]
    assert (other["written"], other["background"], head["background"]) == ("a\\.b\\:c", True, False)
    assert listed["atlas"] == {"tile": 8, "columns": 2, "per_page": 100, "pages": 1}


def test_kinds_that_share_a_name_are_written_by_number(tmp_path):
    path = tmp_path / "birds.safetensors"
    dictionary = made(5, {0: "Blue Jay", 1: "blue-jay", 2: "  ", 3: "wren", 4: "wren"})
    dictionary.save(path)
    # alike is not the same: what is spelt exactly so is found first
    written = ["Blue Jay", "blue-jay", "3", "4", "5"]
    assert list_dictionary(path)["parts"][0]["kinds"]["written"] == written
    assert [written_kinds(dictionary, 0, ((kind, 1.0),)) for kind in range(5)] == written


def test_pages_show_the_same_pixels_as_the_atlas(tmp_path):
    atlas = colored_atlas(230, edge=16)
    pages = cut_pages(atlas)
    assert len(pages) == 3
    for number in (0, 99, 100, 229):
        sheet = Image.open(io.BytesIO(pages[number // 100])).convert("RGB")
        left, top = number % 100 % 10 * 16, number % 100 // 10 * 16
        ours = torch.tensor(sheet.getpixel((left + 8, top + 8)))
        theirs = torch.tensor(atlas.tile(0, number).getpixel((8, 8)))
        assert (ours - theirs).abs().max() <= 8
    assert Image.open(io.BytesIO(pages[2])).size == (160, 48)


def test_pages_are_cut_once_and_again_when_the_file_changes(tmp_path, monkeypatch):
    path, calls = tmp_path / "birds.safetensors", []
    made(3, atlas=colored_atlas(3)).save(path)
    monkeypatch.setattr(
        "bestiary.nodes.part_dictionary.dictionary_listing.cut_pages",
        lambda atlas: calls.append(1) or [b"page", b"next"],
    )
    pages = ThumbnailPages()
    assert [pages.page(path, "1", n) for n in (0, 1, 0)] == [b"page", b"next", b"page"]
    assert len(calls) == 1
    pages.page(path, "2", 0)
    assert len(calls) == 2
    with pytest.raises(BestiaryError, match="no page 2 of thumbnails: it has 2 pages"):
        pages.page(path, "2", 2)


def test_a_dictionary_without_thumbnails_has_no_page(tmp_path):
    path = tmp_path / "birds.safetensors"
    made().save(path)
    assert list_dictionary(path)["atlas"] is None
    with pytest.raises(BestiaryError, match="no page 0 of thumbnails: it has 0 pages"):
        ThumbnailPages().page(path, "1", 0)


def test_script_in_a_name_stays_text(tmp_path):
    path = tmp_path / "birds.safetensors"
    made(2, {0: HOSTILE}).save(path)
    kinds = list_dictionary(path)["parts"][0]["kinds"]
    assert kinds["names"][0] == HOSTILE
    assert json.loads(json.dumps(kinds["written"]))[0] == "\\<img src=x onerror=alert(1)\\>"


def test_a_long_name_is_cut_and_written_by_number(tmp_path):
    path = tmp_path / "birds.safetensors"
    made(2, {0: "x" * 5000}).save(path)
    kinds = list_dictionary(path)["parts"][0]["kinds"]
    assert (len(kinds["names"][0]), kinds["written"][0]) == (120, "1")


def hostile_file(path, **changes):
    tensors = {
        "clip_l": torch.ones(2, 128),
        "rows": torch.tensor([[0, 0], [0, 1]], dtype=torch.int32),
        "names": to_text_tensor({"parts": ["head"], "kinds": [{}]}),
        **changes,
    }
    write_concept_file(path, tensors, {"kind": "part-dictionary", "backbone": "bestiary-demo"})
    return path


def test_a_broken_atlas_is_told_and_the_names_still_show(tmp_path):
    atlas = {
        "thumbnails.picture": torch.tensor(list(random.Random(0).randbytes(500)), dtype=torch.uint8),
        "thumbnails.index": torch.tensor([[0, 0]], dtype=torch.int32),
        "thumbnails.shape": torch.tensor([96, 1], dtype=torch.int32),
    }
    path = hostile_file(tmp_path / "x.safetensors", **atlas)
    listed = list_dictionary(path)
    assert listed["atlas"] is None and "are not a WebP picture" in listed["atlas_fault"]
    assert listed["parts"][0]["kinds"]["numbers"] == [0, 1]


def test_an_atlas_cut_off_in_its_pixels_is_told_when_pages_are_asked_for(tmp_path):
    whole = Image.frombytes("RGB", (96, 96), random.Random(0).randbytes(96 * 96 * 3))
    stream = io.BytesIO()
    whole.save(stream, "WEBP")
    half = stream.getvalue()[: len(stream.getvalue()) // 2]
    atlas = {
        "thumbnails.picture": torch.tensor(list(half), dtype=torch.uint8),
        "thumbnails.index": torch.tensor([[0, 0]], dtype=torch.int32),
        "thumbnails.shape": torch.tensor([96, 1], dtype=torch.int32),
    }
    path = hostile_file(tmp_path / "x.safetensors", **atlas)
    with pytest.raises(BestiaryError, match="thumbnails are broken"):
        ThumbnailPages().page(path, "1", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": torch.zeros(9 << 20, dtype=torch.uint8)}, "its table names has 9,437,184 values, at most 8,388,608"),
        ({"names": torch.zeros(4, dtype=torch.uint8)}, "its table of names cannot be read"),
        ({"names": to_text_tensor({"parts": ["a"], "kinds": []})}, "1 parts, but 0 lists of kinds"),
        ({"names": to_text_tensor({"parts": [], "kinds": []})}, "its rows refer to a part without a name"),
        ({"rows": torch.tensor([[-1, 0]], dtype=torch.int32)}, "its rows refer to a part without a name"),
        ({"rows": torch.zeros(3, dtype=torch.int32)}, "its names or rows are missing"),
    ],
)
def test_broken_tables_are_told(tmp_path, changes, message):
    with pytest.raises(BestiaryError, match=message):
        list_dictionary(hostile_file(tmp_path / "x.safetensors", **changes))


def test_a_giant_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(BestiaryError, match="is not a safetensors file, or is truncated"):
        list_dictionary(path)
    path.write_bytes(struct.pack("<Q", 3 << 20) + b" " * (4 << 20))
    with pytest.raises(BestiaryError, match="declares a header of 3,145,728 bytes"):
        list_dictionary(path)


def test_other_files_are_told_apart(tmp_path):
    path = tmp_path / "x.safetensors"
    write_concept_file(path, {"a": torch.zeros(1)}, {"kind": "prompt-spectrum"})
    with pytest.raises(BestiaryError, match="x.safetensors is prompt-spectrum, not a part dictionary"):
        list_dictionary(path)
