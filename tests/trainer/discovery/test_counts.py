"""Sizes and typical pictures: pieces add up, the nearest pictures of every kind are remembered."""

import torch
import torch.nn.functional as F
from bestiary.concepts.part_map.foreground import CentroidForeground
from bestiary.concepts.part_map.part_codebook import PartCodebook
from bestiary.concepts.part_map.part_map import ABSENT, PartMaps
from bestiary.concepts.part_map.part_model import CentroidParts
from bestiary.trainer.discovery.counts import PER_KIND, PartCounts, TypicalPictures, largest_kinds


def test_hand_counted_sizes() -> None:
    labels = torch.tensor([[[0, 0], [1, 2]], [[2, 2], [2, 2]]], dtype=torch.uint8)
    codes = torch.tensor([[4, 7, 0], [ABSENT, ABSENT, 0]])
    counts = PartCounts(3)
    counts.add(PartMaps(labels, codes))
    assert counts.report(["head", "wing", "background"]) == [
        {"index": 0, "name": "head", "images": 1, "area": 0.5, "kinds": {"4": 1}},
        {"index": 1, "name": "wing", "images": 1, "area": 0.25, "kinds": {"7": 1}},
        {"index": 2, "name": "background", "images": 2, "area": 0.625, "kinds": {"0": 2}},
    ]


def test_pieces_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (30, 6, 6), generator=generator, dtype=torch.uint8)
    codes = torch.randint(-1, 5, (30, 4), generator=generator)
    whole, pieces = PartCounts(4), PartCounts(4)
    whole.add(PartMaps(labels, codes))
    for start in range(0, 30, 7):
        pieces.add(PartMaps(labels[start : start + 7], codes[start : start + 7]))
    sorted_kinds = [[sorted(part["kinds"].items()) for part in counts.report("abcd")] for counts in (whole, pieces)]
    assert sorted_kinds[0] == sorted_kinds[1] and pieces.images == 30
    assert torch.equal(whole.patches, pieces.patches) and torch.equal(whole.shown, pieces.shown)


def test_a_part_that_no_picture_shows() -> None:
    counts = PartCounts(2)
    counts.add(PartMaps(torch.zeros(1, 2, 2, dtype=torch.uint8), torch.tensor([[0, ABSENT]])))
    assert counts.report(["a", "b"])[1] == {"index": 1, "name": "b", "images": 0, "area": 0.0, "kinds": {}}


def codebook(fine: tuple[torch.Tensor, ...], centers: torch.Tensor | None) -> PartCodebook:
    width = fine[0].shape[1]
    parts = CentroidParts(torch.ones(1, width), torch.zeros(1).long(), filled=False)
    foreground = CentroidForeground(torch.eye(2, width), 0)
    return PartCodebook({}, width, (2, 2), ("a", "b"), 1, foreground, parts, fine, centers)


def test_typical_pictures_are_those_nearest_to_the_centre() -> None:
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(40, 2, 6, generator=generator)
    centers = torch.randn(2, 6, generator=generator) * 0.3
    book = codebook((torch.randn(3, 6, generator=generator), torch.randn(2, 6, generator=generator)), centers)
    counts = torch.ones(40, 2, dtype=torch.long)
    counts[::5, 0] = 0
    codes = book.kind_of(means, counts)
    typical = TypicalPictures(book)
    for start in range(0, 40, 9):
        typical.add(start, codes[start : start + 9], means[start : start + 9])
    for part in range(2):
        for kind in range(len(book.fine[part])):
            rows = (codes[:, part] == kind).nonzero().flatten()
            nearness = F.cosine_similarity(means[rows, part] - centers[part], book.fine[part][kind], dim=1)
            theirs = rows[nearness.argsort(descending=True)][:PER_KIND].tolist()
            assert typical.rows().get(f"{part}:{kind}", []) == theirs


def test_parts_that_are_absent_have_no_typical_pictures() -> None:
    typical = TypicalPictures(codebook((torch.eye(2), torch.eye(2)), None))
    typical.add(0, torch.tensor([[ABSENT, 1], [ABSENT, 1]]), torch.ones(2, 2, 2))
    assert typical.rows() == {"1:1": [0, 1]}


def test_largest_kinds_come_first() -> None:
    assert largest_kinds({"kinds": {"10": 3, "2": 3, "7": 9, "1": 1}}, 3) == [(7, 9), (2, 3), (10, 3)]
