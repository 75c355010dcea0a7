"""Who stands left of, in front of or on whom, read from the boxes of a layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations

from .scene_layout import Placement, SceneLayout

_APART = 0.25
"""Of the narrower box: so much of it may overlap the other one and still stand left of it."""
_BEFORE = 0.04
"""Of the canvas's height: so much lower is a foot that stands in front."""


def relations(layout: SceneLayout, supports: Mapping[str, str] | None = None) -> list[tuple[str, str, str]]:
    """`(name, "on" | "in front of" | "to the left of", name)`, one at most for each pair of subjects, from left to right.

    Args:
        supports: what each subject stands on; `on:NAME` decides, boxes decide the rest.
    """
    supports = supports or {}
    ordered = sorted(layout.placements, key=lambda placement: placement.x + placement.width / 2)
    found = (_relation(one, other, layout.height, supports) for one, other in combinations(ordered, 2))
    return [relation for relation in found if relation]


def relation_clause(layout: SceneLayout, called: Mapping[str, str], supports: Mapping[str, str] | None = None) -> str:
    """`the cat to the left of the dog and the bird on the dog`; empty where words do not distinguish the subjects.

    Args:
        called: words for each subject by name; subjects that share theirs are left out.
    """
    counts = Counter(called.values())
    clauses, linked = [], set()
    for one, relation, other in relations(layout, supports):
        unclear = any(counts[called.get(name, "")] != 1 for name in (one, other))
        # a chain says all that a person would: the second of a pair is the first of the next
        if unclear or (relation == "to the left of" and (one in linked)):
            continue
        if relation == "to the left of":
            linked.add(one)
        clauses.append(f"{_the(called[one])} {relation} {_the(called[other])}")
    return clauses[0] if len(clauses) == 1 else " and ".join(filter(None, [", ".join(clauses[:-1]), *clauses[-1:]]))


def _the(words: str) -> str:
    return words if words.split(" ")[0] in ("the", "a", "an", "my") else f"the {words}"


def _relation(
    left: Placement, right: Placement, height: int, supports: Mapping[str, str]
) -> tuple[str, str, str] | None:
    for one, other in ((left, right), (right, left)):
        if supports.get(one.subject, "").removeprefix("on:") == other.subject:
            return one.subject, "on", other.subject
    overlap = left.x + left.width - right.x
    if overlap <= _APART * min(left.width, right.width):
        return left.subject, "to the left of", right.subject
    for one, other in ((left, right), (right, left)):
        if one.z > other.z and one.foot - other.foot > _BEFORE * height:
            return one.subject, "in front of", other.subject
    return None
