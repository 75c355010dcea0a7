"""Tests of what Dictionary Info says and draws."""

import pytest
import torch
from bestiary.concepts.files.thumbnail_atlas import ThumbnailAtlas
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.nodes.part_dictionary import dictionary_report
from bestiary.nodes.part_dictionary.dictionary_report import COLUMNS, LABEL_HEIGHT, describe_dictionary, thumbnail_sheet
from PIL import Image

TILE = 32


def dictionary(kinds: int = 3, thumbnails: bool = True, **changes: object) -> PartDictionary:
    rows = torch.tensor([[part, kind] for part in (0, 2) for kind in range(kinds)])
    colours = {(0, 0): (255, 0, 0), (0, 1): (0, 255, 0), (2, 1): (0, 0, 255)}
    pictures = {pair: Image.new("RGB", (TILE, TILE), colour) for pair, colour in colours.items()}
    settings = {
        "part_names": ("head", "untrained", "background"),
        "kind_names": ({0: "blue jay", 1: "鳥"}, {}, {}),
        "background": 2,
        "embeddings": {"clip_l": torch.zeros(len(rows), 4)},
        "thumbnails": ThumbnailAtlas.from_images(pictures, TILE) if thumbnails else None,
        "id_base": 1,
    }
    return PartDictionary("sd15", rows=rows, **{**settings, **changes})


def test_the_text_names_parts_kinds_and_origin():
    lora = {"x.lora_down.weight": torch.zeros(1, 2), "x.lora_up.weight": torch.zeros(2, 1)}
    one = dictionary(lora=lora, provenance={"made_by": "a test", "notes": ["x" * 500]})
    assert describe_dictionary(one, "my birds").splitlines()[:9] == [
        "dictionary: my birds",
        "base model: sd15 (clip_l 4 wide), 512 px",
        "vectors: 6",
        "LoRA: 1 layers",
        "thumbnails: 3",
        "",
        "0 head: 3 kinds, numbers 1..3: 1 blue jay, 2 鳥",
        "2 background (background): 3 kinds, numbers 1..3",
        "",
    ]
    rest = describe_dictionary(one, "my birds").splitlines()[9:]
    assert rest[0] == "in a prompt: (embedding:my_birds/head.blue_jay:1.0)"
    assert "made_by: a test" in rest
    assert max(map(len, rest)) <= len("notes: ") + dictionary_report.LONGEST_FACT


def test_the_example_of_the_text_can_be_used(sd15_model):
    from bestiary.nodes.host.socket_types import NamedDictionary
    from bestiary.nodes.part_prompt.clip_tokens import part_spans
    from bestiary.nodes.part_prompt.taught_clip import with_dictionary

    one = dictionary(embeddings={"clip_l": torch.zeros(6, 32)})
    line = next(line for line in describe_dictionary(one, "my birds").splitlines() if line.startswith("in a prompt"))
    clip = with_dictionary(sd15_model.clip, NamedDictionary("my birds", one))
    assert part_spans(clip.tokenize(line.partition(": ")[2]))[0].label == "head:blue jay"


def test_many_names_are_shortened():
    one = dictionary(60, kind_names=({kind: f"k{kind}" for kind in range(60)}, {}, {}))
    assert "40 k39 and 20 more" in describe_dictionary(one, "x")


def test_the_sheet_shows_tiles_where_they_belong():
    sheet = thumbnail_sheet(dictionary())
    assert sheet.shape[0] == 1 and sheet.shape[3] == 3
    assert sheet.min() >= 0 and sheet.max() <= 1
    row = LABEL_HEIGHT + 2 + TILE // 2
    second = row + 2 * LABEL_HEIGHT + TILE
    for top, left, colour in [(row, 0, 0), (row, 1, 1), (second, 1, 2)]:
        pixel = sheet[0, top, 4 + left * (TILE + 4) + TILE // 2]
        assert pixel.argmax() == colour and pixel[colour] > 0.8, (top, left)
    # a kind without a picture leaves its place empty
    assert sheet[0, row, 4 + 2 * (TILE + 4) + TILE // 2].min() > 0.9


@pytest.mark.parametrize("kinds", [1, COLUMNS, COLUMNS + 1])
def test_kinds_wrap_into_rows(kinds):
    sheet = thumbnail_sheet(dictionary(kinds, thumbnails=False, id_base=0))
    rows = 2 * -(-kinds // COLUMNS)
    assert sheet.shape[1] == rows * (64 + LABEL_HEIGHT) + 2 * LABEL_HEIGHT + 4


def test_huge_dictionaries_stay_a_picture_one_can_open(monkeypatch):
    monkeypatch.setattr(dictionary_report, "MOST_TILES", 16)
    few = thumbnail_sheet(dictionary(8, thumbnails=False))
    many = thumbnail_sheet(dictionary(500, thumbnails=False))
    assert many.shape == few.shape
