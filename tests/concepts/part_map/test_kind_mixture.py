import torch
from bestiary.concepts.part_map.kind_mixture import MOST_DIRECTIONS, fit_mixture, leading_directions, spread_within
from bestiary.concepts.part_map.kmeans import fit_kmeans
from bestiary.concepts.part_map.looks_parts import matched_agreement
from torch import Tensor


def long_clusters(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three clusters side by side, each longer than the way between them: rows (300, 5) and their clusters (300,)."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(3).repeat_interleave(100)
    rows = 0.1 * torch.randn(300, 5, generator=generator)
    rows[:, 0] += truth - 1.0
    rows[:, 1] = 1.3 * torch.randn(300, generator=generator)
    return rows - rows.mean(dim=0), truth


def test_clusters_are_found_across_the_direction_in_which_all_of_them_are_long() -> None:
    rows, truth = long_clusters()
    assert matched_agreement(fit_kmeans(rows, 3, seed=0).labels, truth, 3) < 0.6
    assert matched_agreement(fit_mixture(rows, 3, seed=0).labels(rows), truth, 3) > 0.95


def test_the_same_seed_gives_the_same_clusters() -> None:
    rows, _ = long_clusters()
    assert torch.equal(fit_mixture(rows, 4, seed=3).weight, fit_mixture(rows, 4, seed=3).weight)


def test_leading_directions_keep_the_distances_between_rows_of_few_dimensions() -> None:
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(50, 6, generator=generator) @ torch.randn(6, 40, generator=generator) + 7
    rows, basis, center = leading_directions(means)
    assert rows.shape == (50, MOST_DIRECTIONS) and basis.shape == (40, MOST_DIRECTIONS)
    assert torch.allclose(torch.pdist(rows), torch.pdist(means), atol=1e-2)
    assert torch.allclose(basis.T @ basis, torch.eye(MOST_DIRECTIONS), atol=1e-5)
    assert torch.allclose(center + rows @ basis.T, means, atol=1e-3)


def test_the_common_spread_is_that_of_rows_around_their_means_and_a_little_more() -> None:
    rows, truth = long_clusters()
    means, within = spread_within(rows, torch.nn.functional.one_hot(truth, 3).float())
    theirs = torch.cov((rows - means[truth]).T, correction=0)
    assert torch.allclose(means, torch.stack([rows[truth == kind].mean(dim=0) for kind in range(3)]), atol=1e-5)
    assert torch.allclose(within, theirs + 0.05 * theirs.diagonal().mean() * torch.eye(5), atol=1e-4)


def test_rows_that_are_all_alike_stay_finite() -> None:
    rows = torch.zeros(6, 4)
    rows[0, 0] = 1e-6
    mixture = fit_mixture(rows - rows.mean(dim=0), 2, seed=0)
    assert mixture.weight.isfinite().all() and mixture.bias.isfinite().all()
