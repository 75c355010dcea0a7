import pytest
import torch
import torch.nn.functional as F
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_map.kmeans import assign, fit_kmeans, lloyd
from sklearn.cluster import KMeans
from torch import Tensor


def torchpq_run(x: Tensor, centroids: Tensor, tolerance: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Lloyd's iterations as in DeMoriarty/TorchPQ @ e67fc2c with cosine distance, written out row by row."""
    for _ in range(1000):
        scores = torch.stack([F.cosine_similarity(x, center[None], dim=1) for center in centroids], dim=1)
        labels = scores.argmax(dim=1)
        moved = torch.stack(
            [x[labels == c].mean(dim=0) if (labels == c).any() else centroids[c] for c in range(len(centroids))]
        )
        if float((moved - centroids).square().sum()) <= tolerance:
            return moved, labels
        centroids = moved
    return centroids, labels


def blobs(k: int, per_blob: int, width: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centers = F.normalize(torch.randn(k, width, generator=generator), dim=1)
    truth = torch.arange(k).repeat_interleave(per_blob)
    return centers[truth] + spread * torch.randn(k * per_blob, width, generator=generator), truth


def same_partition(ours: Tensor, theirs: Tensor) -> bool:
    pairs = set(zip(ours.tolist(), theirs.tolist(), strict=True))
    return len(pairs) == len(set(ours.tolist())) == len(set(theirs.tolist()))


def test_raw_mean_update_equals_torchpq_from_the_same_start() -> None:
    x = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    ours = lloyd(x, x[:8], update="raw_mean", reseed=False)
    theirs_centroids, theirs_labels = torchpq_run(x, x[:8])
    assert torch.equal(ours.labels, theirs_labels)
    assert torch.allclose(ours.centroids, theirs_centroids, atol=1e-5)


def test_raw_mean_centroids_of_six_points_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [2.0, 0.2], [3.0, -0.2], [0.0, 1.0], [0.3, 4.0], [0.0, 1.0]])
    ours = lloyd(x, x[[0, 3]], update="raw_mean", reseed=False)
    assert ours.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.allclose(ours.centroids, torch.tensor([[2.0, 0.0], [0.1, 2.0]]), atol=1e-6)


def test_spherical_centroids_have_unit_length_and_ignore_the_rows_lengths() -> None:
    x = torch.tensor([[1.0, 0.0], [100.0, 100.0], [0.0, -1.0]])
    ours = lloyd(x, x[[0, 2]])
    assert torch.allclose(ours.centroids.norm(dim=1), torch.ones(2))
    half_way = F.normalize(torch.tensor([1 + 0.5**0.5, 0.5**0.5]), dim=0)
    assert torch.allclose(ours.centroids[0], half_way, atol=1e-6)


@pytest.mark.parametrize("k", [3, 8, 24])
def test_separate_blobs_are_found(k: int) -> None:
    x, truth = blobs(k, 40, 64, 0.03, seed=k)
    ours = fit_kmeans(x, k, seed=0)
    assert same_partition(ours.labels, truth)
    assert ours.centroids.shape == (k, 64)


def test_inertia_is_within_half_a_percent_of_scikit_learn() -> None:
    x, _ = blobs(12, 200, 48, 0.25, seed=1)
    unit = F.normalize(x, dim=1)
    ours = fit_kmeans(x, 8, seed=0).inertia
    model = KMeans(8, n_init=5, max_iter=1000, random_state=0).fit(unit.numpy())
    centers = F.normalize(torch.from_numpy(model.cluster_centers_), dim=1)
    theirs = 1 - float((unit * centers[torch.from_numpy(model.labels_).long()]).sum(dim=1).mean())
    assert ours <= 1.005 * theirs


def test_many_constant_rows_leave_no_cluster_empty() -> None:
    x = torch.randn(2000, 32, generator=torch.Generator().manual_seed(3)) + 0.3
    x[:1400] = -1.0
    ours = fit_kmeans(x, 8, seed=0)
    theirs = fit_kmeans(x, 8, seed=0, init="random", update="raw_mean", restarts=5)
    assert len(ours.labels.unique()) == 8
    assert len(theirs.labels.unique()) <= 6  # what random initial centroids make of it
    assert len(ours.labels[:1400].unique()) == 1


def test_an_empty_cluster_is_reseeded_only_when_asked() -> None:
    x = torch.eye(3).repeat_interleave(20, dim=0)
    start = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]])
    assert len(lloyd(x, start).labels.unique()) == 3
    assert len(lloyd(x, start, reseed=False).labels.unique()) == 1


def test_same_seed_same_result() -> None:
    x, _ = blobs(6, 50, 80, 0.5, seed=2)
    first, second = fit_kmeans(x, 6, seed=4), fit_kmeans(x, 6, seed=4)
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.centroids, second.centroids)


def test_labels_in_chunks_equal_labels_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = blobs(5, 40, 16, 0.4, seed=6)
    whole = lloyd(x, x[:5])
    monkeypatch.setattr("bestiary.concepts.part_map.kmeans.CHUNK_ROWS", 7)
    pieces = lloyd(x, x[:5])
    assert torch.equal(whole.labels, pieces.labels)
    assert whole.inertia == pytest.approx(pieces.inertia, abs=1e-5)


def test_assign_gives_cosines_and_takes_zero_rows() -> None:
    labels, similarity = assign(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [5.0, 0.0]]))
    assert labels.tolist() == [0, 0]
    assert similarity.tolist() == pytest.approx([0.8, 0.0])


@pytest.mark.parametrize("k", [0, 4])
def test_too_many_clusters_are_refused(k: int) -> None:
    with pytest.raises(BestiaryError, match=f"cannot form {k} clusters out of 3 rows"):
        fit_kmeans(torch.randn(3, 2), k, seed=0)


def test_values_that_are_not_finite_are_refused() -> None:
    x = torch.ones(5, 2)
    x[1, 0] = float("nan")
    with pytest.raises(BestiaryError, match="features of 1 rows are not finite"):
        fit_kmeans(x, 2, seed=0)
