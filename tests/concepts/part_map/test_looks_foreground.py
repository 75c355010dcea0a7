import pytest
import torch
from bestiary.concepts.part_map.looks_foreground import (
    LooksForeground,
    fit_looks_foreground,
    looks_foreground_from_masks,
    with_own_edges,
)
from torch import Tensor


def scenes(count: int, *, places: str = "anywhere", seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Things of 6 x 6 patches before surroundings of few looks: embedded looks, evidence, truth `(N, 12, 12)`.

    Evidence shows a quarter of each thing alone, as a network that names a thing by its face.
    """
    generator = torch.Generator().manual_seed(seed)
    truth = torch.zeros(count, 12, 12, dtype=torch.bool)
    evidence = 0.3 * torch.rand(count, 12, 12, generator=generator)
    for index in range(count):
        row, column = torch.randint(7, (2,), generator=generator).tolist() if places == "anywhere" else (3, 3)
        truth[index, row : row + 6, column : column + 6] = True
        evidence[index, row : row + 3, column : column + 3] += 3
    kinds = torch.randn(8, 16, generator=generator)
    around = kinds[torch.randint(4, (count, 1, 1), generator=generator)]
    shown = kinds[4 + torch.randint(4, (count, 12, 12), generator=generator)]
    looks = torch.where(truth.unsqueeze(-1), shown, around) + 0.3 * torch.randn(count, 12, 12, 16, generator=generator)
    return looks / 16**0.5, evidence, truth


def iou(ours: Tensor, theirs: Tensor) -> float:
    return float((ours & theirs).sum() / (ours | theirs).sum())


def test_evidence_of_a_part_of_the_thing_finds_all_of_it_wherever_it_lies() -> None:
    looks, evidence, truth = scenes(60)
    model = fit_looks_foreground(looks, evidence)
    assert iou(model.probability(looks) > 0.5, truth) > 0.9
    assert iou(evidence > 1, truth) < 0.3


def test_things_at_the_border_and_in_the_corner_are_whole_too() -> None:
    looks, evidence, truth = scenes(60)
    found = fit_looks_foreground(looks, evidence).probability(looks) > 0.5
    at_border = truth[:, [0, -1]].flatten(1).any(dim=1) | truth[:, :, [0, -1]].flatten(1).any(dim=1)
    assert int(at_border.sum()) > 10
    assert iou(found[at_border], truth[at_border]) > 0.85


def test_without_evidence_the_centre_is_the_first_guess() -> None:
    looks, _, truth = scenes(60, places="centre")
    assert iou(fit_looks_foreground(looks, None).probability(looks) > 0.5, truth) > 0.8


def test_marks_are_learned_for_other_pictures() -> None:
    looks, _, truth = scenes(40)
    model = looks_foreground_from_masks(looks[:30], truth[:30].float())
    assert iou(model.probability(looks[30:]) > 0.5, truth[30:]) > 0.9


def test_flipped_is_the_complement() -> None:
    looks, evidence, _ = scenes(30)
    ours, flipped = (fit_looks_foreground(looks, evidence, flip=flip).probability(looks) for flip in (False, True))
    assert torch.allclose(ours, 1 - flipped, atol=1e-6)


def test_each_picture_by_itself() -> None:
    looks, evidence, _ = scenes(20)
    model = fit_looks_foreground(looks, evidence)
    alone = torch.cat([model.probability(looks[[index]]) for index in range(20)])
    assert torch.allclose(model.probability(looks), alone, atol=1e-5)


def test_edges_follow_the_picture_where_the_classifier_is_unsure() -> None:
    looks, _, truth = scenes(10)
    # sure inside the thing's middle and far away, unsure in a band around the edge
    near = torch.nn.functional.max_pool2d(truth.float()[:, None], 3, 1, 1)[:, 0] > 0
    core = -torch.nn.functional.max_pool2d(-truth.float()[:, None], 3, 1, 1)[:, 0] > 0
    odds = torch.where(core, 3.0, torch.where(near, 0.0, -3.0))
    assert iou(with_own_edges(odds, looks) > 0, truth) > 0.95


def test_a_seam_around_the_thing_goes_to_the_surroundings_it_looks_like() -> None:
    looks, _, truth = scenes(10)
    # a classifier whose patches see further than the patch: sure of a rim around the thing as well
    near = torch.nn.functional.max_pool2d(truth.float()[:, None], 3, 1, 1)[:, 0] > 0
    assert iou(near, truth) < 0.7
    assert iou(with_own_edges(torch.where(near, 2.0, -2.0), looks) > 0, truth) > 0.9


@pytest.mark.parametrize("looks", [torch.zeros(4, 8, 8, 5), torch.zeros(1, 4, 4, 5)])
def test_pictures_without_any_difference_give_finite_numbers(looks: Tensor) -> None:
    model = fit_looks_foreground(looks, torch.zeros(looks.shape[:3]))
    assert isinstance(model, LooksForeground)
    assert bool(torch.isfinite(model.probability(looks)).all())
