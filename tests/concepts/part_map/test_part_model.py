import torch
from bestiary.concepts.part_map.part_model import (
    CentroidParts,
    LearnedParts,
    background_centroid,
    fit_learned_parts,
    part_model_from_file,
)
from torch import Tensor


def creatures(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Creatures of three parts, each picture with looks of its own, facing either way: features, foreground, truth.

    Parts: 0 a head on one side, 1 a body, 2 legs below; 3 is the background.
    """
    generator = torch.Generator().manual_seed(seed)
    truth = torch.full((count, 16, 16), 3)
    for index in range(count):
        row, column = torch.randint(-1, 2, (2,), generator=generator).tolist()
        truth[index, 6 + row : 10 + row, 4 + column : 12 + column] = 1
        truth[index, 10 + row : 13 + row, 5 + column : 11 + column] = 2
        left = bool(torch.rand((), generator=generator) < 0.5)
        truth[index, 3 + row : 7 + row, (2 if left else 10) + column : (6 if left else 14) + column] = 0
    looks = torch.randn(count, 4, 8, generator=generator)
    features = looks.gather(1, truth.flatten(1).unsqueeze(-1).expand(-1, -1, 8)).unflatten(1, (16, 16))
    features = features + 0.15 * torch.randn(features.shape, generator=generator)
    foreground = (truth < 3).float() * 0.5 + 0.25 + 0.1 * torch.rand(count, 16, 16, generator=generator)
    return features / 8**0.5, foreground, truth


def agreement(ours: Tensor, theirs: Tensor) -> float:
    """Mean IoU of each true part with the found part that meets it best."""
    table = [
        [float(((theirs == t) & (ours == o)).sum() / ((theirs == t) | (ours == o)).sum()) for o in range(3)]
        for t in range(3)
    ]
    assert sorted(max(range(3), key=row.__getitem__) for row in table) == [0, 1, 2]
    return sum(max(row) for row in table) / 3


def test_parts_are_found_in_the_same_place_whatever_they_look_like() -> None:
    features, foreground, truth = creatures(40)
    model = fit_learned_parts(features, foreground, 3, seed=0)
    assert agreement(model.labels(features, foreground, 3), truth) > 0.85


def test_new_pictures_one_by_one_get_the_labels_they_get_together() -> None:
    features, foreground, _ = creatures(40)
    model = fit_learned_parts(features, foreground, 3, seed=0)
    features, foreground, truth = creatures(12, seed=1)
    together = model.labels(features, foreground, 3)
    alone = torch.cat([model.labels(features[[i]], foreground[[i]], 3) for i in range(12)])
    assert torch.equal(together, alone)
    assert agreement(alone, truth) > 0.8


def test_components_can_share_a_part_or_become_background() -> None:
    features, foreground, _ = creatures(20)
    model = fit_learned_parts(features, foreground, 3, seed=0)
    plain = model.labels(features, foreground, 3)
    edited = LearnedParts(model.place_share, model.facing, torch.tensor([0, 0, 1]))
    ours = edited.labels(features, foreground, 1)
    assert torch.equal(ours == 0, plain < 2)


def test_place_share_sums_to_one_and_is_kept_in_half_precision() -> None:
    features, foreground, _ = creatures(10)
    share = fit_learned_parts(features, foreground, 3, seed=0).place_share
    assert torch.allclose(share.sum(dim=0), torch.ones(share.shape[1:]), atol=2e-3)
    assert torch.equal(share.half().float(), share)


def test_centroid_parts_fill_the_background_as_partcraft_does() -> None:
    centroids = torch.tensor([[1.0, 0.2], [0.2, 1.0], [-1.0, -1.0]])
    features = torch.tensor([[[[3.0, 0.0], [0.0, 2.0], [9.0, 0.0]]]])
    foreground = torch.tensor([[[1.0, 1.0, 0.0]]])
    assert CentroidParts(centroids, torch.arange(3)).labels(features, foreground, 2).tolist() == [[[0, 1, 2]]]
    assert background_centroid(centroids) == 2


def test_the_background_of_centroid_parts_is_the_one_nearest_to_minus_one() -> None:
    centroids = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    theirs = torch.nn.functional.cosine_similarity(centroids, -torch.ones(1, 32), dim=1).argmax()
    assert background_centroid(centroids) == int(theirs)


def test_centroid_parts_without_filling_leave_the_background_alone() -> None:
    model = CentroidParts(torch.tensor([[1.0, 0.0], [-1.0, -1.0]]), torch.tensor([0, 1]), filled=False)
    features = torch.tensor([[[[-1.0, -1.0], [2.0, 0.0]]]])
    assert model.labels(features, torch.tensor([[[1.0, 0.0]]]), 7).tolist() == [[[1, 7]]]


def test_models_come_back_from_their_tensors_and_settings() -> None:
    features, foreground, _ = creatures(8)
    learned = fit_learned_parts(features, foreground, 2, seed=0)
    for model in (learned, CentroidParts(torch.randn(3, 8), torch.tensor([0, 1, 1]), filled=False)):
        again = part_model_from_file(model.tensors(), model.settings())
        assert again.settings() == model.settings()
        assert torch.equal(again.labels(features, foreground, 2), model.labels(features, foreground, 2))
