"""Parts by appearance compared between pictures, independently of the position in the picture.

Features are modelled as the sum of a term for the part and a term for the whole picture (breed, light, colour). The picture
terms are subtracted before the patches of all pictures are clustered, so a cluster is a part and not a kind of it. A linear
discriminant then learns the parts from the unchanged features: each patch is labelled independently of the rest of the picture
and of its position; similar neighbours are smoothed to the same part.
Discriminant and picture terms are fitted alternately, as in a two-way analysis of variance with unknown groups.

Letters: B or N pictures, (h, w) patch grid, n foreground patches, d channels, C components (a part is one or several).
"""

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from .foreground import average_over_neighbours, neighbour_affinity
from .kmeans import fit_kmeans
from .linear_classifiers import fit_discriminant
from .sample_views import SampleViews

FEWEST_PARTS, MOST_PARTS = 3, 12
_NEAR_BEST, _NEAR_BEST_CONFIRMED = 0.9, 0.8
"""Required share of the best stability: halves alone must agree better than halves with confirmation by views."""
_VIEWS_CONFIRM = 0.85
_HALVINGS = 3
_STABILITY_ROWS = 4096
_ROUNDS = 4
_VIEW_ROUNDS = 3
_CREDIT = 4.0
"""Mean patches that are added to every picture when its picture term is estimated."""
_AGREEMENT = 3.0
_SMOOTHING_STEPS = 4
_CHUNK_PICTURES = 64


class _EveryPartSettings(TypedDict):
    form: str
    owner: list[int]


class PartSettings(_EveryPartSettings, total=False):
    """Settings of the part model in the header of a codebook."""

    filled: bool


@dataclass(frozen=True)
class LooksParts:
    """A linear classifier of patches."""

    weight: Tensor
    """`(d, C)`."""
    bias: Tensor
    """`(C,)`."""
    owner: Tensor
    """`(C,)` long: the part of each component."""

    def labels(self, features: Tensor, foreground: Tensor, background: int) -> Tensor:
        """Part `(B, h, w)` long of every patch of features `(B, h, w, d)`, given foreground probabilities `(B, h, w)`."""
        share, inside = self.shares(features, foreground), foreground > 0.5
        parts = self.owner[share.argmax(dim=-1)]
        return torch.where(inside, parts, background)

    def shares(self, features: Tensor, foreground: Tensor) -> Tensor:
        """Probability of every component `(B, h, w, C)`; each picture by itself."""
        pieces = [
            self._some(*some)
            for some in zip(features.split(_CHUNK_PICTURES), foreground.split(_CHUNK_PICTURES), strict=True)
        ]
        return torch.cat(pieces) if pieces else features.new_zeros(*features.shape[:3], len(self.bias))

    def _some(self, features: Tensor, foreground: Tensor) -> Tensor:
        score = features @ self.weight + self.bias  # (B, h, w, C)
        affinity = neighbour_affinity(features)
        inside = (foreground > 0.5).unsqueeze(-1).to(features.dtype)  # neighbours outside the thing have no say
        share = torch.softmax(score, dim=-1)
        for _ in range(_SMOOTHING_STEPS):
            share = torch.softmax(score + _AGREEMENT * average_over_neighbours(share * inside, affinity), dim=-1)
        return share

    def tensors(self) -> dict[str, Tensor]:
        """What a file must hold: the weight `(d, C)` and the bias `(C,)`."""
        return {"weight": self.weight, "bias": self.bias}

    def settings(self) -> PartSettings:
        """What a file's header must hold."""
        return {"form": "looks", "owner": self.owner.tolist()}


@dataclass(frozen=True)
class SecondLooks:
    """Embedded views of the pictures that parts are learned from."""

    views: SampleViews
    features: Tensor
    """`(V, h, w, d)`."""
    mask: Tensor
    """`(V, h, w)`."""


def fit_looks_parts(
    features: Tensor, mask: Tensor, num_parts: int, *, seed: int, again: SecondLooks | None = None
) -> LooksParts:
    """Learn `num_parts` parts from features `(N, h, w, d)` of the patches inside masks `(N, h, w)`.

    Where views are given a patch is taught the same part in its view, whatever the view has moved and mirrored.
    """
    rows, picture = foreground_rows(features, mask)
    labels = part_clusters(rows, picture, num_parts, seed=seed)
    model = _discriminant_parts(rows, labels, num_parts)
    if again is None:
        return model
    for _ in range(_VIEW_ROUNDS):
        own = model.labels(features, mask.float(), num_parts)  # (N, h, w), neighbours agree
        shown = again.views.carried(own)  # (V, h, w)
        both = (shown < num_parts) & again.mask
        model = _discriminant_parts(
            torch.cat([features[mask], again.features[both]]), torch.cat([own[mask], shown[both]]), num_parts
        )
    return model


def agreement_of_views(model: LooksParts, features: Tensor, mask: Tensor, again: SecondLooks) -> float:
    """Share of the views' patches, foreground in picture and view, that have the part which the picture gives them."""
    background = len(model.bias)
    shown = again.views.carried(model.labels(features, mask.float(), background))  # (V, h, w)
    seen = model.labels(again.features, again.mask.float(), background)
    both = (shown < background) & (seen < background)
    return float((shown == seen)[both].float().mean()) if bool(both.any()) else 0.0


def _discriminant_parts(rows: Tensor, labels: Tensor, num_parts: int) -> LooksParts:
    """The discriminant of rows `(n, d)` with their parts."""
    weight, bias = fit_discriminant(rows, labels, num_parts)
    return LooksParts(weight.half().float(), bias.half().float(), torch.arange(num_parts))


def foreground_rows(features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Features `(n, d)` of the patches inside masks `(N, h, w)`, and the number `(n,)` of the picture each is from."""
    picture = torch.arange(len(mask), device=mask.device).view(-1, 1, 1).expand_as(mask)
    return features[mask], picture[mask]


def part_clusters(rows: Tensor, picture: Tensor, num_parts: int, *, seed: int) -> Tensor:
    """Part `(n,)` of foreground patches `(n, d)`, with what each picture `(n,)` shows everywhere taken out."""
    counts = torch.bincount(picture).clamp_min(1).unsqueeze(1)  # (N, 1)
    # at first a picture's own look is the mean of its foreground
    left = rows - (_sums(rows, picture, len(counts)) / counts)[picture]
    labels = fit_kmeans(left, num_parts, seed=seed).labels
    for _ in range(_ROUNDS):
        # then it is what remains beside its parts: a picture that shows few parts is not taken for an odd one
        means = _sums(left, labels, num_parts) / torch.bincount(labels, minlength=num_parts).clamp_min(1).unsqueeze(1)
        own = _sums(rows - means[labels], picture, len(counts)) / (counts + _CREDIT)  # (N, d)
        left = rows - own[picture]
        weight, bias = fit_discriminant(left, labels, num_parts)
        labels = (left @ weight + bias).argmax(dim=1)
    return labels


def choose_part_count(
    features: Tensor, mask: Tensor, *, seed: int, again: SecondLooks | None = None
) -> tuple[int, dict[int, float]]:
    """The largest number of parts, 3 to 12, that halves of the pictures agree on nearly as well as on any, and that
    views confirm.

    Parts are found in either half by itself; the share of patches on which the two agree once matched one to one, above
    what chance gives, is the stability of their number, the mean of several ways to halve the set. Where views are given,
    their patches must mostly keep their part (`agreement_of_views`): the number ends before the first that fails.

    Args:
        features: `(N, h, w, d)`.
        mask: `(N, h, w)`, the foreground.
        again: views of some of the pictures.

    Returns:
        the number, and the stability of each that was tried.
    """
    rows, picture = foreground_rows(features, mask)
    generator = torch.Generator().manual_seed(seed)
    halvings = []
    for _ in range(_HALVINGS):
        kept = torch.randperm(len(rows), generator=generator)[:_STABILITY_ROWS].sort().values
        side = torch.randint(2, (len(mask),), generator=generator)[picture[kept]].bool()  # (n,)
        halvings.append((rows[kept], picture[kept], side))
    fewest = min(int(min(side.sum(), (~side).sum())) for _, _, side in halvings)
    stability: dict[int, float] = {}
    for number in range(FEWEST_PARTS, MOST_PARTS + 1):
        if fewest < 4 * number:
            break
        found = [
            matched_agreement(
                _answers_of(some, own, side, number, seed), _answers_of(some, own, ~side, number, seed), number
            )
            for some, own, side in halvings
        ]
        stability[number] = sum(found) / len(found)
    if not stability:
        return FEWEST_PARTS, {}
    best = max(stability.values())
    enough = best * (_NEAR_BEST if again is None else _NEAR_BEST_CONFIRMED)
    stable = [number for number, value in stability.items() if value >= enough]
    if again is None:
        return stable[-1], stability
    chosen = stable[0]
    for number in stable[1:]:
        model = fit_looks_parts(features, mask, number, seed=seed, again=again)
        if agreement_of_views(model, features, mask, again) < _VIEWS_CONFIRM:
            break  # more parts keep their patches less
        chosen = number
    return chosen, stability


def matched_agreement(first: Tensor, second: Tensor, number: int) -> float:
    """Agreement of two labellings `(n,)` with `number` labels each, matched one to one: 1 the same, 0 as by chance."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and needed by a fit alone

    table = torch.zeros(number, number).index_put_((first, second), torch.ones(len(first)), accumulate=True) / len(
        first
    )
    rows, columns = linear_sum_assignment(-table.numpy())
    same = float(table[rows, columns].sum())
    chance = float((table.sum(dim=1)[rows] * table.sum(dim=0)[columns]).sum())
    return (same - chance) / max(1 - chance, 1e-9)


def _answers_of(rows: Tensor, picture: Tensor, half: Tensor, number: int, seed: int) -> Tensor:
    """Part `(n,)` that a discriminant learned from one half of the rows `(n, d)` gives to all of them."""
    _, own = picture[half].unique(return_inverse=True)
    labels = part_clusters(rows[half], own, number, seed=seed)
    weight, bias = fit_discriminant(rows[half], labels, number)
    return (rows @ weight + bias).argmax(dim=1)


def _sums(rows: Tensor, group: Tensor, groups: int) -> Tensor:
    """Sums (groups, d) of rows (n, d) by group (n,)."""
    return torch.zeros(groups, rows.shape[1], dtype=rows.dtype, device=rows.device).index_add_(0, group, rows)
