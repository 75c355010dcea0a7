"""Figures of an evaluation: do the pictures show what was asked for?"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ...concepts.denoiser.part_attention_loss import attention_iou
from ...concepts.part_map.part_map import ABSENT
from ...concepts.part_map.part_metrics import absent_rate, code_similarity, exact_match_by_picture, exact_match_rate
from ..composing.picture_making import Picture
from .cases import TestCase
from .picture_judge import Sight


class KindReading(Protocol):
    """What scoring asks of a codebook, or of classes in its place."""

    @property
    def part_names(self) -> tuple[str, ...]:
        """M names."""
        ...

    @property
    def background(self) -> int:
        """Number of the background among the parts."""
        ...

    def kind_similarity(self, part: int, first: int, second: int) -> float:
        """Cosine between two kinds of a part."""
        ...


def score_pictures(
    cases: Sequence[TestCase],
    sight: Sight,
    codebook: KindReading,
    real: Mapping[int, Sight],
    pictures: Sequence[Picture] = (),
) -> dict[str, Any]:
    """Scores of N pictures against what was asked for.

    Foreground parts make the headline figures; the background has a row of its own among the parts.

    Args:
        sight: what the codebook sees in the pictures.
        real: number of a picture learned from -> what the codebook sees in it.
        pictures: the pictures with attention maps, for `attention_iou`; without them it is None.

    Returns:
        pictures, emr, emr_standard_error, cosim, absent_rate, attention_iou, part_likeness, image_similarity, and the
        same by part. `part_likeness` is the cosine between the features of a part and of the part it was taken from,
        `image_similarity` the same for whole pictures that were to be rebuilt.
    """
    # codes asked for and codes seen, in the same order of pictures and parts
    asked = torch.tensor([case.codes for case in cases])  # (N, M)
    seen = sight.maps.codes
    ious = _attention_ious(pictures, sight, codebook)  # (N, M)
    likeness = _part_likeness(cases, sight, real)  # (N, M)
    foreground = [part for part in range(asked.shape[1]) if part != codebook.background]
    scores = {"pictures": len(cases), **_columns(codebook, asked, seen, ious, likeness, foreground)}
    scores["emr_standard_error"] = _standard_error(asked[:, foreground], seen[:, foreground])
    scores["image_similarity"] = _image_similarity(cases, sight, real)
    scores["parts"] = {
        codebook.part_names[part]: _columns(codebook, asked, seen, ious, likeness, [part])
        for part in range(asked.shape[1])
        if bool((asked[:, part] != ABSENT).any())
    }
    return scores


def _columns(
    codebook: KindReading, asked: Tensor, seen: Tensor, ious: Tensor, likeness: Tensor, parts: Sequence[int]
) -> dict[str, Any]:
    """The figures over some parts."""
    # columns of (N, M): only some parts
    wanted, found = asked[:, parts], seen[:, parts]
    return {
        "emr": _number(exact_match_rate(found, wanted)),
        "cosim": _number(code_similarity(found, wanted, _SimilarityOf(codebook, parts))),
        "absent_rate": _number(absent_rate(found, wanted)),
        "attention_iou": _number(ious[:, parts].nanmean()),
        "part_likeness": _number(likeness[:, parts].nanmean()),
    }


class _SimilarityOf:
    """Cosine between two kinds of the parts that stand in some columns."""

    def __init__(self, codebook: KindReading, parts: Sequence[int]) -> None:
        self._codebook, self._parts = codebook, parts

    def __call__(self, column: int, one: int, other: int) -> float:
        return self._codebook.kind_similarity(self._parts[column], one, other)


def _standard_error(asked: Tensor, seen: Tensor) -> float | None:
    """Standard error of the EMR of codes `(N, M)`, taking whole pictures as the independent draws."""
    shares = exact_match_by_picture(seen, asked)  # (N,)
    # pictures of which nothing was asked, of (N,)
    shares = shares[~shares.isnan()]
    return _number(shares.std() / len(shares) ** 0.5) if len(shares) > 1 else None


def _attention_ious(pictures: Sequence[Picture], sight: Sight, codebook: KindReading) -> Tensor:
    """IoU `(N, M)` between where a part's token looked and where the part is seen; nan where it has none."""
    n, parts = sight.maps.codes.shape
    ious = torch.full((n, parts), float("nan"))
    for row, picture in enumerate(pictures):
        named = [mention.part for mention in picture.mentions]
        if picture.attention is None or not named or max(named) >= parts:
            continue
        h, w = picture.attention.shape[-2:]
        # a part named twice has both its maps added
        maps = torch.zeros(parts, h, w)
        for part, attention in zip(named, picture.attention, strict=True):
            maps[part] += attention
        present = torch.zeros(parts, dtype=torch.bool)
        present[named] = True
        # where the codebook sees each part, on the grid of the maps
        masks = sight.maps.labels[row].long() == torch.arange(parts).view(-1, 1, 1)  # (M, h', w')
        masks = F.interpolate(masks.float().unsqueeze(0), (h, w), mode="nearest-exact")  # (1, M, h, w)
        ious[row] = attention_iou(maps.unsqueeze(0), masks, present.unsqueeze(0))[0]
    return ious


def _part_likeness(cases: Sequence[TestCase], sight: Sight, real: Mapping[int, Sight]) -> Tensor:
    """Cosine `(N, M)` between each part and the part it was taken from; nan where either is missing."""
    likeness = torch.full(sight.maps.codes.shape, float("nan"))
    for row, case in enumerate(cases):
        for part, source in enumerate(case.sources):
            # parts that were not asked for, or are not seen, have no likeness
            if source < 0 or sight.maps.codes[row, part] == ABSENT:
                continue
            likeness[row, part] = F.cosine_similarity(
                sight.part_means[row, part], real[source].part_means[0, part], dim=0
            )
    return likeness


def _image_similarity(cases: Sequence[TestCase], sight: Sight, real: Mapping[int, Sight]) -> float | None:
    """Mean cosine of whole pictures with the one picture they were to be like; None for mixes."""
    if any(len(case.pictures) != 1 for case in cases):
        return None
    originals = torch.cat([real[case.pictures[0]].picture_means for case in cases])  # (N, D)
    return _number(F.cosine_similarity(sight.picture_means, originals).mean())


def _number(value: Tensor | float) -> float | None:
    # a scalar (), nan where nothing was measured
    number = float(value)
    return None if number != number else number
