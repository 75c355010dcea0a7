"""Metrics for the agreement of pictures with the requested parts: EMR, CoSim and absent rate on kind codes.

Interpretations of arXiv 2407.04604 (its evaluation was never published): EMR is the share of prompted parts whose kind, as found by
the codebook in the picture, is the requested one; CoSim is the mean cosine between the centroids of the two kinds. A
prompted part that the codebook cannot find is counted as a miss (EMR) or as similarity 0 (CoSim), never as kind 0, and
`absent_rate` reports how many there are. Letters: N pictures, M parts, K classes, d channels of a part feature.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BestiaryError
from .part_map import ABSENT

KindSimilarity = Callable[[int, int, int], float]
"""(part, one kind, another kind) -> cosine of their centroids."""


def exact_match_rate(found: Tensor, wanted: Tensor, *, count_absent: bool = True) -> Tensor:
    """EMR, a scalar in 0..1; NaN if no part was requested.

    Args:
        found: codes `(N, M)` seen in the pictures, ABSENT where a part is not seen.
        wanted: requested codes `(N, M)`, ABSENT for parts that were not requested.
        count_absent: False leaves parts that are not seen out of the mean.
    """
    return matches(found, wanted, count_absent=count_absent).nanmean()


def exact_match_by_part(found: Tensor, wanted: Tensor, *, count_absent: bool = True) -> Tensor:
    """EMR of every part `(M,)` of codes `(N, M)`, NaN for parts that were never requested; arguments as `exact_match_rate`."""
    return matches(found, wanted, count_absent=count_absent).nanmean(dim=0)


def exact_match_by_picture(found: Tensor, wanted: Tensor, *, count_absent: bool = True) -> Tensor:
    """EMR of every picture `(N,)` of codes `(N, M)`, NaN if no part was requested; arguments as `exact_match_rate`."""
    return matches(found, wanted, count_absent=count_absent).nanmean(dim=1)


def absent_rate(found: Tensor, wanted: Tensor) -> Tensor:
    """Share of the requested parts `(N, M)` that were not found; NaN if no part was requested."""
    return _where_asked((found < 0).double(), wanted).nanmean()


def absent_rate_by_part(found: Tensor, wanted: Tensor) -> Tensor:
    """The same for every part `(M,)` of codes `(N, M)`."""
    return _where_asked((found < 0).double(), wanted).nanmean(dim=0)


def code_similarity(found: Tensor, wanted: Tensor, similarity: KindSimilarity, *, count_absent: bool = True) -> Tensor:
    """CoSim, a scalar in -1..1; NaN if no part was requested.

    Args:
        found, wanted: codes `(N, M)` as for `exact_match_rate`.
        similarity: cosine between two kinds of a part, such as `PartCodebook.kind_similarity`.
        count_absent: True counts a part that is not seen as 0, False leaves it out.
    """
    return similarities(found, wanted, similarity, count_absent=count_absent).nanmean()


def similarities(found: Tensor, wanted: Tensor, similarity: KindSimilarity, *, count_absent: bool = True) -> Tensor:
    """Cosine of every part asked for `(N, M)` float64, nan elsewhere; arguments as `code_similarity`."""
    _check(found, wanted)
    values = torch.full(wanted.shape, float("nan"), dtype=torch.float64)
    known: dict[tuple[int, int, int], float] = {}
    # few different pairs occur: each cosine is asked for once
    for row, part in (wanted != ABSENT).nonzero().tolist():
        seen, asked = int(found[row, part]), int(wanted[row, part])
        if seen < 0:
            values[row, part] = 0.0 if count_absent else float("nan")
            continue
        key = (part, seen, asked)
        if key not in known:
            known[key] = similarity(*key)
        values[row, part] = known[key]
    return values


def nearest_classes(part_features: Tensor, shown: Tensor, class_features: Tensor) -> Tensor:
    """Codes for class-EMR, our measure for supervised dictionaries: the class whose mean feature of the part is nearest.

    Args:
        part_features: `(N, M, d)` mean features of the parts in the pictures.
        shown: `(N, M)` bool, which parts a picture shows.
        class_features: `(K, M, d)` mean features over the training pictures of each class; nan rows are never chosen.

    Returns:
        `(N, M)` long, ABSENT where a part is not shown.

    Raises:
        BestiaryError: the shapes do not fit together.
    """
    if part_features.shape[1:] != class_features.shape[1:] or shown.shape != part_features.shape[:2]:
        raise BestiaryError(
            f"part features {tuple(part_features.shape)}, shown {tuple(shown.shape)} and class features "
            f"{tuple(class_features.shape)} do not fit: expected (N, M, d), (N, M) and (K, M, d)"
        )
    # by cosine: lengths of features say little about what they show
    ours = functional.normalize(part_features.float(), dim=-1)
    theirs = functional.normalize(class_features.float(), dim=-1)
    # classes that never showed a part have nan there; they rank last
    cosines = torch.einsum("nmd,kmd->nmk", ours, theirs).nan_to_num(nan=-2.0)  # (N, M, K)
    return torch.where(shown, cosines.argmax(-1), ABSENT)  # (N, M)


def number_of_sources(sources: Tensor) -> Tensor:
    """From how many different originals each picture takes its parts `(N,)` long.

    Args:
        sources: `(N, M)` number of the original (species, training picture) of each part, negative where none.
    """
    # short rows: one number per part
    counts = [len(set(row) - {number for number in row if number < 0}) for row in sources.tolist()]
    return torch.tensor(counts, dtype=torch.long)


def mean_by_sources(values: Tensor, sources: Tensor) -> dict[int, float]:
    """Mean of per-part values `(N, M)` (nan left out) for every number of sources that occurs; `sources` as above."""
    counts = number_of_sources(sources)
    return {count: float(values[counts == count].nanmean()) for count in sorted(set(counts.tolist()))}


def matches(found: Tensor, wanted: Tensor, *, count_absent: bool = True) -> Tensor:
    """1 or 0 for every part asked for `(N, M)` float64, nan elsewhere; arguments as `exact_match_rate`."""
    _check(found, wanted)
    # what was not asked for counts neither way
    values = _where_asked((found == wanted).double(), wanted)
    return values if count_absent else values.masked_fill(found < 0, float("nan"))


def _where_asked(values: Tensor, wanted: Tensor) -> Tensor:
    """Values `(N, M)` of the parts asked for, nan elsewhere."""
    _check(values, wanted)
    return values.masked_fill(wanted < 0, float("nan"))


def _check(found: Tensor, wanted: Tensor) -> None:
    """Raises BestiaryError unless both are `(N, M)`."""
    if found.shape != wanted.shape or found.ndim != 2:
        raise BestiaryError(
            f"found codes {tuple(found.shape)} and wanted codes {tuple(wanted.shape)}: expected (N, M) twice"
        )
