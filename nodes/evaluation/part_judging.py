"""EMR and CoSim of pictures against the requested parts, with a report per part.

Letters: B pictures, P requested parts, M parts of the codebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.part_map.part_map import ABSENT
from ...concepts.part_map.part_metrics import absent_rate, exact_match_rate, similarities
from ..part_map.part_drawing import LegendText, kind_name, kind_text
from ..part_map.seen_parts import SeenParts
from .requested_parts import AskedPart, asked_text


@dataclass(frozen=True)
class PartScores:
    """Scores of B pictures for P requested parts."""

    emr: float
    """Exact match rate: share of the requested parts detected as exactly the requested kind, 0..1."""
    cosim: float
    """Mean cosine similarity between detected and requested kind, -1..1; 0 for an absent part."""
    absent: float
    """Share of the requested parts that are absent, 0..1."""
    found: Tensor = field(repr=False)
    """`(B, P)` detected kinds, ABSENT for none."""
    similarity: Tensor = field(repr=False)
    """`(B, P)` cosines."""


def score_parts(codebook: PartCodebook, seen: SeenParts, asked: Sequence[AskedPart]) -> PartScores:
    """Scores of the parts detected in pictures; the background counts only if nothing else was requested."""
    # one column per request: a part may be requested twice, with different kinds
    parts = [one.part for one in asked]
    found = seen.maps.codes[:, parts]  # (B, P)
    wanted = torch.tensor([one.kind for one in asked]).expand_as(found)  # (B, P)
    similarity = similarities(found, wanted, lambda column, a, b: codebook.kind_similarity(parts[column], a, b))
    counted = counted_columns(codebook, asked)
    return PartScores(
        emr=float(exact_match_rate(found[:, counted], wanted[:, counted])),
        cosim=float(similarity[:, counted].mean()),
        absent=float(absent_rate(found[:, counted], wanted[:, counted])),
        found=found,
        similarity=similarity,
    )


def counted_columns(codebook: PartCodebook, asked: Sequence[AskedPart]) -> list[int]:
    """Columns that count in the scores: all requested parts except the background, unless it is the only one."""
    foreground = [column for column, one in enumerate(asked) if one.part != codebook.background]
    return foreground or list(range(len(asked)))


def scores_text(codebook: PartCodebook, asked: Sequence[AskedPart], scores: PartScores) -> str:
    """The scores, followed by one line per picture and requested part."""
    pictures, counted = len(scores.found), counted_columns(codebook, asked)
    lines = [
        f"EMR {scores.emr:.3f}   CoSim {scores.cosim:.3f}   absent {scores.absent:.3f}",
        f"{pictures} picture{'s' if pictures > 1 else ''}, {len(asked)} asked part{'s' if len(asked) > 1 else ''}",
    ]
    for picture in range(pictures):
        lines.append(f"picture {picture + 1}")
        for column, one in enumerate(asked):
            aside = "" if column in counted else ", not counted"
            lines.append(_line(codebook, one, scores, picture, column, aside))
    return "\n".join(lines)


def judged_text(codebook: PartCodebook, seen: SeenParts, asked: Sequence[AskedPart]) -> LegendText:
    """Legend of an overlay: the detected kind, and the requested one if it differs."""
    plain = kind_text(codebook, seen)
    # a part may be requested with several kinds
    wishes: dict[int, list[AskedPart]] = {}
    for one in asked:
        wishes.setdefault(one.part, []).append(one)

    def text(picture: int, part: int) -> str:
        shown = plain(picture, part)
        code = int(seen.maps.codes[picture, part])
        if part not in wishes:
            return shown
        if code in [one.kind for one in wishes[part]]:
            return f"{shown} as asked"
        return f"{shown}, asked {' and '.join(kind_name(codebook, part, one.kind) for one in wishes[part])}"

    return text


def _line(codebook: PartCodebook, asked: AskedPart, scores: PartScores, picture: int, column: int, aside: str) -> str:
    code = int(scores.found[picture, column])
    wanted = asked_text(codebook, asked)
    name = codebook.part_names[asked.part]
    # an absent part has no kind and no similarity to report
    if code == ABSENT:
        return f"  {name}: asked {wanted}, not present{aside}"
    found = kind_name(codebook, asked.part, code)
    verdict = "match" if code == asked.kind else "miss"
    return f"  {name}: asked {wanted}, found {found}, similarity {float(scores.similarity[picture, column]):.3f}, {verdict}{aside}"
