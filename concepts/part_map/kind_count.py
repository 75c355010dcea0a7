"""Number of kinds of a part: the number of clusters that are separated best.

Letters: n part means, d channels, k clusters.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .kind_mixture import fit_mixture, leading_directions
from .kmeans import fit_kmeans
from .looks_parts import matched_agreement

MOST_KINDS = 256
_MEASURED_ROWS = 2048
_GROWTH = 1.2
_CLEAR = 0.15
_NEAR_BEST = 0.97
_NEAR_BEST_STABLE = 0.85
_FAR_BEHIND = 0.75
_NEAR_TWO = 0.6
_HALVINGS = 5
_FEWEST_IN_HALF = 4
"""Minimum mean rows per kind in each half: with fewer rows the agreement of the halves is unreliable."""


def most_kinds(images: int) -> int:
    """At most a quarter as many kinds as pictures, at least 2, never more than 256 or than pictures."""
    return min(MOST_KINDS, max(2, images // 4), images)


def choose_kind_count(means: Tensor, *, seed: int = 0) -> int:
    """Number of kinds in part means `(n, d)`, compared by cosine.

    Takes the largest number whose mean silhouette (Rousseeuw 1987) comes within 3 % of the best. Where no number gives
    clear clusters (best below 0.15), the appearance varies continuously and `most_kinds(n)` is returned (PartCraft: 256 of 5994).
    """
    limit = most_kinds(len(means))
    if limit <= 2:
        return limit
    # a subset is enough for a mean; the cost of the silhouette grows with the square of the rows
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randperm(len(means), generator=generator)[:_MEASURED_ROWS].to(means.device)
    unit = F.normalize(means[picked].float(), dim=1)  # (n, d)
    quality = {
        k: mean_silhouette(unit, fit_kmeans(unit, k, seed=seed).labels, k) for k in _candidates(limit, len(unit))
    }
    # no clear clusters, the appearance varies continuously: use as many kinds as the rows support
    best = max(quality.values())
    if best < _CLEAR:
        return limit
    return max(k for k, value in quality.items() if value >= _NEAR_BEST * best)


def stable_kind_count(means: Tensor, *, seed: int = 0) -> int:
    """Number of kinds in part means `(n, d)`: the largest one whose agreement between halves of the rows is close to the best.

    For features of a network, in which kinds form groups: there the silhouette is best for the two largest groups. Clusters
    come from `kind_mixture`. The result is 2 only if no larger number has a similar stability.
    """
    limit = most_kinds(len(means))
    if limit <= 2 or len(means) < 8:
        return limit
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randperm(len(means), generator=generator)[:_MEASURED_ROWS].to(means.device)
    rows = leading_directions(means[picked].float())[0]  # (n, r)
    halves = [torch.randperm(len(rows), generator=generator) < len(rows) // 2 for _ in range(_HALVINGS)]
    found: dict[int, list[float]] = {
        k: [_agreement_of_halves(rows, halves[0], k, seed)]
        for k in _candidates(min(limit, max(2, len(rows) // (2 * _FEWEST_IN_HALF))), len(rows) // 2)
    }
    # one split excludes the numbers that are far behind, further splits compare the others
    enough = _FAR_BEHIND * _best_of({k: values[0] for k, values in found.items()})
    found = {
        k: values + [_agreement_of_halves(rows, half, k, seed) for half in halves[1:]]
        for k, values in found.items()
        if values[0] >= enough
    }
    stability = {k: sum(values) / len(values) for k, values in found.items()}
    best = _best_of(stability)
    return max(k for k, value in stability.items() if value >= _NEAR_BEST_STABLE * best)


def _best_of(stability: dict[int, float]) -> float:
    """The best stability that more than two kinds have; that of two, on which halves agree most easily, where no other
    comes near it."""
    others = max((value for k, value in stability.items() if k > 2), default=0.0)
    return others if others >= _NEAR_TWO * stability.get(2, 0.0) else stability[2]


def _agreement_of_halves(rows: Tensor, half: Tensor, k: int, seed: int) -> float:
    """How well clusters found in either half `(n,)` of rows `(n, r)` agree on all of them: 1 the same, 0 no
    better than by chance."""
    first, second = (fit_mixture(rows[side], k, seed=seed).labels(rows) for side in (half, ~half))
    return max(0.0, matched_agreement(first.cpu(), second.cpu(), k))


def mean_silhouette(unit: Tensor, labels: Tensor, k: int) -> float:
    """Mean silhouette of unit rows `(n, d)` under labels `(n,)`, with distance 1 - cosine; -1..1, 0 for lone rows."""
    members = F.one_hot(labels, k).to(unit.dtype)  # (n, k)
    sizes = members.sum(dim=0)
    total = sizes - unit @ (unit.T @ members)  # (n, k): summed distance to each cluster
    own_size = sizes[labels]
    own = total.gather(1, labels.unsqueeze(1)).squeeze(1) / (own_size - 1).clamp_min(1)  # (n,)
    # distance to the nearest cluster that is not the row's own and has members
    others = (total / sizes.clamp_min(1)).masked_fill(members.bool() | (sizes == 0), float("inf")).min(dim=1).values
    silhouette = (others - own) / torch.maximum(others, own).clamp_min(1e-12)
    return float(torch.where((own_size > 1) & others.isfinite(), silhouette, torch.zeros_like(silhouette)).mean())


def _candidates(limit: int, rows: int) -> list[int]:
    top = min(limit, rows - 1)
    steps = int(math.log(max(top, 2) / 2) / math.log(_GROWTH)) + 1
    return sorted({min(top, round(2 * _GROWTH**step)) for step in range(steps + 1)})
