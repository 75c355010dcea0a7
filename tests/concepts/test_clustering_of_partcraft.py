"""Clustering against the semantics PartCraft used (DeMoriarty/TorchPQ @ e67fc2c), and the choices its authors made by eye."""

import logging

import pytest
import torch
import torch.nn.functional as F
from bestiary.concepts import foreground as foreground_module
from bestiary.concepts.foreground import LOW_MARGIN, choose_foreground_cluster, fit_foreground
from bestiary.concepts.kmeans import fit_kmeans, lloyd
from bestiary.concepts.part_model import background_centroid
from torch import Tensor


def torchpq(x: Tensor, centroids: Tensor, tolerance: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Its k-means written out: nearest by cosine, means of raw members (zero for none), until hardly anything moves."""
    movement = torch.inf
    while movement > tolerance:
        labels = _nearest(x, centroids)
        members = [x[labels == cluster] for cluster in range(len(centroids))]
        moved = torch.stack([rows.sum(0) / max(len(rows), 1) for rows in members])  # (k, d)
        movement, centroids = (moved - centroids).square().sum(), moved
    return _nearest(x, centroids), centroids


def _nearest(x: Tensor, centroids: Tensor) -> Tensor:
    unit = x / (x.norm(dim=1, keepdim=True) + 1e-8)  # (n, d)
    return (unit @ (centroids / (centroids.norm(dim=1, keepdim=True) + 1e-8)).T).argmax(1)


def test_a_cluster_without_members_becomes_zero_as_in_torchpq() -> None:
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) + 2
    start = torch.cat([x[:2], -torch.ones(1, 5), x[:1]])  # the last one only ties with the first
    theirs, their_centroids = torchpq(x, start)
    ours = lloyd(x, start, update="raw_mean", reseed=False)
    assert torch.equal(ours.centroids[2:], torch.zeros(2, 5))
    torch.testing.assert_close(ours.centroids, their_centroids)
    assert torch.equal(ours.labels, theirs)
    assert len(lloyd(x, start, update="raw_mean").labels.unique()) == 4  # reseeded ones find members


def mostly_background(seed: int) -> Tensor:
    """1000 patches, seven of ten replaced by the constant vector (-1, ..., -1) as PartCraft replaces its background."""
    x = torch.randn(1000, 32, generator=torch.Generator().manual_seed(seed))
    x[:700] = -1
    return x


@pytest.mark.parametrize("seed", range(4))
def test_a_constant_background_empties_no_cluster(seed: int) -> None:
    x = mostly_background(seed)
    ours = fit_kmeans(x, 8, seed=seed)
    theirs = fit_kmeans(x, 8, seed=seed, init="random", update="raw_mean")
    assert len(ours.labels.unique()) == 8
    assert len(ours.labels[:700].unique()) == 1
    assert len(theirs.labels.unique()) <= 6


@pytest.mark.parametrize("seed", range(5))
def test_the_background_centroid_is_the_one_nearest_to_minus_one(seed: int) -> None:
    centroids = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.1, 9, 8)[:, None]
    theirs = F.cosine_similarity(centroids, -torch.ones(8, 16), dim=1).argmax()
    assert background_centroid(centroids) == theirs


def blob_in_the_middle(pictures: int = 12) -> Tensor:
    """Masks (N, 16, 16) of blobs near the centre, each a little elsewhere."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.zeros(pictures, 16, 16, dtype=torch.bool)
    for row in range(pictures):
        top, left = torch.randint(3, 6, (2,), generator=generator).tolist()
        mask[row, top : top + 8, left : left + 8] = True
    return mask


def features_of(mask: Tensor, noise: float = 0.2) -> Tensor:
    """Features (N, 16, 16, 6) in which the mask's two sides look different."""
    sides = F.normalize(torch.randn(2, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    return sides[mask.long()] + noise * torch.randn(*mask.shape, 6, generator=torch.Generator().manual_seed(2))


def test_either_order_of_two_clusters_gives_the_same_foreground() -> None:
    mask = blob_in_the_middle()
    for labels, expected in ((mask.long(), 1), (1 - mask.long(), 0)):
        chosen, margin = choose_foreground_cluster(labels)
        assert chosen == expected
        assert torch.equal(labels == chosen, mask)
        assert margin > LOW_MARGIN


def test_clusters_that_reach_the_border_alike_have_no_margin() -> None:
    halves = (torch.arange(16) < 8).expand(5, 16, 16).long()
    _, margin = choose_foreground_cluster(halves)
    assert abs(margin) < LOW_MARGIN / 3


def test_the_learned_foreground_is_the_blob_and_its_flip_the_rest(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(foreground_module, "_TRAINING_STEPS", 60)
    mask = blob_in_the_middle()
    features = features_of(mask)
    ours = fit_foreground(features, seed=0)
    flipped = fit_foreground(features, seed=0, flip=True)
    found = ours.probability(features) > 0.5
    assert (found & mask).sum() / (found | mask).sum() > 0.95
    assert ours.margin > LOW_MARGIN and not ours.flipped
    assert torch.equal(flipped.probability(features) > 0.5, ~found)
    assert flipped.margin == pytest.approx(-ours.margin)
    assert [record.message[:28] for record in caplog.records] == ["the foreground is doubtful: "]


def test_a_foreground_at_the_border_is_called_doubtful(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(foreground_module, "_TRAINING_STEPS", 60)
    halves = (torch.arange(16) < 8).expand(12, 16, 16)
    with caplog.at_level(logging.WARNING):
        model = fit_foreground(features_of(halves), seed=0)
    assert model.margin < LOW_MARGIN
    (warning,) = caplog.records
    assert f"only {model.margin:.2f} more than the borders (at least 0.30 expected)" in warning.message
    assert "--flip-foreground" in warning.message
