"""Certainty of a discovery: per part, and per picture, from its labels and from how much it differs from the others.

Letters: n pictures of a piece, M parts, d channels of part means.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

MOST_DOUBTFUL = 8
"""Number of stored pictures with the least certain parts."""
_SMALLEST_SPREAD = 0.25  # lower bound of the standard deviation of log areas: differences below a quarter are normal
_SMALLEST_DOUBT = 0.02
_RARE = 0.5  # pseudo-count, so that no share is 0 or 1


@dataclass(frozen=True)
class Doubt:
    """Reason why a picture is uncertain."""

    row: int
    """Index of the picture in the results."""
    part: int
    """The unusual part; -1 for the object as a whole."""
    what: str
    """`missing`, `extra`, `small`, `large` or `unsure`."""
    score: float
    """Surprise in nats, at least 0."""


@dataclass
class UsualPictures:
    """Running statistics of parts over pictures; add all pictures first, then query their doubts."""

    num_parts: int
    background: int
    images: int = 0
    shown: Tensor = field(init=False)
    logs: Tensor = field(init=False)
    squares: Tensor = field(init=False)
    sure: Tensor = field(init=False)
    sure_squares: Tensor = field(init=False)

    def __post_init__(self) -> None:
        # index M, after the parts, is the whole object
        self.shown = torch.zeros(self.num_parts + 1, dtype=torch.float64)
        self.logs, self.squares = torch.zeros_like(self.shown), torch.zeros_like(self.shown)
        self.sure, self.sure_squares = torch.zeros_like(self.shown), torch.zeros_like(self.shown)

    def add(self, counts: Tensor, sure: Tensor) -> None:
        """Add patch counts `(n, M)` and the certainty of the labels of each part's patches, `(n, M)` 0..1."""
        areas = self._areas(counts)  # (n, M + 1)
        present = areas > 0
        logs = areas.clamp_min(1).log() * present
        self.images += len(counts)
        self.shown += present.sum(0)
        self.logs += logs.sum(0)
        self.squares += logs.square().sum(0)
        known = self._sureness(counts, sure)  # (n, M + 1)
        self.sure += known.sum(0)
        self.sure_squares += known.square().sum(0)

    def confidence(self) -> list[float]:
        """Certainty of the labels per part, 0..1: the mean over the pictures that show it."""
        return (self.sure / self.shown.clamp_min(1))[:-1].tolist()

    def doubts(self, first: int, counts: Tensor, sure: Tensor) -> list[Doubt]:
        """The most unusual property of each of the pictures `first`, `first + 1`, ...; `counts` and `sure` are `(n, M+1)` as for `add`."""
        areas = self._areas(counts)  # (n, M + 1)
        present = areas > 0
        share = ((self.shown + _RARE) / (self.images + 2 * _RARE)).float()  # (M + 1,)
        absence = torch.where(present, -share.log(), -(1 - share).log())  # (n, M + 1)
        number = self.shown.clamp_min(1)
        middle = self.logs / number
        spread = (self.squares / number - middle.square()).clamp_min(_SMALLEST_SPREAD**2).sqrt()
        away = ((areas.clamp_min(1).log() - middle) / spread * present).float()  # (n, M + 1)
        # only labels less certain than usual count, so the term is clamped at 0
        usual = self.sure / number
        varying = (self.sure_squares / number - usual.square()).clamp_min(_SMALLEST_DOUBT**2).sqrt()
        unsure = ((usual - self._sureness(counts, sure)) / varying * present).clamp_min(0).float()  # (n, M + 1)
        terms = torch.stack([absence, away.square() / 2, unsure.square() / 2])  # (3, n, M + 1)
        odd = terms.sum(0)
        # the background is redundant: its area is the complement of the object's
        odd[:, self.background] = 0
        total, worst = odd.sum(1).tolist(), odd.argmax(1).tolist()
        found = []
        for row, (score, part) in enumerate(zip(total, worst, strict=True)):
            words = (
                "extra" if bool(present[row, part]) else "missing",
                "small" if float(away[row, part]) < 0 else "large",
                "unsure",
            )
            what = words[int(terms[:, row, part].argmax())]
            found.append(Doubt(first + row, -1 if part == self.num_parts else part, what, score))
        return found

    def _sureness(self, counts: Tensor, sure: Tensor) -> Tensor:
        """Certainty of the labels of every part and, last, of the whole object, `(n, M+1)`, 0 where absent."""
        weight = counts.double()
        known = sure.double() * (weight > 0)
        weight[:, self.background] = 0
        thing = (known * weight).sum(1) / weight.sum(1).clamp_min(1)
        return torch.cat([known, thing.unsqueeze(1)], dim=1)

    def _areas(self, counts: Tensor) -> Tensor:
        """Patches of every part and, last, of the whole object, `(n, M+1)` double."""
        areas = counts.double()
        thing = areas.sum(1) - areas[:, self.background]
        return torch.cat([areas, thing.unsqueeze(1)], dim=1)


def most_doubtful(doubts: Sequence[Doubt], most: int = MOST_DOUBTFUL) -> list[Doubt]:
    """The doubts with the greatest surprise, in descending order; ties go to the earlier picture."""
    return heapq.nsmallest(most, doubts, key=lambda doubt: (-doubt.score, doubt.row))


def doubt_text(part: int, what: str, names: Sequence[str]) -> str:
    """A doubt in words, for example `no "ears" here`."""
    if part < 0:
        return {
            "missing": "no object found",
            "small": "object unusually small",
            "large": "object unusually large",
            "unsure": "whole object uncertain",
        }.get(what, "")
    named = f"“{names[part]}”"
    return {
        "missing": f"no {named} found",
        "extra": f"{named} found, present in few pictures",
        "small": f"{named} unusually small",
        "large": f"{named} unusually large",
        "unsure": f"{named} uncertain",
    }.get(what, "")


def confidence_word(confidence: float) -> str:
    """A confidence 0..1 in words."""
    if math.isnan(confidence):
        return "unknown"
    return "sure" if confidence >= 0.9 else "fairly sure" if confidence >= 0.7 else "unsure"


def part_sureness(confidence: Tensor, labels: Tensor, num_parts: int) -> Tensor:
    """Means `(n, M)` of the confidence `(n, h, w)` over the patches of every part, 0 where the part is absent."""
    flat = labels.flatten(1).long()  # (n, h * w)
    sums = torch.zeros(len(flat), num_parts).scatter_add_(1, flat, confidence.flatten(1).float().cpu())
    counts = torch.zeros(len(flat), num_parts).scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float32))
    return sums / counts.clamp_min(1)
