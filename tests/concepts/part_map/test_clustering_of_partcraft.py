"""Where clustering as PartCraft did it (DeMoriarty/TorchPQ @ e67fc2c) loses clusters, and ours does not."""

import pytest
import torch
from bestiary.concepts.part_map.kmeans import fit_kmeans, lloyd
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
