import pytest
import torch
from bestiary.concepts.part_map.crossed_kinds import (
    crossed_kinds,
    kind_directions,
    uncertainty_left,
    without_other_kinds,
)
from bestiary.concepts.part_map.kind_mixture import fit_mixture, leading_directions
from bestiary.concepts.part_map.kmeans import assign
from bestiary.concepts.part_map.looks_parts import matched_agreement
from bestiary.concepts.part_map.part_map import ABSENT
from torch import Tensor

WIDTH = 12


def animals(crossed: bool, count: int = 400, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Looks (N, 2, d) of faces and ears of four kinds each, and these kinds (N, 2); ears look like the face below as well.

    Crossed: every ear is seen with every face. Else each face has its own ears.
    """
    generator = torch.Generator().manual_seed(seed)
    face = torch.arange(count) % 4
    ear = torch.arange(count) // 4 % 4 if crossed else face
    faces, ears, leaked = (torch.randn(4, WIDTH, generator=generator) for _ in range(3))
    noise = 0.6 * torch.randn(count, 2, WIDTH, generator=generator)
    means = torch.stack([faces[face], ears[ear] + 0.7 * leaked[face]], dim=1) + noise
    return means, torch.stack([face, ear], dim=1)


def present(means: Tensor) -> Tensor:
    return torch.ones(means.shape[:2], dtype=torch.long)


def test_ears_are_told_from_the_face_below_them() -> None:
    means, truth = animals(crossed=True)
    alone = leading_directions(means[:, 1])[0]
    assert matched_agreement(fit_mixture(alone, 4, seed=0).labels(alone), truth[:, 1], 4) < 0.8
    codes = crossed_kinds(means, present(means), [4, 4], seed=0)
    assert matched_agreement(codes[:, 0], truth[:, 0], 4) > 0.95
    assert matched_agreement(codes[:, 1], truth[:, 1], 4) > 0.9


def test_kinds_that_always_go_together_are_kept_in_both_parts() -> None:
    means, truth = animals(crossed=False)
    codes = crossed_kinds(means, present(means), [4, 4], seed=0)
    for part in range(2):
        assert matched_agreement(codes[:, part], truth[:, part], 4) > 0.95


def test_an_effect_is_taken_out_where_kinds_cross_and_only_there() -> None:
    for crossed in (True, False):
        means, truth = animals(crossed)
        rows = leading_directions(means[:, 1])[0]
        left = without_other_kinds(rows, truth, [4, 4], 1)
        assert left.shape == rows.shape
        by_face = torch.stack([left[truth[:, 0] == kind].mean(dim=0) for kind in range(4)])
        before = torch.stack([rows[truth[:, 0] == kind].mean(dim=0) for kind in range(4)])
        share = float(by_face.norm() / before.norm())
        assert share < 0.1 if crossed else share == pytest.approx(1)


def test_absent_parts_have_no_kind_and_no_effect() -> None:
    means, truth = animals(crossed=True)
    counts = present(means)
    counts[::3, 0] = 0
    counts[5, 1] = 0
    garbage = torch.where(counts.unsqueeze(-1) > 0, means, 1e3)
    codes = crossed_kinds(garbage, counts, [4, 4], seed=0)
    assert torch.equal(codes == ABSENT, counts == 0)
    assert matched_agreement(codes[counts[:, 1] > 0, 1], truth[counts[:, 1] > 0, 1], 4) > 0.8


def test_a_part_that_nothing_shows_and_a_part_of_one_kind_are_left_alone() -> None:
    means, truth = animals(crossed=True)
    three = torch.cat([means, torch.zeros(len(means), 1, WIDTH)], dim=1)
    counts = torch.cat([present(means), torch.zeros(len(means), 1, dtype=torch.long)], dim=1)
    codes = crossed_kinds(three, counts, [4, 1, 0], seed=0)
    assert matched_agreement(codes[:, 0], truth[:, 0], 4) > 0.95
    assert (codes[:, 1] == 0).all() and (codes[:, 2] == ABSENT).all()


def test_uncertainty_is_all_left_by_chance_and_none_where_one_tells_the_other() -> None:
    assert uncertainty_left(torch.full((3, 5), 4.0)) == pytest.approx(1, abs=1e-5)
    assert uncertainty_left(9 * torch.eye(4)) == pytest.approx(0, abs=1e-5)
    # two rows that a column tells apart, two that it does not: one bit of two is left
    halves = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert uncertainty_left(halves) == pytest.approx(0.5, abs=1e-5)
    assert uncertainty_left(torch.ones(1, 3)) == 0.0


def test_directions_tell_the_kinds_they_were_made_from() -> None:
    means, truth = animals(crossed=True)
    told = kind_directions(means[:, 1], truth[:, 1], 4)
    assert told.center.shape == (WIDTH,) and told.space.shape == (WIDTH, WIDTH) and told.fine.shape == (4, WIDTH)
    assert int((told.space.abs().sum(dim=0) > 0).sum()) == 3
    codes = assign((means[:, 1] - told.center) @ told.space, told.fine)[0]
    assert float((codes == truth[:, 1]).float().mean()) > 0.95


@pytest.mark.parametrize("number", [1, 2, 20])
def test_directions_of_one_kind_and_of_more_kinds_than_directions_are_finite(number: int) -> None:
    means, _ = animals(crossed=True)
    told = kind_directions(means[:, 0], torch.arange(len(means)) % number, number)
    assert told.space.isfinite().all() and told.fine.isfinite().all() and told.space.abs().max() <= 1
