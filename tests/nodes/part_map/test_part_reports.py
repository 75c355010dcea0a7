"""Texts about codebooks and maps."""

from dataclasses import replace

import torch
from bestiary.concepts.part_map.part_map import ABSENT, PartMaps
from bestiary.concepts.part_prompt.caption_file import parse_captions
from bestiary.nodes.part_map.part_reports import codebook_text, codes_text, discovery_text, source_text
from bestiary.nodes.part_map.seen_parts import SeenParts


def seen(codes: list[list[int]]) -> SeenParts:
    labels = torch.full((len(codes), 8, 8), 2, dtype=torch.uint8)
    labels[:, :4, :2] = 0
    return SeenParts(
        ("head", "body", "background"), 2, PartMaps(labels, torch.tensor(codes)), (64, 64), "centre square"
    )


def test_a_codebook_in_words(small_codebook):
    assert codebook_text(small_codebook).splitlines() == [
        "3 parts, features: descriptor",
        "0 head: 2 kinds: cardinal, blue jay",
        "1 body: 2 kinds",
        "2 background (background): 2 kinds",
    ]


def test_a_codebook_without_kinds_has_none_to_name(small_codebook):
    bare = replace(small_codebook, fine=(), kind_names=())
    assert codebook_text(bare).splitlines()[1] == "0 head: 0 kinds"


def test_the_model_that_features_read_is_named(small_codebook):
    assert (
        source_text(replace(small_codebook, feature_spec={"name": "diffusion", "backbone": "sd15"}))
        == "diffusion of sd15"
    )
    assert source_text(replace(small_codebook, feature_spec={})) == "unknown"


def test_a_discovery_in_figures(small_codebook):
    text = discovery_text(small_codebook, [seen([[0, ABSENT, 1]]), seen([[1, ABSENT, 0], [ABSENT, 0, 0]])], None)
    assert text.splitlines() == [
        "3 pictures, features: descriptor",
        "head: shown by 2 of 3, 19% of the picture, 2 kinds",
        "body: shown by 1 of 3, 0% of the picture, 2 kinds",
        "background: shown by 3 of 3, 88% of the picture, 2 kinds",
    ]
    assert discovery_text(small_codebook, [seen([[0, 0, 0]])], "Doubtful.").endswith("\nDoubtful.")


def test_codes_are_a_caption_file():
    codes = [[0, ABSENT, 1], [1, 0, 0], [ABSENT, ABSENT, ABSENT]]
    assert codes_text(seen(codes)) == "0:0 2:1\n0:1 1:0 2:0\n"
    assert parse_captions(codes_text(seen(codes)) + "\n", 3).tolist() == codes
