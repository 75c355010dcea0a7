"""How well a picture shows the subjects it was asked for: all of them, each like itself, and nobody twice.

Our reading of CP-CLIP (Gen4Gen, arXiv 2402.15504, which publishes no code for it): places that a detector sees are given to subjects one
to one, so that their likeness is largest; a subject without a place scores 0. Letters: K places, C subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..concepts.errors import BestiaryError

Boxes = NDArray[np.float32]
"""`(K, 4)` left, top, width and height in pixels."""
_SLIDES = 8
_WIDE = 1.5


@dataclass(frozen=True)
class SeenPlaces:
    """What stands where in a picture."""

    boxes: Boxes
    """`(K, 4)` left, top, width and height in pixels."""
    likeness: NDArray[np.float32]
    """`(K, C)` of what stands in a place and each subject; 1 is equal."""
    possible: NDArray[np.bool_]
    """`(K, C)` whether a place may be given to a subject: a detection of its class."""
    least: float = -np.inf
    """Likeness below which a subject is not there, though a place is given to it."""


@dataclass(frozen=True)
class CompositionScore:
    """The subjects of one picture."""

    places: tuple[int | None, ...]
    """Row of the place of each subject; None where it was not found."""
    likeness: tuple[float, ...]
    """Of each subject and the place that was given to it, found or not; 0 where it has none."""
    cp: float
    """Mean over subjects of the likeness of those that were found, 0 to 1."""
    found: float
    """Share of subjects that were found."""
    extra: int
    """Places that show a subject's like and belong to none."""

    @property
    def match(self) -> float:
        """Mean likeness over subjects, found or not."""
        return float(np.mean(self.likeness))


def score_places(seen: SeenPlaces) -> CompositionScore:
    """Give places to subjects and score the picture.

    Raises:
        BestiaryError: there is no subject, or the arrays do not belong together.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and needed here alone

    count, subjects = seen.likeness.shape
    if not subjects:
        raise BestiaryError("no subjects to look for: name at least one")
    if seen.possible.shape != (count, subjects) or seen.boxes.shape != (count, 4):
        raise BestiaryError(
            f"{seen.boxes.shape} boxes, {seen.likeness.shape} likenesses and {seen.possible.shape} classes do not belong together"
        )
    # a place of another class costs more than any likeness can gain
    gain = np.where(seen.possible, seen.likeness, -1e6)
    places: list[int | None] = [None] * subjects
    likeness = [0.0] * subjects
    for place, subject in zip(*linear_sum_assignment(gain, maximize=True), strict=True):
        if seen.possible[place, subject]:
            likeness[subject] = max(0.0, float(seen.likeness[place, subject]))
            places[subject] = int(place) if seen.likeness[place, subject] >= seen.least else None
    found = [place is not None for place in places]
    like = seen.possible & (seen.likeness >= seen.least)
    return CompositionScore(
        tuple(places),
        tuple(likeness),
        float(np.mean([value * is_found for value, is_found in zip(likeness, found, strict=True)])),
        float(np.mean(found)),
        int(sum(bool(like[place].any()) for place in range(count) if place not in places)),
    )


def separate_places(
    boxes: Boxes, certainty: NDArray[np.floating], overlap: float, most: int | None = None
) -> list[int]:
    """Rows of boxes `(K, 4)` that hardly overlap, the most certain first (non-maximum suppression).

    Args:
        certainty: `(K,)`.
        overlap: intersection over union, 0 to 1, from which on the less certain one is left out.
        most: number of boxes to keep; None keeps all.
    """
    kept: list[int] = []
    for row in np.argsort(-np.asarray(certainty), kind="stable"):
        if most is not None and len(kept) >= most:
            break
        if not kept or float(overlaps(boxes[row], boxes[kept]).max()) < overlap:
            kept.append(int(row))
    return kept


def overlaps(box: NDArray[np.floating], others: Boxes) -> NDArray[np.floating]:
    """Intersection over union `(K,)` of a box `(4,)` and others `(K, 4)`; 0 for boxes without area."""
    left_top = np.maximum(box[:2], others[:, :2])  # (K, 2)
    right_bottom = np.minimum(box[:2] + box[2:], others[:, :2] + others[:, 2:])  # (K, 2)
    common = np.clip(right_bottom - left_top, 0, None).prod(axis=1)
    union = box[2:].prod() + others[:, 2:].prod(axis=1) - common
    return common / np.maximum(union, 1e-9)


def sliding_windows(width: int, height: int, edge: int | None = None) -> Boxes:
    """Square windows `(K, 4)` that cover a picture, an eighth of their edge apart.

    Args:
        edge: in pixels; None is the shorter side of a wide or tall picture, and half of it where the picture is nearly square.

    Raises:
        BestiaryError: the windows are larger than the picture.
    """
    shorter, longer = min(width, height), max(width, height)
    side = edge or (shorter if longer >= _WIDE * shorter else max(1, shorter // 2))
    if not 0 < side <= shorter:
        raise BestiaryError(f"windows of {side} pixels for a picture of {width} x {height}: give at most {shorter}")
    rows, columns = (_starts(length, side) for length in (height, width))
    return np.array([(left, top, side, side) for top in rows for left in columns], np.float32)


def _starts(length: int, side: int) -> Sequence[int]:
    step = max(1, side // _SLIDES)
    # the last window ends with the picture
    return sorted({*range(0, length - side, step), length - side})
