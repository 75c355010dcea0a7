"""Statistics collected while the results of a discovery stream by: sizes of parts and kinds, typical pictures per kind.

Letters: n pictures of a piece, (h, w) patch grid, M parts, d channels of part means.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.part_map.part_map import PartMaps
from ..learning.discovery.discovery_report import PartEntry

PER_KIND = 4
"""Typical pictures stored per kind."""


@dataclass
class PartCounts:
    """Running sizes of parts and kinds; `add` may be called with batches of any size."""

    num_parts: int
    images: int = 0
    grid_patches: int = 0
    shown: Tensor = field(init=False)
    patches: Tensor = field(init=False)
    kinds: list[Counter[int]] = field(init=False)

    def __post_init__(self) -> None:
        # (M,) pictures that show the part, and its patches in all of them
        self.shown = torch.zeros(self.num_parts, dtype=torch.long)
        self.patches = torch.zeros(self.num_parts, dtype=torch.long)
        self.kinds = [Counter() for _ in range(self.num_parts)]

    def add(self, maps: PartMaps) -> None:
        """Add labels `(n, h, w)` and codes `(n, M)`."""
        self.images += len(maps.labels)
        self.grid_patches = maps.labels[0].numel()
        self.shown += (maps.codes >= 0).sum(0)
        self.patches += torch.bincount(maps.labels.flatten().long(), minlength=self.num_parts)
        for part, counter in enumerate(self.kinds):
            counter.update(maps.codes[maps.codes[:, part] >= 0, part].tolist())

    def report(self, part_names: Sequence[str]) -> list[PartEntry]:
        """Per part: index, name, number of pictures with it, its mean area in them (0..1), sizes of its kinds."""
        return [
            {
                "index": part,
                "name": name,
                "images": int(self.shown[part]),
                "area": round(int(self.patches[part]) / max(int(self.shown[part]), 1) / max(self.grid_patches, 1), 5),
                "kinds": {str(kind): size for kind, size in self.kinds[part].most_common()},
            }
            for part, name in enumerate(part_names)
        ]


class TypicalPictures:
    """For every kind of every part, the pictures nearest to its centre, as indices into the results."""

    def __init__(self, codebook: PartCodebook) -> None:
        self._codebook = codebook
        self._nearest: dict[tuple[int, int], list[tuple[float, int]]] = {}

    def add(self, first: int, codes: Tensor, means: Tensor) -> None:
        """Add codes `(n, M)` and part means `(n, M, d)` of the pictures `first`, `first + 1`, ..."""
        for part, centroids in enumerate(self._codebook.fine):
            rows = (codes[:, part] >= 0).nonzero().flatten()
            if not len(rows):
                continue
            kinds = codes[rows, part]
            # same measure as in kind assignment: cosine, in the space where the part's kinds are compared
            compared = self._codebook.as_compared(means[rows, part].float(), part)
            nearness = F.cosine_similarity(compared, centroids[kinds], dim=1)  # (rows,)
            for row, kind, value in zip(rows.tolist(), kinds.tolist(), nearness.tolist(), strict=True):
                # rows are negated in the heap, so that the first of equally near pictures is kept
                self._note(part, kind, value, first + row)

    def rows(self) -> dict[str, list[int]]:
        """`part:kind` -> indices of its typical pictures, the most typical first."""
        return {
            f"{part}:{kind}": [-row for _, row in sorted(found, reverse=True)]
            for (part, kind), found in sorted(self._nearest.items())
        }

    def _note(self, part: int, kind: int, nearness: float, row: int) -> None:
        found = self._nearest.setdefault((part, kind), [])
        if len(found) < PER_KIND:
            heapq.heappush(found, (nearness, -row))
        else:
            heapq.heappushpop(found, (nearness, -row))


def largest_kinds(part: PartEntry, most: int) -> list[tuple[int, int]]:
    """(kind, pictures) of a part's entry in the report, largest first, at most `most`."""
    kinds = sorted(part["kinds"].items(), key=lambda entry: (-entry[1], int(entry[0])))
    return [(int(kind), size) for kind, size in kinds[:most]]
