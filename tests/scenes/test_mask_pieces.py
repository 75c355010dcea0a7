"""Pieces and holes against a search that walks from pixel to pixel."""

import numpy as np
import pytest
from bestiary.scenes.mask_pieces import holes_of, pieces_of


def walked(mask: np.ndarray, steps: list[tuple[int, int]]) -> list[frozenset[tuple[int, int]]]:
    """Every piece as a set of places, by walking."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = []
    while left:
        ahead, piece = [left.pop()], set()
        while ahead:
            y, x = ahead.pop()
            piece.add((y, x))
            near = {(y + dy, x + dx) for dy, dx in steps} & left
            left -= near
            ahead += near
        found.append(frozenset(piece))
    return found


SIDES = [(0, 1), (1, 0), (0, -1), (-1, 0)]
CORNERS = [*SIDES, (1, 1), (1, -1), (-1, 1), (-1, -1)]


@pytest.mark.parametrize("share", [0.2, 0.45, 0.6, 0.9])
@pytest.mark.parametrize("diagonal", [True, False])
def test_pieces_are_those_that_a_walk_finds(share: float, diagonal: bool) -> None:
    for seed in range(5):
        mask = np.random.default_rng(seed).random((13 + seed, 21)) < share
        pieces = pieces_of(mask, diagonal=diagonal)
        ours = {
            frozenset((int(y), int(x)) for y, x in np.argwhere(pieces.labels == number))
            for number in range(len(pieces.areas))
        }
        assert ours == set(walked(mask, CORNERS if diagonal else SIDES))
        assert list(pieces.areas) == sorted((len(piece) for piece in ours), reverse=True)
        assert ((pieces.labels == -1) == ~mask).all()
        assert [int((pieces.labels == n).sum()) for n in range(len(pieces.areas))] == list(pieces.areas)


def test_rows_do_not_touch_around_the_edge() -> None:
    mask = np.zeros((3, 4), bool)
    mask[0, 3] = mask[1, 0] = True
    assert len(pieces_of(mask).areas) == 2


def test_a_long_spiral_is_one_piece() -> None:
    mask = np.zeros((41, 41), bool)
    y = x = 20
    length, turn = 2, 0
    while 0 <= y < 41 and 0 <= x < 41:
        dy, dx = SIDES[turn % 4]
        for _ in range(length):
            if 0 <= y < 41 and 0 <= x < 41:
                mask[y, x] = True
            y, x = y + dy, x + dx
        turn += 1
        length += 2 * (turn % 2 == 0)
    assert len(pieces_of(mask, diagonal=False).areas) == 1 and mask.sum() > 400


def test_nothing_and_everything() -> None:
    for mask, areas in ((np.zeros((4, 5), bool), []), (np.ones((4, 5), bool), [20])):
        assert list(pieces_of(mask).areas) == areas
        assert list(holes_of(mask).areas) == [] and (holes_of(mask).labels == -1).all()


def test_holes_are_what_the_outside_does_not_reach() -> None:
    mask = np.zeros((12, 20), bool)
    mask[1:8, 1:8] = mask[2:9, 11:19] = True
    mask[3:5, 3:6] = False  # a hole of 6
    mask[4, 13] = False  # a hole of 1
    mask[1, 2] = False  # open to the outside
    holes = holes_of(mask)
    assert list(holes.areas) == [6, 1]
    assert (holes.labels[3:5, 3:6] == 0).all() and holes.labels[4, 13] == 1 and (holes.labels >= 0).sum() == 7


def test_a_hole_does_not_leak_through_a_corner() -> None:
    mask = np.ones((5, 5), bool)
    mask[2, 2] = mask[1, 1] = mask[0, 0] = False
    assert list(holes_of(mask).areas) == [1, 1]


def test_a_noisy_mask_of_a_large_picture_takes_no_time() -> None:
    mask = np.random.default_rng(0).random((1500, 1500)) < 0.5
    pieces = pieces_of(mask)
    assert int(pieces.areas.sum()) == int(mask.sum())
