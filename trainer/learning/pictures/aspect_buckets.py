"""Buckets by aspect ratio: shapes of about equal area, and which pictures are nearest to which.

A batch holds pictures of one shape; a picture loses to the cut only what its bucket's ratio differs from its own, and none is left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

AREA_TOLERANCE = 0.1
"""Share of the square's area by which that of a bucket may differ."""
BUCKET_CELLS = 8
"""Latent cells of which the edges of buckets are multiples: what halves a UNet's grid three times."""
MOST_LONG = 4.0
"""Ratio of the edges of the longest bucket; longer pictures are cut to it."""


@dataclass(frozen=True)
class AspectBucket:
    """Pictures of one shape."""

    height: int
    """In pixels, as `width`."""
    width: int
    rows: tuple[int, ...]
    """Numbers of its pictures."""


def bucket_shapes(size: int, step: int) -> list[tuple[int, int]]:
    """Heights and widths in pixels: multiples of `step` whose area is about `size` squared, and the square itself."""
    area, longest = size * size, int(size * math.sqrt(MOST_LONG * (1 + AREA_TOLERANCE)))
    edges = range(step, longest + 1, step)
    found = {(size, size)}
    for height in edges:
        for width in edges:
            ratio = max(height, width) / min(height, width)
            if abs(height * width - area) <= AREA_TOLERANCE * area and ratio <= MOST_LONG:
                found.add((height, width))
    return sorted(found)


def aspect_buckets(pictures: Sequence[tuple[int, int]], size: int, step: int) -> tuple[AspectBucket, ...]:
    """Every picture in the bucket whose aspect ratio is nearest to its own; of two equally near the larger one.

    Args:
        pictures: width and height of each in pixels.
        size: edge of the square whose area the buckets have, in pixels.
        step: of which their edges are multiples, in pixels.
    """
    shapes = bucket_shapes(size, step)
    rows: dict[tuple[int, int], list[int]] = {}
    for row, (width, height) in enumerate(pictures):
        wanted = math.log(height / width)
        nearest = min(
            shapes, key=lambda shape: (round(abs(math.log(shape[0] / shape[1]) - wanted), 9), -shape[0] * shape[1])
        )
        rows.setdefault(nearest, []).append(row)
    return tuple(AspectBucket(height, width, tuple(found)) for (height, width), found in sorted(rows.items()))


class BucketOrder:
    """Which bucket each batch takes: in as many batches as there are pictures each comes as often as it has pictures."""

    def __init__(self, counts: Sequence[int], stream: tuple[int, ...]) -> None:
        """Buckets of `counts` pictures each; `stream` seeds the order."""
        self._counts, self._stream = tuple(counts), stream
        self._order = lru_cache(maxsize=4)(self._shuffled)

    def of(self, batch: int) -> tuple[int, int]:
        """The bucket of a batch, and which of that bucket's batches it is."""
        cycle, place = divmod(batch, sum(self._counts))
        order = self._order(cycle)  # (N,)
        number = int(order[place])
        return number, cycle * self._counts[number] + int((order[:place] == number).sum())

    def _shuffled(self, cycle: int) -> np.ndarray:
        """Order of the buckets' numbers `(N,)` in a cycle, each as often as it has pictures."""
        numbers = np.repeat(np.arange(len(self._counts)), self._counts)
        return np.random.default_rng((*self._stream, cycle)).permutation(numbers)
