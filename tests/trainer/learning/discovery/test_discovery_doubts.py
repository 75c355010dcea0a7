"""Doubts of a discovery: what is odd about a picture, and which parts are told by their looks."""

import pytest
import torch
from bestiary.trainer.learning.discovery.discovery_doubts import (
    Doubt,
    UsualPictures,
    confidence_word,
    doubt_text,
    most_doubtful,
    part_sureness,
)

NAMES = ("head", "legs", "background")


def usual(counts: torch.Tensor) -> UsualPictures:
    found = UsualPictures(3, 2)
    for some in (slice(0, 5), slice(5, None)):
        found.add(counts[some], torch.ones(len(counts[some]), 3))
    return found


def doubts(counts: torch.Tensor, first: int = 0) -> list[Doubt]:
    return usual(counts).doubts(first, counts, torch.ones(len(counts), 3))


def counts_of(*rows: list[int]) -> torch.Tensor:
    return torch.tensor([[10, 20, 70]] * 18 + list(rows))


@pytest.mark.parametrize(
    ("row", "part", "what", "text"),
    [
        ([0, 30, 70], 0, "missing", "no “head” found"),
        ([90, 10, 0], 0, "large", "“head” unusually large"),
        ([10, 1, 89], 1, "small", "“legs” unusually small"),
        ([0, 0, 100], -1, "missing", "no object found"),
    ],
)
def test_the_oddest_thing_about_a_picture_is_named(row: list[int], part: int, what: str, text: str) -> None:
    counts = counts_of([10, 21, 69], row)
    worst = most_doubtful(doubts(counts, 100), 1)[0]
    assert worst.row == 119
    # where all parts are gone, the thing as a whole is as odd as each of them
    assert (worst.part, worst.what) == (part, what) or (part == -1 and worst.what == "missing")
    assert doubt_text(part, what, NAMES) == text


def test_usual_pictures_come_last_and_in_their_order() -> None:
    counts = counts_of([0, 30, 70])
    found = most_doubtful(doubts(counts), 4)
    assert [doubt.row for doubt in found] == [18, 0, 1, 2]
    assert found[0].score > 2 > found[1].score
    assert most_doubtful([Doubt(4, 0, "small", 1.0), Doubt(2, 0, "small", 1.0)])[0].row == 2


def test_a_part_that_few_pictures_show_is_told() -> None:
    counts = torch.tensor([[0, 20, 80]] * 19 + [[10, 20, 70]])
    worst = most_doubtful(doubts(counts), 1)[0]
    assert (worst.row, worst.part, worst.what) == (19, 0, "extra")
    assert doubt_text(0, "extra", NAMES) == "“head” found, present in few pictures"


def test_confidence_is_the_mean_over_the_pictures_that_show_a_part() -> None:
    found = UsualPictures(3, 2)
    counts = torch.tensor([[5, 5, 5]] * 3 + [[0, 5, 5]])
    found.add(counts, torch.tensor([[0.9, 1, 1], [0.6, 1, 1], [0.6, 1, 1], [0.3, 1, 1]]))
    assert found.confidence() == pytest.approx([0.7, 1, 1])
    words = [confidence_word(value) for value in (1.0, 0.75, 1 / 3, float("nan"))]
    assert words == ["sure", "fairly sure", "unsure", "unknown"]


def test_a_picture_of_unsure_labels_comes_first() -> None:
    counts, sure = counts_of([10, 20, 70]), torch.full((19, 3), 0.95)
    sure[7, 1] = 0.5
    found = UsualPictures(3, 2)
    found.add(counts, sure)
    worst = most_doubtful(found.doubts(0, counts, sure), 1)[0]
    assert (worst.row, worst.part, worst.what) == (7, 1, "unsure")
    assert doubt_text(1, "unsure", NAMES) == "“legs” uncertain"


def test_sureness_of_parts_is_the_mean_over_their_patches() -> None:
    labels = torch.tensor([[[0, 0], [1, 2]], [[2, 2], [2, 2]]])
    confidence = torch.tensor([[[0.5, 1.0], [0.25, 0.75]], [[1.0, 1.0], [1.0, 0.0]]])
    assert part_sureness(confidence, labels, 3).tolist() == [[0.75, 0.25, 0.75], [0, 0, 0.75]]
