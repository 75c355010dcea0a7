"""EMR, CoSim and absent rate on hand-made codes."""

import math

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_map.part_metrics import (
    absent_rate,
    absent_rate_by_part,
    code_similarity,
    exact_match_by_part,
    exact_match_by_picture,
    exact_match_rate,
    matches,
    mean_by_sources,
    nearest_classes,
    number_of_sources,
    similarities,
)

WANTED = torch.tensor([[3, 1, -1], [2, 5, 0]])
FOUND = torch.tensor([[3, 4, 7], [2, -1, 9]])


def by_difference(part: int, one: int, other: int) -> float:
    return 1 - abs(one - other) / 10


def test_pictures_that_show_what_was_asked_score_one() -> None:
    assert exact_match_rate(WANTED, WANTED) == 1
    assert code_similarity(WANTED, WANTED, by_difference) == 1
    assert absent_rate(WANTED, WANTED) == 0


def test_permuted_kinds_match_nowhere() -> None:
    wanted = torch.arange(12).view(4, 3)
    assert exact_match_rate(wanted.roll(1, 0), wanted) == 0


def test_absent_parts_are_misses_and_reported_apart() -> None:
    assert exact_match_rate(FOUND, WANTED) == pytest.approx(2 / 5)
    assert exact_match_rate(FOUND, WANTED, count_absent=False) == pytest.approx(2 / 4)
    assert absent_rate(FOUND, WANTED) == pytest.approx(1 / 5)
    assert code_similarity(FOUND, WANTED, by_difference) == pytest.approx((1 + 0.7 + 1 + 0 + 0.1) / 5)
    assert code_similarity(FOUND, WANTED, by_difference, count_absent=False) == pytest.approx((1 + 0.7 + 1 + 0.1) / 4)


def test_an_absent_part_is_never_taken_for_kind_zero() -> None:
    found, wanted = torch.tensor([[-1]]), torch.tensor([[0]])
    assert exact_match_rate(found, wanted) == 0
    assert code_similarity(found, wanted, lambda *_: pytest.fail("asked about an absent part")) == 0


def test_by_part_and_by_picture() -> None:
    assert exact_match_by_part(FOUND, WANTED).tolist() == [1, 0, 0]
    assert exact_match_by_picture(FOUND, WANTED).tolist() == pytest.approx([1 / 2, 1 / 3])
    assert absent_rate_by_part(FOUND, WANTED).tolist() == [0, 0.5, 0]
    never = exact_match_by_part(torch.tensor([[1, 1]]), torch.tensor([[1, -1]]))
    assert never[0] == 1
    assert math.isnan(never[1])


def test_nothing_asked_is_not_a_number() -> None:
    nothing = torch.full((2, 2), -1)
    for value in (
        exact_match_rate(nothing, nothing),
        absent_rate(nothing, nothing),
        code_similarity(nothing, nothing, by_difference),
    ):
        assert math.isnan(value)


def test_every_pair_of_kinds_is_compared_once() -> None:
    asked = []

    def counted(part: int, one: int, other: int) -> float:
        asked.append((part, one, other))
        return 0.5

    similarities(FOUND.repeat(50, 1), WANTED.repeat(50, 1), counted)
    assert sorted(asked) == [(0, 2, 2), (0, 3, 3), (1, 4, 1), (2, 9, 0)]


def test_numbers_of_sources_and_means_by_them() -> None:
    sources = torch.tensor([[4, 4, 4], [4, 5, -1], [6, 7, 8], [1, 1, -1]])
    assert number_of_sources(sources).tolist() == [1, 2, 3, 1]
    values = torch.tensor([[1.0, 0.0, float("nan")], [1, 1, float("nan")], [0, 0, 1], [0, 0, float("nan")]])
    assert mean_by_sources(values, sources) == pytest.approx({1: 0.25, 2: 1.0, 3: 1 / 3})


def test_emr_by_sources() -> None:
    ours = mean_by_sources(matches(FOUND, WANTED), torch.tensor([[0, 1, -1], [2, 2, 2]]))
    assert ours == pytest.approx({1: 1 / 3, 2: 1 / 2})


def test_nearest_classes_of_supervised_dictionaries() -> None:
    classes = torch.tensor([[[1.0, 0], [0, 1]], [[0, 1.0], [1, 0]], [[float("nan")] * 2] * 2])  # (K, M, d)
    features = torch.tensor([[[5.0, 1], [0, 0]], [[1, 9], [3, 1]]])
    shown = torch.tensor([[True, False], [True, True]])
    assert nearest_classes(features, shown, classes).tolist() == [[0, -1], [1, 1]]


def test_shapes_are_checked() -> None:
    with pytest.raises(BestiaryError, match=r"found codes \(2, 2\) and wanted codes \(2, 3\)"):
        exact_match_rate(FOUND[:, :2], WANTED)
    with pytest.raises(
        BestiaryError, match=r"part features \(1, 2, 3\), shown \(1, 2\) and class features \(4, 5, 3\)"
    ):
        nearest_classes(torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), torch.zeros(4, 5, 3))
