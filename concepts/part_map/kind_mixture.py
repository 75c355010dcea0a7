"""Clustering of mean features by a mixture of Gaussians with one common covariance.

Kinds of a part differ along a few directions, light and pose along others of possibly larger variance. K-means splits
along the largest variance; a mixture that learns the common covariance within its clusters (Gaussian mixture discriminant
analysis, Hastie and Tibshirani 1996) splits along the directions that separate clusters.

Letters: n rows, d channels, r leading directions, k clusters.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .kmeans import fit_kmeans

MOST_DIRECTIONS = 16
"""Leading directions that are used: their covariance can be estimated from some hundred pictures."""
_STEPS = 25
_RESTARTS = 3
_WHITENING = 0.5
_SHRINKAGE = 0.05
"""Share of the mean variance that is added to the spread within clusters in every direction."""


@dataclass(frozen=True)
class Mixture:
    """A linear classifier: scores are `rows @ weight + bias`."""

    weight: Tensor
    """`(r, k)`."""
    bias: Tensor
    """`(k,)`."""

    def scores(self, rows: Tensor) -> Tensor:
        """Log share of every cluster in rows `(n, r)`, up to a constant per row: `(n, k)`."""
        return rows @ self.weight + self.bias

    def labels(self, rows: Tensor) -> Tensor:
        """Cluster `(n,)` long of rows `(n, r)`."""
        return self.scores(rows).argmax(dim=1)


def leading_directions(means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The most varying directions of means `(n, d)`: centred rows `(n, r)`, an orthonormal basis `(d, r)`, the centre `(d,)`."""
    center = means.mean(dim=0)
    around = means - center
    # largest first
    directions = torch.linalg.eigh((around.T @ around).double()).eigenvectors.flip(1)
    basis = directions[:, :MOST_DIRECTIONS].to(means.dtype)
    return around @ basis, basis, center


def fit_mixture(rows: Tensor, number: int, *, seed: int) -> Mixture:
    """Cluster centred rows `(n, r)` into `number` groups, at most n, from the best of some starts of k-means.

    Raises:
        BestiaryError: fewer rows than clusters.
    """
    scale = rows.std(dim=0, correction=0)
    scale = scale.clamp_min(float(scale.max()) * 1e-3 + 1e-12) ** _WHITENING
    return continued_mixture(rows, fit_kmeans(rows / scale, number, seed=seed, restarts=_RESTARTS).labels, number)


def continued_mixture(rows: Tensor, labels: Tensor, number: int) -> Mixture:
    """The mixture of rows `(n, r)` that is reached from clusters `(n,)` long by expectation maximisation."""
    shares = F.one_hot(labels, number).to(rows.dtype)  # (n, k)
    mixture = _mixture_of(rows, shares)
    for _ in range(_STEPS):
        moved = torch.softmax(mixture.scores(rows), dim=1)
        mixture, settled = _mixture_of(rows, moved), torch.allclose(moved, shares, atol=1e-4)
        if settled:
            break
        shares = moved
    return mixture


def spread_within(rows: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Means `(k, r)` of clusters with shares `(n, k)` in rows `(n, r)`, and their common covariance `(r, r)`, shrunk."""
    counts = shares.sum(dim=0).clamp_min(1e-3).unsqueeze(1)  # (k, 1)
    means = shares.T @ rows / counts  # (k, r)
    within = (rows.T @ rows - (means * counts).T @ means) / len(rows)
    level = _SHRINKAGE * within.diagonal().mean().clamp_min(1e-9)
    return means, within + level * torch.eye(rows.shape[1]).to(rows)


def _mixture_of(rows: Tensor, shares: Tensor) -> Mixture:
    means, within = spread_within(rows, shares)
    weight = torch.linalg.solve(within, means.T)  # (r, k)
    return Mixture(weight, -0.5 * (means.T * weight).sum(dim=0))
