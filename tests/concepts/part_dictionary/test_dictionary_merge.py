"""Merging two dictionaries."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.thumbnail_atlas import ThumbnailAtlas
from bestiary.concepts.part_dictionary.dictionary_merge import merge_dictionaries
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from PIL import Image


def birds(**changes: object) -> PartDictionary:
    fields = {
        "backbone": "sd15",
        "part_names": ("head", "background"),
        "kind_names": ({0: "jay", 1: "owl"}, {}),
        "background": 1,
        "rows": torch.tensor([(0, 0), (0, 1), (1, 3)]),
        "embeddings": {"clip_l": torch.arange(12.0).view(3, 4)},
        "provenance": {"base": "a", "seed": 1},
    }
    return PartDictionary(**{**fields, **changes})


def dogs() -> PartDictionary:
    return PartDictionary(
        backbone="sd15",
        part_names=("scene", "nose", "Head"),
        kind_names=({}, {2: "pug"}, {1: "Jay", 7: "pug"}),
        background=0,
        rows=torch.tensor([(2, 1), (2, 7), (1, 2), (0, 3)]),
        embeddings={"clip_l": 100 + torch.arange(16.0).view(4, 4)},
        provenance={"base": "b"},
    )


def test_the_first_keeps_its_numbers_and_the_second_finds_free_ones() -> None:
    merged, mapping = merge_dictionaries(birds(), dogs())
    assert merged.part_names == ("head", "background", "nose")
    assert mapping == {(0, 3): (1, 4), (1, 2): (2, 2), (2, 1): (0, 2), (2, 7): (0, 7)}
    for (part, kind), place in mapping.items():
        assert torch.equal(merged.vector(*place), dogs().vector(part, kind))
    for part, kind in birds().row_of:
        assert torch.equal(merged.vector(part, kind), birds().vector(part, kind))
    assert merged.kind_names == ({0: "jay", 1: "owl", 2: "Jay (2)", 7: "pug"}, {}, {2: "pug"})
    assert merged.background == 1
    assert merged.find_kind(0, "jay (2)") == 2


def test_the_background_of_the_second_is_kept_where_the_first_has_none() -> None:
    merged = merge_dictionaries(birds(background=None), dogs())[0]
    assert merged.part_names == ("head", "background", "scene", "nose")
    assert merged.background == 2


def test_provenance_stays_flat_over_many_merges() -> None:
    thrice = merge_dictionaries(merge_dictionaries(birds(), dogs())[0], dogs())[0]
    assert thrice.provenance == {"base": "a", "seed": 1, "merged_with": [{"base": "b"}, {"base": "b"}]}


def test_lora_and_thumbnails_come_along() -> None:
    lora = {"m.lora_down.weight": torch.ones(1, 2), "m.lora_up.weight": torch.ones(2, 1)}
    tiles = [ThumbnailAtlas.from_images({(0, 1): Image.new("RGB", (32, 32), colour)}, 32) for colour in ("red", "blue")]
    other = birds(lora=lora, thumbnails=tiles[1])
    merged, _ = merge_dictionaries(birds(lora=lora, thumbnails=tiles[0]), other, (1.0, 0.5))
    assert (merged.lora["m.lora_up.weight"] @ merged.lora["m.lora_down.weight"]).flatten().tolist() == [1.5] * 4
    assert merged.thumbnails.index == ((0, 1), (0, 3))
    assert merged.thumbnails.tile(0, 1).getpixel((9, 9))[0] > 200
    assert merged.thumbnails.tile(0, 3).getpixel((9, 9))[2] > 200
    assert merge_dictionaries(birds(), birds())[0].thumbnails is None


def test_other_backbones_and_widths_cannot_be_merged() -> None:
    narrow = birds(embeddings={"clip_l": torch.zeros(3, 2)})
    with pytest.raises(BestiaryError, match="a sd15 dictionary .*4.* and a sd15 dictionary .*2.* cannot be merged"):
        merge_dictionaries(birds(), narrow)


def test_names_that_are_alike_stay_apart_where_one_dictionary_has_both() -> None:
    rows, vectors = torch.tensor([(0, 0), (1, 0)]), {"clip_l": torch.arange(8.0).view(2, 4)}
    both = birds(
        part_names=("left wing", "left_wing"), kind_names=({}, {}), background=None, rows=rows, embeddings=vectors
    )
    merged, mapping = merge_dictionaries(both, both)
    assert merged.part_names == ("left wing", "left_wing") and mapping == {(0, 0): (0, 1), (1, 0): (1, 1)}
    # with one of them in the first dictionary the other is a new part
    single = birds(part_names=("left_wing", "background"))
    merged, mapping = merge_dictionaries(single, both)
    assert merged.part_names == ("left_wing", "background", "left wing")
    assert (mapping[0, 0][0], mapping[1, 0][0]) == (2, 0)
    # alone, another spelling is the same part
    other = birds(part_names=("Left-Wing", "background"))
    assert merge_dictionaries(single, other)[0].part_names == ("left_wing", "background")
