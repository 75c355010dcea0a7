"""Joint clustering of the kinds of several parts, without the influence of neighbouring parts on their appearance.

The features of a patch also depend on its surroundings: those of an ear change with the face below it. So the mean features
of a part are modelled as a sum of effects, of its own kind and of the kinds of the other parts (an analysis of variance with
unknown groups). Alternately, effects are estimated by ridge regression, those of the other parts are subtracted, and the
remainder is clustered again (`kind_mixture`). Effects can be separated only if kinds are combined in several ways: an effect
is subtracted only as far as the kinds of the other part do not determine those of this one. If each animal of a set has its
own head and its own legs, nothing is subtracted.
At inference a discriminant assigns kinds to the unchanged features, so that a part does not need the others.

Letters: N pictures, M parts, n pictures that show a part, d channels, r leading directions, K_m kinds of part m.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .kind_mixture import continued_mixture, fit_mixture, leading_directions, spread_within
from .part_map import ABSENT

_ROUNDS = 6
_RIDGE = 5.0
"""Pictures without effect that are added per kind when its effect on another part is estimated."""


@dataclass(frozen=True)
class KindDirections:
    """Centroids of the kinds of one part, in a space in which every kind has the same spread in all directions."""

    center: Tensor
    """`(d,)`: the middle between the kinds, as a mean of part looks."""
    space: Tensor
    """`(d, d)`, applied to looks less the center; at most K - 1 of its columns are not zero."""
    fine: Tensor
    """`(K, d)`, the kinds in that space."""


def crossed_kinds(means: Tensor, counts: Tensor, numbers: Sequence[int], *, seed: int) -> Tensor:
    """Kinds of all parts, from the mean looks of each.

    Args:
        means: `(N, M, d)`.
        counts: `(N, M)` patches; a part without any is absent.
        numbers: K of every part, at most as many as pictures show it; 0 for a part that no picture shows.

    Returns:
        codes `(N, M)` long, ABSENT where a part is absent.
    """
    codes = torch.full(counts.shape, ABSENT, dtype=torch.long)
    rows: list[Tensor | None] = []
    for part, number in enumerate(numbers):
        shown = counts[:, part] > 0
        looks = leading_directions(means[shown, part].float())[0] if number else None  # (n, r)
        rows.append(looks)
        if looks is not None:
            codes[shown, part] = fit_mixture(looks, number, seed=seed).labels(looks)
    for _ in range(_ROUNDS if sum(number > 1 for number in numbers) > 1 else 0):
        found = codes.clone()
        for part, looks in enumerate(rows):
            if looks is not None and numbers[part] > 1:
                shown = counts[:, part] > 0
                left = without_other_kinds(looks, codes[shown], numbers, part)
                found[shown, part] = continued_mixture(left, codes[shown, part], numbers[part]).labels(left)
        if torch.equal(found, codes):
            break
        codes = found
    return codes


def without_other_kinds(rows: Tensor, codes: Tensor, numbers: Sequence[int], part: int) -> Tensor:
    """Centred rows `(n, r)` of a part less the effects of the kinds `(n, M)` that the same pictures' other parts have."""
    starts = [sum(numbers[:other]) for other in range(len(numbers) + 1)]
    total = starts[-1]
    # how often kinds occur, alone and together, and the sums of rows over each: no table of pictures by kinds is made
    together, sums = rows.new_zeros(total, total), rows.new_zeros(total, rows.shape[1])
    places = [torch.where(column >= 0, column + start, ABSENT) for column, start in zip(codes.T, starts, strict=False)]
    for first in places:
        own = first >= 0
        sums.index_add_(0, first[own], rows[own])
        for second in places:
            both = own & (second >= 0)
            together.index_put_((first[both], second[both]), rows.new_ones(int(both.sum())), accumulate=True)
    often = together.diagonal() / len(rows)  # (total,)
    centred = together - len(rows) * often.unsqueeze(1) * often
    sums = sums - often.unsqueeze(1) * rows.sum(dim=0)
    effects = torch.linalg.solve(centred + _RIDGE * torch.eye(total).to(rows), sums)  # (total, r)
    left = rows
    for other, place in enumerate(places):
        kinds = slice(starts[other], starts[other + 1])
        if other == part or starts[other] == starts[other + 1]:
            continue
        crossing = uncertainty_left(together[starts[part] : starts[part + 1], kinds])
        shown = (place >= 0).unsqueeze(1)
        effect = torch.where(shown, effects[place.clamp_min(0)], 0.0) - often[kinds] @ effects[kinds]  # (n, r)
        left = left - crossing * effect
    return left


def uncertainty_left(table: Tensor) -> float:
    """Share of the entropy of the rows of a contingency table `(K, L)` that is left once the column is known, 0 to 1."""
    shares = table / table.sum().clamp_min(1e-9)
    own, other = shares.sum(dim=1), shares.sum(dim=0)
    entropy = -(own * own.clamp_min(1e-12).log()).sum()
    if float(entropy) < 1e-6:
        return 0.0
    expected = (own.unsqueeze(1) * other).clamp_min(1e-12)
    shared = (shares * (shares.clamp_min(1e-12) / expected).log()).sum()
    return float((1 - shared / entropy).clamp(0, 1))


def kind_directions(means: Tensor, labels: Tensor, number: int) -> KindDirections:
    """Fisher's (1936) discriminant space for known kinds `(n,)` long of mean features `(n, d)`."""
    rows, basis, middle = leading_directions(means.float())  # (n, r), (d, r), (d,)
    members = torch.nn.functional.one_hot(labels, number).to(rows.dtype)  # (n, K)
    places, within = spread_within(rows, members)  # (K, r), (r, r)
    values, directions = torch.linalg.eigh(within)
    whitening = directions / values.clamp_min(1e-12).sqrt()  # (r, r)
    between = places.mean(dim=0)  # (r,)
    spread = (places - between) @ whitening  # (K, r)
    # directions along which the kinds differ; the others say nothing about them
    kept = torch.linalg.svd(spread, full_matrices=False).Vh[: max(1, number - 1)].T  # (r, r')
    narrow = basis @ whitening @ kept  # (d, r')
    narrow = narrow / narrow.abs().max().clamp_min(1e-12)
    space = means.new_zeros(means.shape[1], means.shape[1], dtype=torch.float32)
    space[:, : narrow.shape[1]] = narrow
    center = middle + basis @ between
    return KindDirections(center, space, (places - between) @ basis.T @ space)
