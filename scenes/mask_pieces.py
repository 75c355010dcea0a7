"""Connected pieces of a mask, and the holes in it.

A mask is cut into runs, stretches of set pixels within a row. Runs of neighbouring rows that touch belong together; what is
together takes the lowest number in it, by steps that double their reach. Time and memory go with the number of runs.

Letters: (h, w) pixels, n runs, e pairs of touching runs, k pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pieces:
    """The pieces of a mask, from the largest to the smallest."""

    labels: NDArray[np.int32]
    """`(h, w)`: number of the piece, from 0; -1 outside the mask."""
    areas: NDArray[np.int64]
    """`(k,)` pixels, falling."""


def pieces_of(mask: NDArray[np.bool_], *, diagonal: bool = True) -> Pieces:
    """The connected pieces of a mask `(h, w)`.

    Args:
        mask: `(h, w)`.
        diagonal: pixels that touch at a corner are connected too.
    """
    height, width = mask.shape
    starts, ends = _runs(mask)  # (n,) each, places in the picture with one column more than it has
    first, second = _touching(starts, ends, width + 1, 1 if diagonal else 0)
    _, piece = np.unique(_joined(len(starts), first, second), return_inverse=True)  # (n,)
    areas = np.bincount(piece.ravel(), weights=ends - starts, minlength=0).astype(np.int64)  # (k,)
    order = np.argsort(-areas, kind="stable")
    rank = np.empty(len(areas), np.int32)
    rank[order] = np.arange(len(areas), dtype=np.int32)
    labels = np.full((height, width), -1, np.int32)
    # set pixels lie in the order of their runs
    labels[mask] = np.repeat(rank[piece.ravel()], ends - starts)
    return Pieces(labels, areas[order])


def holes_of(mask: NDArray[np.bool_]) -> Pieces:
    """The pieces of what is not set in a mask `(h, w)` and cannot be reached from outside the picture."""
    around = np.pad(~mask, 1, constant_values=True)
    ground = pieces_of(around, diagonal=False)
    outside = ground.labels[0, 0]
    inner = ground.labels[1:-1, 1:-1]
    # numbers above that of the outside move up by one
    labels = np.where(inner == outside, -1, inner - (inner > outside)).astype(np.int32)
    return Pieces(labels, np.delete(ground.areas, outside))


def _runs(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First place and place after the last `(n,)` of every run; a column that is never set keeps rows apart."""
    flat = np.pad(mask, ((0, 0), (0, 1))).ravel()
    change = np.flatnonzero(np.diff(flat, prepend=False, append=False))
    return change[0::2], change[1::2]


def _touching(
    starts: NDArray[np.int64], ends: NDArray[np.int64], row: int, reach: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs `(e,)` and `(e,)` of runs that touch, `row` places apart; `reach` more pixels to the sides count."""
    low = np.searchsorted(ends, starts - row - reach, side="right")
    high = np.searchsorted(starts, ends - row + reach, side="left")
    counts = np.maximum(high - low, 0)  # (n,): runs of the row above that touch
    second = np.repeat(np.arange(len(starts)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return low[second] + within, second


def _joined(count: int, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of n things the lowest number `(n,)` that it is connected to by pairs."""
    root = np.arange(count)
    while True:
        ours, theirs = root[first], root[second]
        apart = ours != theirs
        if not apart.any():
            return root
        low, high = np.minimum(ours, theirs)[apart], np.maximum(ours, theirs)[apart]
        # the lowest of all that a root meets becomes its own root, then everything follows its root
        np.minimum.at(root, high, low)
        while ((higher := root[root]) != root).any():
            root = higher
