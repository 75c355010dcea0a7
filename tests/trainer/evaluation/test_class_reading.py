"""Classes in the place of kinds: the nearest class mean is read, the background keeps its kinds."""

import pytest
import torch
from bestiary.concepts.part_map.part_codebook import PartCodebook
from bestiary.concepts.part_map.part_map import ABSENT, PartMaps
from bestiary.trainer.evaluation.cases import TestCase
from bestiary.trainer.evaluation.class_reading import ClassReading
from bestiary.trainer.evaluation.picture_judge import Sight
from bestiary.trainer.evaluation.scores import score_pictures

CLASSES = [0, 0, 1, 1]
CODES = torch.tensor([[0, 0, 0], [0, 0, 1], [1, ABSENT, 0], [1, 1, 2]])


def _codebook() -> PartCodebook:
    kinds = torch.eye(3)
    return PartCodebook({}, 2, (1, 1), ("head", "wing", "background"), 2, None, None, fine=(kinds, kinds, kinds))


def _sight() -> Sight:
    """Four pictures of two classes; the third shows no wing. Features point one way for each class."""
    codes = torch.tensor(
        [[5, 1, 0], [4, 2, 1], [3, ABSENT, 0], [2, 0, 2]]
    )  # kinds of the discovery differ within a class
    means = torch.nn.functional.one_hot(torch.tensor(CLASSES), 2).float().view(4, 1, 2).repeat(1, 3, 1)  # (N, M, d)
    means = means + 0.1 * torch.randn(means.shape, generator=torch.Generator().manual_seed(0))
    return Sight(PartMaps(torch.zeros(4, 1, 1, dtype=torch.uint8), codes), means, means.mean(1))


@pytest.fixture
def reading():
    return ClassReading.fit(_codebook(), CODES, _sight().part_means)


def test_class_means_leave_out_pictures_without_the_part(reading):
    sight = _sight()
    assert reading.features.shape == (3, 3, 2)
    torch.testing.assert_close(reading.features[1, 1], sight.part_means[3, 1])
    torch.testing.assert_close(reading.features[0, 0], sight.part_means[:2, 0].mean(0))


def test_parts_are_read_as_classes_and_the_background_as_it_was(reading):
    codes = reading.read(_sight()).maps.codes
    assert codes.tolist() == CODES.tolist()


def test_cases_ask_for_the_classes_of_their_sources(reading):
    case = TestCase((5, 0, 2), (0, 3, 3), 9)
    assert reading.ask(case) == TestCase((0, 1, 2), (0, 3, 3), 9)
    assert reading.ask(TestCase((5, ABSENT, 2), (0, -1, 3), 9)).codes == (0, ABSENT, 2)


def test_real_pictures_have_class_emr_one(reading):
    sight = _sight()
    cases = [
        TestCase(tuple(row), tuple(number if code != ABSENT else -1 for code in row), 0)
        for number, row in enumerate(sight.maps.codes.tolist())
    ]
    real = {number: sight.rows([number]) for number in range(4)}
    scores = score_pictures([reading.ask(case) for case in cases], reading.read(sight), reading, real)
    assert (scores["emr"], scores["cosim"]) == pytest.approx((1, 1))


def test_classes_no_picture_of_which_shows_a_part_are_never_read(reading):
    features = reading.features.clone()
    features[0, 1] = float("nan")
    codes = ClassReading(_codebook(), CODES, features).read(_sight()).maps.codes
    assert codes[:, 1].tolist() == [1, 1, ABSENT, 1]
