"""Scores: 1 where pictures show what was asked for, 0 where they show something else, absent parts counted apart."""

from types import SimpleNamespace

import pytest
import torch
from bestiary.concepts.part_map.part_codebook import PartCodebook
from bestiary.concepts.part_map.part_map import ABSENT, PartMaps
from bestiary.trainer.evaluation.cases import TestCase
from bestiary.trainer.evaluation.picture_judge import Sight
from bestiary.trainer.evaluation.scores import score_pictures

NAMES = ("head", "wing", "background")
CODES = torch.tensor([[0, 1, 0], [1, 2, 1], [2, 0, 0]])


def _codebook() -> PartCodebook:
    kinds = torch.eye(3)
    return PartCodebook({}, 4, (2, 2), NAMES, 2, None, None, fine=(kinds, kinds, kinds), kind_names=({}, {}, {}))


def _sight(codes: torch.Tensor = CODES) -> Sight:
    labels = torch.tensor([[[0, 1], [2, 2]]]).repeat(len(codes), 1, 1)  # (N, h, w)
    means = torch.nn.functional.one_hot(codes.clamp_min(0), 4).float()  # (N, M, D)
    return Sight(PartMaps(labels, codes), means, means.mean(1))


def _cases(codes: torch.Tensor = CODES) -> list[TestCase]:
    return [
        TestCase(tuple(row), tuple(number if code != ABSENT else -1 for code in row), 0)
        for number, row in enumerate(codes.tolist())
    ]


def _real() -> dict[int, Sight]:
    return {number: _sight().rows([number]) for number in range(len(CODES))}


def test_the_pictures_themselves_score_one():
    scores = score_pictures(_cases(), _sight(), _codebook(), _real())
    assert (scores["emr"], scores["cosim"], scores["absent_rate"]) == (1, 1, 0)
    assert scores["emr_standard_error"] == 0
    assert (scores["part_likeness"], scores["image_similarity"]) == pytest.approx((1, 1))
    assert scores["parts"].keys() == set(NAMES)
    assert scores["attention_iou"] is None


def test_permuted_pictures_score_zero():
    scores = score_pictures(_cases(), _sight(CODES.roll(1, 0)), _codebook(), _real())
    assert (scores["emr"], scores["cosim"]) == (0, 0)
    assert scores["image_similarity"] < 0.9


def test_background_counts_for_itself_only():
    seen = CODES.clone()
    seen[:, 2] = 1 - seen[:, 2]
    scores = score_pictures(_cases(), _sight(seen), _codebook(), _real())
    assert scores["emr"] == 1
    assert scores["parts"]["background"]["emr"] == 0


def test_parts_that_cannot_be_seen_are_absent_and_no_match():
    seen = CODES.clone()
    seen[0, 0] = ABSENT
    scores = score_pictures(_cases(), _sight(seen), _codebook(), _real())
    assert scores["absent_rate"] == pytest.approx(1 / 6)
    assert scores["emr"] == pytest.approx(5 / 6)
    assert scores["parts"]["head"]["absent_rate"] == pytest.approx(1 / 3)
    assert scores["parts"]["wing"]["absent_rate"] == 0


def test_parts_not_asked_for_do_not_count():
    asked = CODES.clone()
    asked[0, 0] = ABSENT
    seen = CODES.clone()
    seen[0, 0] = 2
    assert score_pictures(_cases(asked), _sight(seen), _codebook(), _real())["emr"] == 1


def test_standard_error_is_over_pictures():
    seen = CODES.clone()
    seen[0, :2] = ABSENT
    scores = score_pictures(_cases(), _sight(seen), _codebook(), _real())
    expected = torch.tensor([0.0, 1.0, 1.0]).std() / 3**0.5
    assert scores["emr_standard_error"] == pytest.approx(float(expected))


def test_mixes_have_no_original_to_be_like():
    case = TestCase((0, 2, 0), (0, 1, 0), 0)
    scores = score_pictures([case], _sight(torch.tensor([[0, 2, 0]])), _codebook(), _real())
    assert scores["image_similarity"] is None
    assert scores["part_likeness"] == pytest.approx(1)
    assert scores["emr_standard_error"] is None


def _picture(maps: torch.Tensor, parts: tuple[int, ...]) -> SimpleNamespace:
    return SimpleNamespace(attention=maps, mentions=tuple(SimpleNamespace(part=part) for part in parts))


def test_attention_on_its_part_has_iou_one():
    at_head = torch.zeros(4, 4)
    at_head[:2, :2] = 1
    at_wing = torch.zeros(4, 4)
    at_wing[:2, 2:] = 1
    right = [_picture(torch.stack([at_head, at_wing]), (0, 1))] * 3
    swapped = [_picture(torch.stack([at_wing, at_head]), (0, 1))] * 3
    assert score_pictures(_cases(), _sight(), _codebook(), _real(), right)["attention_iou"] == 1
    assert score_pictures(_cases(), _sight(), _codebook(), _real(), swapped)["attention_iou"] == 0


def test_tokens_that_stand_for_no_part_have_no_iou():
    whole = [_picture(torch.ones(1, 4, 4), (7,))] * 3
    assert score_pictures(_cases(), _sight(), _codebook(), _real(), whole)["attention_iou"] is None
