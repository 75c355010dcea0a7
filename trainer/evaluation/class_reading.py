"""Judging dictionaries whose kinds are classes: which class does each part of a picture look like? (class-EMR, ours)

A discovery has no kinds of this sort, so the class of a part is the one whose pictures have the nearest mean feature of
that part. The background keeps the kinds of the discovery. Letters: N pictures, M parts, K classes, d channels.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.part_map.part_map import ABSENT, PartMaps
from ...concepts.part_map.part_metrics import nearest_classes
from .cases import TestCase
from .picture_judge import Sight


@dataclass(frozen=True)
class ClassReading:
    """Classes in the place of a codebook's kinds; has what `score_pictures` asks of a codebook."""

    codebook: PartCodebook
    codes: Tensor
    """`(N, M)` long: class of every part of the pictures learned from, kind of the background; ABSENT where not shown."""
    features: Tensor
    """`(K, M, d)`: mean feature of every part over the pictures of a class; nan where none shows the part."""

    @classmethod
    def fit(cls, codebook: PartCodebook, codes: Tensor, part_means: Tensor) -> "ClassReading":
        """Average the part means `(N, M, d)` of all pictures learned from, class by class."""
        classes = torch.arange(int(codes.max()) + 1)
        members = (codes.unsqueeze(-1) == classes).float()  # (N, M, K)
        sums = torch.einsum("nmk,nmd->kmd", members, part_means)  # (K, M, d)
        return cls(codebook, codes, sums / members.sum(0).T.unsqueeze(-1))  # 0 / 0 is nan

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the parts."""
        return self.codebook.part_names

    @property
    def background(self) -> int:
        """Index of the background part."""
        return self.codebook.background

    def kind_similarity(self, part: int, first: int, second: int) -> float:
        """Cosine of the mean features, rows of `(K, M, d)`, of two classes; of two kinds for the background."""
        if part == self.background:
            return self.codebook.kind_similarity(part, first, second)
        return float(F.cosine_similarity(self.features[first, part], self.features[second, part], dim=0))

    def read(self, sight: Sight) -> Sight:
        """The same sight with classes for codes `(N, M)`, but for the background."""
        codes = nearest_classes(sight.part_means, sight.maps.codes != ABSENT, self.features)  # (N, M)
        if self.background >= 0:
            codes[:, self.background] = sight.maps.codes[:, self.background]
        return replace(sight, maps=PartMaps(sight.maps.labels, codes))

    def ask(self, case: TestCase) -> TestCase:
        """A test case with the classes of its sources for kinds."""
        sources = enumerate(case.sources)
        return replace(case, codes=tuple(int(self.codes[own, part]) if own >= 0 else ABSENT for part, own in sources))
