"""Spherical k-means in torch: restarts on a reduced sample, then a refinement over all rows in chunks of bounded memory.

Letters: n rows, d channels, k clusters. Restarts run on at most `max(16384, 32 k)` rows projected to 64 principal
directions; only the best one is refined at full width (Dhillon and Modha 2001 for the spherical form; Arthur and
Vassilvitskii 2007 for the seeding). The semantics of DeMoriarty/TorchPQ @ e67fc2c, which the PartCraft authors used,
are available through `init="random"`, `update="raw_mean"`: centroids are means of the raw members there.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BestiaryError

Init = Literal["k-means++", "random"]
Update = Literal["spherical", "raw_mean"]

CHUNK_ROWS = 16384
_RESTART_STEPS = 15
_BEST_STEPS = 50
_SEEDING_ROWS = 4096
_SEEDING_TRIALS = 3
_SKETCH_ROWS = 4096
_SKETCH_ROUNDS = 3
_DENSE_UPDATE_CLUSTERS = 64  # below this a product with one-hot labels is faster than a scatter


@dataclass(frozen=True)
class KMeansResult:
    """Clusters of n rows."""

    centroids: Tensor
    """`(k, d)` float32; of unit length for the spherical update."""
    labels: Tensor
    """`(n,)` long."""
    inertia: float
    """Mean of 1 - cosine between the rows and their centroids."""


def assign(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest centroid by cosine.

    Args:
        x: `(n, d)` rows of any length.
        centroids: `(k, d)` of any length.

    Returns:
        labels `(n,)` long and similarities `(n,)` in -1..1; a zero row has similarity 0 and label 0.
    """
    directions = F.normalize(centroids.float(), dim=1)  # (k, d)
    labels = torch.empty(len(x), dtype=torch.long, device=x.device)  # (n,)
    similarity = torch.empty(len(x), device=x.device)
    # in chunks: the (n, k) similarities of a large set never exist at once
    for start in range(0, len(x), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        chunk = x[rows].float()  # (rows, d)
        best = (chunk @ directions.T).max(dim=1)  # (rows,)
        labels[rows] = best.indices
        # centroids are of unit length; dividing by the rows' own makes it a cosine
        similarity[rows] = best.values / chunk.norm(dim=1).clamp_min(1e-8)
    return labels, similarity


def lloyd(
    x: Tensor,
    centroids: Tensor,
    *,
    update: Update = "spherical",
    max_iterations: int = 1000,
    tolerance: float = 1e-4,
    reseed: bool = True,
) -> KMeansResult:
    """Lloyd's iterations from given centroids `(k, d)` over rows `(n, d)`.

    The spherical update stops when the inertia falls by less than `tolerance` of itself, the raw-mean update (TorchPQ)
    when the summed squared movement of the centroids is at most `tolerance`. With `reseed` an empty cluster restarts at
    the row with the lowest similarity to its centroid; otherwise it does not change or, for raw means, becomes zero as
    in TorchPQ.
    """
    # lengths are measured once for all iterations
    return _lloyd(x, centroids, _inverse_norms(x), update, max_iterations, tolerance, reseed)


def _lloyd(
    x: Tensor,
    centroids: Tensor,
    inverse_norms: Tensor,
    update: Update,
    max_iterations: int,
    tolerance: float,
    reseed: bool,
) -> KMeansResult:
    """`lloyd` over rows `(n, d)` from centroids `(k, d)`, with given inverse norms `(n,)` of the rows."""
    centroids = centroids.float().clone()
    # a spherical mean weighs every direction alike, a raw mean weighs long rows more
    weights = inverse_norms if update == "spherical" else torch.ones_like(inverse_norms)
    previous = float("inf")
    for _ in range(max_iterations):
        sums, counts, labels, similarity = _accumulate(x, centroids, weights, inverse_norms)
        inertia = 1.0 - float(similarity.mean())
        empty = (counts == 0).nonzero().flatten() if reseed else counts.new_zeros(0).long()
        # settled: nothing empty, and the inertia no longer falls
        if update == "spherical" and not len(empty) and previous - inertia <= tolerance * max(inertia, 1e-12):
            return KMeansResult(centroids, labels, inertia)
        previous = inertia
        moved = _new_centroids(sums, counts, centroids, update)
        # an empty cluster restarts at the row that is explained worst
        if len(empty):
            worst = similarity.topk(min(len(empty), len(x)), largest=False).indices
            moved[empty[: len(worst)]] = x[worst].float()
        movement = float((moved - centroids).square().sum())
        centroids = F.normalize(moved, dim=1) if update == "spherical" else moved
        if update == "raw_mean" and movement <= tolerance:
            break
    # the last update moved the centroids once more: labels must fit them
    labels, similarity = assign(x, centroids)
    return KMeansResult(centroids, labels, 1.0 - float(similarity.mean()))


def fit_kmeans(
    x: Tensor,
    k: int,
    *,
    seed: int,
    restarts: int = 5,
    init: Init = "k-means++",
    update: Update = "spherical",
    reduce_to: int = 64,
    max_iterations: int = 100,
    tolerance: float = 3e-4,
) -> KMeansResult:
    """Cluster the directions of rows `(n, d)` into `k` groups; same seed, same result.

    Args:
        restarts: seedings tried; the one of lowest inertia is polished.
        reduce_to: principal directions kept while restarting; 0 keeps all channels.
        max_iterations: bound of the polish over all rows.

    Raises:
        BestiaryError: fewer rows than clusters, or values that are not finite.
    """
    if not 1 <= k <= len(x):
        raise BestiaryError(
            f"cannot form {k} clusters out of {len(x)} rows: give more images or ask for fewer clusters"
        )
    # one pass over all rows finds their lengths and refuses what is broken, before any work
    norms = _inverse_norms(x)  # of an infinite row: 0
    broken = int((~norms.isfinite() | (norms == 0)).sum())
    if broken:
        raise BestiaryError(f"the features of {broken} rows are not finite numbers")
    generator = torch.Generator().manual_seed(seed)
    if update == "raw_mean":
        return _best_of_full_runs(x, k, generator, restarts, init, max_iterations, tolerance)
    # restarts are cheap: a sample of the rows, and of their channels the leading directions
    sample = _subsample(x, max(CHUNK_ROWS, 32 * k), generator).float()  # (s, d)
    reduced = F.normalize(_principal_part(sample, reduce_to, generator), dim=1)  # (s, reduce_to)
    tries = []
    for _ in range(restarts):
        seeds = _seed(_subsample(reduced, max(_SEEDING_ROWS, 8 * k), generator), k, init, generator)
        tries.append(lloyd(reduced, seeds, max_iterations=_RESTART_STEPS))
    best = min(tries, key=lambda tried: tried.inertia)  # of equals the first
    best = lloyd(reduced, best.centroids, max_iterations=_BEST_STEPS)
    # back to full width: means of the sample's rows (s, d) under the labels found in the reduced space
    start = _sum_by_label(sample, best.labels, k, _inverse_norms(sample))
    # a cluster without members has no direction and starts at a row of the sample
    lone = start.norm(dim=1) == 0
    start[lone] = sample[: int(lone.sum())]
    return _lloyd(x, F.normalize(start, dim=1), norms, update, max_iterations, tolerance, reseed=True)


def _best_of_full_runs(
    x: Tensor, k: int, generator: torch.Generator, restarts: int, init: Init, max_iterations: int, tolerance: float
) -> KMeansResult:
    # lazily, so that one run's centroids (k, d) and labels (n,) are alive beside the best so far
    runs = (
        lloyd(
            x,
            _seed(x, k, init, generator),
            update="raw_mean",
            max_iterations=max_iterations,
            tolerance=tolerance,
            reseed=False,
        )
        for _ in range(restarts)
    )
    return min(runs, key=lambda run: run.inertia)


def _inverse_norms(x: Tensor) -> Tensor:
    """1 / length `(n,)` of rows `(n, d)`, taken in chunks; a zero row gets a large finite number."""
    norms = torch.cat([x[start : start + CHUNK_ROWS].float().norm(dim=1) for start in range(0, len(x), CHUNK_ROWS)])
    return 1 / norms.clamp_min(1e-8)


def _accumulate(
    x: Tensor, centroids: Tensor, weights: Tensor, inverse_norms: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One pass over x: weighted sums (k, d) and counts (k,) of members, labels (n,), similarities (n,)."""
    k = len(centroids)
    directions = F.normalize(centroids, dim=1)
    sums, counts = torch.zeros_like(centroids), torch.zeros(k, device=x.device)
    labels = torch.empty(len(x), dtype=torch.long, device=x.device)
    similarity = torch.empty(len(x), device=x.device)
    # one chunk at a time: the (rows, k) cosines are all that a pass needs besides the rows
    for start in range(0, len(x), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        chunk = x[rows].float()
        best, labels[rows] = (chunk @ directions.T).max(dim=1)  # (rows, k) -> (rows,)
        similarity[rows] = best * inverse_norms[rows]
        sums += _sum_by_label(chunk, labels[rows], k, weights[rows])
        counts += torch.bincount(labels[rows], minlength=k)
    return sums, counts, labels, similarity


def _sum_by_label(x: Tensor, labels: Tensor, k: int, weights: Tensor) -> Tensor:
    """Weighted sums (k, d) of the rows (n, d) under each label."""
    # few clusters: one product with one-hot labels; many: a scatter, since (n, k) would be large
    if k <= _DENSE_UPDATE_CLUSTERS:
        members = torch.zeros(len(x), k, dtype=x.dtype, device=x.device)  # (n, k)
        return members.scatter_(1, labels.unsqueeze(1), weights.unsqueeze(1)).T @ x
    return torch.zeros(k, x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, labels, x * weights.unsqueeze(1))


def _new_centroids(sums: Tensor, counts: Tensor, old: Tensor, update: Update) -> Tensor:
    means = sums / counts.clamp_min(1)[:, None]  # (k, d)
    kept = torch.where(counts[:, None] > 0, means, old)
    return F.normalize(kept, dim=1) if update == "spherical" else means  # TorchPQ: zero where nothing belongs


def _seed(x: Tensor, k: int, init: Init, generator: torch.Generator) -> Tensor:
    """First centroids `(k, d)` among rows `(n, d)`: drawn evenly, or by greedy k-means++."""
    if init == "random":
        return x[torch.randperm(len(x), generator=generator)[:k]].float()
    return _plus_plus(F.normalize(x.float(), dim=1), k, generator)


def _plus_plus(unit: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ over unit rows (n, d): of a few rows drawn in proportion to 1 - cosine to the nearest seed, the one
    that lowers the sum of these most becomes the next seed."""
    chosen = [int(torch.randint(len(unit), (1,), generator=generator))]
    distance = (1 - unit @ unit[chosen[0]]).clamp_min(0)  # (n,)
    draws = torch.rand(k, _SEEDING_TRIALS, generator=generator, dtype=torch.float64).to(unit.device)
    for draw in draws[1:]:
        # inverse of the cumulated distances: rows are drawn in proportion to how badly they are explained
        cumulative = distance.double().cumsum(0)
        tried = torch.searchsorted(cumulative, draw * cumulative[-1], right=True).clamp_max(len(unit) - 1)  # (trials,)
        after = torch.minimum(distance, (1 - unit[tried] @ unit.T).clamp_min(0))  # (trials, n)
        best = int(after.sum(dim=1).argmin())
        chosen.append(int(tried[best]))
        distance = after[best]  # (n,)
    return unit[chosen]


def _subsample(x: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """At most `rows` of the rows `(n, d)`, drawn without repetition; all of them in order if there are not more."""
    if len(x) <= rows:
        return x
    return x[torch.randperm(len(x), generator=generator)[:rows].to(x.device)]


def _principal_part(x: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Rows (n, d) projected on about the `width` leading directions of their second moment (n, width), without centring.

    Randomised subspace iteration (Halko, Martinsson and Tropp 2011) on a part of the rows.
    """
    if width <= 0 or x.shape[1] <= width:
        return x
    some = F.normalize(_subsample(x, _SKETCH_ROWS, generator), dim=1)  # (s, d)
    basis = torch.randn(x.shape[1], width, generator=generator).to(x.device)  # (d, width)
    # every round sharpens the basis towards the leading directions; QR keeps it orthonormal
    for _ in range(_SKETCH_ROUNDS):
        basis = torch.linalg.qr(some.T @ (some @ basis)).Q
    return x @ basis  # (n, width)
