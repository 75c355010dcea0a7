"""Who stands in which scene of a set: every subject, pair, side, picture and place equally often, and none of the evaluation's photographs in training."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice, permutations
from typing import TypeVar

import numpy as np

from ..concepts.errors import BestiaryError
from .scene_layout import SceneLayout

_Choice = TypeVar("_Choice")
_MOST_CHOICES = 2000
"""Groups or orders that are compared; more than these are left to chance."""


@dataclass(frozen=True)
class PlannedScene:
    """One scene before it has a layout."""

    stem: str
    """Name of its files, `000001` for the first."""
    subjects: tuple[str, ...]
    """Names from left to right."""
    pictures: tuple[int, ...]
    """Which picture of each subject is shown."""
    place: int
    """Which of the places."""
    seed: int
    """Of its layout."""


def plan_scenes(
    pictures: Mapping[str, int],
    count: int,
    per_scene: Sequence[int] = (2,),
    places: int = 1,
    seed: int = 0,
    carriers: Mapping[str, str] | None = None,
) -> list[PlannedScene]:
    """Scenes that use everything equally often; the first n of a longer plan are a balanced plan too.

    Args:
        pictures: how many pictures there are of each subject.
        per_scene: numbers of subjects, taken in turn.
        places: how many places there are, at least 1.
        carriers: subject -> the subject that it stands on; it is only shown together with that one.

    Raises:
        BestiaryError: fewer subjects than a scene shows, no picture of one, or a number per scene at which nobody has a carrier.
    """
    names = sorted(pictures)
    if empty := [name for name in names if pictures[name] < 1]:
        raise BestiaryError(f"subject {empty[0]!r} has no picture to train with: give more photographs of it")
    if not per_scene or min(per_scene) < 1 or max(per_scene) > len(names):
        raise BestiaryError(
            f"scenes of {', '.join(map(str, per_scene)) or 'no'} subjects cannot be made of {len(names)}: "
            "give more subjects or another number per scene"
        )
    random = np.random.default_rng([seed, 0x5CE7E])
    used: Counter = Counter()
    plan = []
    for index in range(count):
        size = per_scene[index % len(per_scene)]
        groups = _carried(_groups(names, size, random), carriers or {})
        if not groups:
            raise BestiaryError(
                f"no scene of {size} subjects has all the subjects that others stand on (support on:NAME): "
                "raise per_scene, or let a subject stand on the ground"
            )
        group = _least(groups, lambda group: _cost_of_group(used, group), random)
        order = _least(_orders(group, random), lambda order: _cost_of_order(used, order), random)
        place = _least(range(places), lambda place, order=order: _cost_of_place(used, order, place), random)
        shown = tuple(
            _least(range(pictures[name]), lambda picture, name=name: (used["picture", name, picture],), random)
            for name in order
        )
        _count(used, order, shown, place)
        plan.append(PlannedScene(f"{index + 1:06d}", order, shown, place, int(random.integers(2**31))))
    return plan


def evaluation_sources(sources: Mapping[str, Sequence[str]], share: float, seed: int = 0) -> frozenset[str]:
    """Photographs kept for evaluation: about a share of those of each subject, never the only one.

    Args:
        sources: sha256 of the photographs of each subject; two subjects of one photograph are kept or trained together.
        share: 0 to 1.
    """
    kept: set[str] = set()
    trained: set[str] = set()
    for name in sorted(sources):
        own = sorted(dict.fromkeys(sources[name]), key=lambda sha: _chance(sha, seed))
        wanted = min(len(own) - 1, max(1, round(share * len(own)))) if share > 0 else 0
        # what another subject needs for training stays there
        kept_here = [sha for sha in own if sha in kept]
        free = [sha for sha in own if sha not in kept and sha not in trained]
        kept_here += free[: max(0, wanted - len(kept_here))]
        kept |= set(kept_here)
        trained |= set(own) - kept
    # a subject all of whose photographs others keep gets them back
    for own in sources.values():
        if own and kept.issuperset(own):
            kept.discard(min(own))
    return frozenset(kept)


def ordered(layout: SceneLayout, names: Sequence[str]) -> SceneLayout:
    """The layout, or its mirror image where that has more pairs of subjects in this order from left to right."""
    middles = {placement.subject: placement.x + placement.width / 2 for placement in layout.placements}
    present = [name for name in names if name in middles]
    wrong = sum(middles[one] > middles[other] for one, other in combinations(present, 2))
    return mirrored(layout) if wrong * 2 > len(present) * (len(present) - 1) / 2 else layout


def mirrored(layout: SceneLayout) -> SceneLayout:
    """The layout with left and right exchanged; subjects are not flipped, and what was covered stays so but for their outlines."""
    placements = tuple(
        replace(placement, x=layout.width - placement.x - placement.width, turn=-placement.turn)
        for placement in layout.placements
    )
    return replace(layout, placements=placements)


def _groups(names: Sequence[str], size: int, random: np.random.Generator) -> list[tuple[str, ...]]:
    groups = list(islice(combinations(names, size), _MOST_CHOICES + 1))
    if len(groups) <= _MOST_CHOICES:
        return groups
    drawn = (random.permutation(len(names))[:size] for _ in range(_MOST_CHOICES))
    return [tuple(sorted(names[int(place)] for place in places)) for places in drawn]


def _carried(groups: list[tuple[str, ...]], carriers: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Groups in which everybody has the subject that he stands on."""
    return [group for group in groups if all(carriers.get(name, name) in group for name in group)]


def _orders(group: Sequence[str], random: np.random.Generator) -> list[tuple[str, ...]]:
    if len(group) <= 5:
        return list(permutations(group))
    return [tuple(group[index] for index in random.permutation(len(group))) for _ in range(100)]


def _least(
    choices: Sequence[_Choice], cost: Callable[[_Choice], tuple[int, ...]], random: np.random.Generator
) -> _Choice:
    """The choice of least cost; chance decides between equals."""
    costs = [cost(choice) for choice in choices]
    least = min(costs)
    equals = [choice for choice, value in zip(choices, costs, strict=True) if value == least]
    return equals[int(random.integers(len(equals)))]


def _cost_of_group(used: Counter, group: Sequence[str]) -> tuple[int, int]:
    return sum(used["subject", name] for name in group), sum(used[("pair", *pair)] for pair in combinations(group, 2))


def _cost_of_order(used: Counter, order: Sequence[str]) -> tuple[int, int]:
    sides = sum(used[("left", *pair)] - used[("left", *reversed(pair))] for pair in combinations(order, 2))
    return sides, used["first", order[0]] + used["last", order[-1]]


def _cost_of_place(used: Counter, order: Sequence[str], place: int) -> tuple[int, int]:
    return used["place", place], sum(used["there", name, place] for name in order)


def _count(used: Counter, order: Sequence[str], shown: Sequence[int], place: int) -> None:
    used.update(("pair", *pair) for pair in combinations(sorted(order), 2))
    used.update(("left", *pair) for pair in combinations(order, 2))
    used.update(("subject", name) for name in order)
    used.update(("there", name, place) for name in order)
    used.update(("picture", name, picture) for name, picture in zip(order, shown, strict=True))
    used.update([("first", order[0]), ("last", order[-1]), ("place", place)])


def _chance(sha: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{sha}".encode()).hexdigest()
