"""Places given to subjects: perfect ones, missing ones, swapped ones of one class, windows and overlaps by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.scene_scores import SeenPlaces, overlaps, score_places, separate_places, sliding_windows


def seen(likeness: list[list[float]], possible: list[list[bool]] | None = None, least: float = -np.inf) -> SeenPlaces:
    values = np.array(likeness, np.float32)
    boxes = np.array([(100 * row, 0, 50, 50) for row in range(len(values))], np.float32).reshape(-1, 4)
    return SeenPlaces(boxes, values, np.ones(values.shape, bool) if possible is None else np.array(possible), least)


def test_perfect_places_score_one_and_a_missing_one_half() -> None:
    perfect = score_places(seen([[1, 0.2], [0.3, 1]], [[True, False], [False, True]]))
    assert (perfect.cp, perfect.found, perfect.extra, perfect.places) == (1, 1, 0, (0, 1))
    missing = score_places(seen([[1, 0.2]], [[True, False]]))
    assert (missing.cp, missing.found, missing.places, missing.likeness) == (0.5, 0.5, (0, None), (1, 0))
    empty = np.zeros((0, 2), np.float32)
    nothing = score_places(SeenPlaces(np.zeros((0, 4), np.float32), empty, empty > 0))
    assert (nothing.cp, nothing.found, nothing.extra) == (0, 0, 0)


def test_two_subjects_of_one_class_are_told_apart_by_likeness() -> None:
    """Taking the best place of each in turn would give the first one the place of the second."""
    swapped = score_places(seen([[0.9, 0.95], [0.5, 0.2]]))
    assert swapped.places == (1, 0) and swapped.cp == pytest.approx(0.725)


def test_every_assignment_is_the_best_one() -> None:
    rng = np.random.default_rng(0)
    for count in (2, 3, 4):
        likeness = rng.random((5, count)).astype(np.float32)
        best = max(
            sum(likeness[row, column] for column, row in enumerate(rows)) / count
            for rows in itertools.permutations(range(5), count)
        )
        assert score_places(seen(likeness.tolist())).cp == pytest.approx(best, abs=1e-6)


def test_extra_places_are_counted_and_unlike_ones_are_not_subjects() -> None:
    twice = score_places(seen([[1, 0], [0.9, 0], [0, 1]], [[True, False], [True, False], [False, True]]))
    assert (twice.cp, twice.extra) == (1, 1)
    # below the least likeness a place is neither found nor one too many, but counts for the match
    unlike = score_places(seen([[1, 0.1], [0.2, 0.5], [0.1, 0.3]], least=0.6))
    assert (unlike.cp, unlike.found, unlike.extra, unlike.places) == (0.5, 0.5, 0, (0, None))
    assert unlike.match == pytest.approx(0.75)
    assert score_places(seen([[-0.5]])).cp == 0


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(BestiaryError, match="no subjects to look for"):
        score_places(SeenPlaces(np.zeros((1, 4), np.float32), np.zeros((1, 0), np.float32), np.zeros((1, 0), bool)))
    with pytest.raises(BestiaryError, match=r"\(2, 4\) boxes, \(1, 1\) likenesses and \(1, 1\) classes"):
        score_places(SeenPlaces(np.zeros((2, 4), np.float32), np.zeros((1, 1), np.float32), np.ones((1, 1), bool)))


def test_overlapping_places_leave_the_most_certain() -> None:
    boxes = np.array([(0, 0, 10, 10), (1, 0, 10, 10), (50, 0, 10, 10), (5, 0, 10, 10)], np.float32)
    np.testing.assert_allclose(overlaps(boxes[0], boxes), [1, 90 / 110, 0, 50 / 150], rtol=1e-5)
    assert overlaps(np.zeros(4), np.zeros((1, 4), np.float32))[0] == 0
    certainty = np.array([0.5, 0.9, 0.2, 0.1])
    assert separate_places(boxes, certainty, 0.5) == [1, 2, 3]
    assert separate_places(boxes, certainty, 0.4) == [1, 2]
    assert separate_places(boxes, certainty, 0.5, most=1) == [1]


@pytest.mark.parametrize(("size", "edge", "count"), [((256, 128), 128, 9), ((128, 300), 128, 12), ((128, 128), 64, 81)])
def test_windows_cover_the_picture(size: tuple[int, int], edge: int, count: int) -> None:
    windows = sliding_windows(*size)
    assert len(windows) == count and (windows[:, 2:] == edge).all() and len(np.unique(windows, axis=0)) == count
    assert windows[:, :2].min() == 0 and tuple((windows[:, :2] + windows[:, 2:]).max(axis=0)) == size
    assert len(sliding_windows(*size, edge=min(size))) <= count
    with pytest.raises(
        BestiaryError, match=f"windows of 129 pixels for a picture of {size[0]} x {size[1]}: give at most 128"
    ):
        sliding_windows(*size, edge=129)
