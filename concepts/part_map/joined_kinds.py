"""Kinds of a merged part, fitted again to the means of the original parts.

Letters: N pictures, M original parts, d channels of part means.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .part_codebook import PartCodebook
from .part_discovery import fit_kinds


@dataclass(frozen=True)
class PartMeans:
    """Mean features of the original parts of N pictures, from `PartCodebook.part_means`."""

    means: Tensor
    """`(N, M, d)` of any floating type."""
    counts: Tensor
    """`(N, M)` patches."""

    def joined(self, part_of: Sequence[int], part: int) -> "PartMeans":
        """Means `(N, 1, d)` and counts `(N, 1)` of all original parts merged into `part`; `part_of` maps original to current."""
        members = [first for first, now in enumerate(part_of) if now == part]
        size = self.counts[:, members].float()  # (N, members)
        total = size.sum(1, keepdim=True)  # (N, 1)
        mean = (self.means[:, members].float() * size.unsqueeze(-1)).sum(1, keepdim=True)  # (N, 1, d)
        return PartMeans((mean / total.clamp_min(1).unsqueeze(-1)).half(), total.int())


@dataclass(frozen=True)
class RefittedKinds:
    """New kinds of one part."""

    codebook: PartCodebook
    """The given codebook with these kinds."""
    alone: PartCodebook
    """A codebook with this part only, as number 0."""
    codes: Tensor
    """`(N,)` long: kind in every picture, ABSENT if the picture does not show the part."""


def refit_kinds(
    codebook: PartCodebook, part: int, seen: PartMeans, num_kinds: int | None, seed: int, most: int | None = None
) -> RefittedKinds:
    """Cluster one part's means `(N, 1, d)` into kinds; those of the other parts do not change.

    Args:
        num_kinds: None measures the number.
        most: maximum number of pictures for the fit, chosen by `seed`; None uses all.

    Raises:
        BestiaryError: more kinds than pictures that show the part.
    """
    alone = replace(codebook, part_names=(codebook.part_names[part],), background=0)
    chosen = torch.randperm(len(seen.means), generator=torch.Generator().manual_seed(seed))[:most]
    fitted = fit_kinds(alone, seen.means[chosen].float(), seen.counts[chosen], num_kinds=num_kinds, seed=seed)
    codes = fitted.kind_of(seen.means.float(), seen.counts)[:, 0]  # (N,)
    return RefittedKinds(_with_kinds_of(codebook, part, fitted), fitted, codes)


def _with_kinds_of(codebook: PartCodebook, part: int, fitted: PartCodebook) -> PartCodebook:
    fine, centers = list(codebook.fine), codebook.kind_centers
    fine[part] = fitted.fine[0]
    if centers is not None and fitted.kind_centers is not None:
        centers = centers.clone()
        centers[part] = fitted.kind_centers[0]
    spaces = codebook.kind_spaces
    if fitted.kind_spaces is not None:
        # a codebook of before has no spaces: its other parts are compared as they are
        spaces = torch.eye(codebook.width).repeat(codebook.num_parts, 1, 1) if spaces is None else spaces.clone()
        spaces[part] = fitted.kind_spaces[0]
    return replace(codebook, fine=tuple(fine), kind_centers=centers, kind_spaces=spaces)
