"""What an evaluation asks for: pictures like those learned from, and mixes of the parts of several of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.part_map.part_map import ABSENT

_DEALS = 24
"""Number of random assignments of parts to pictures that are tried, until every picture shows the parts it gives."""


@dataclass(frozen=True)
class TestCase:
    """One picture asked for: a kind for every part, each taken from a picture that was learned from."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    codes: tuple[int, ...]
    """`(M,)` kind of every part, `ABSENT` where none is asked for."""
    sources: tuple[int, ...]
    """`(M,)` number of the picture each kind was taken from, -1 where none is asked for."""
    seed: int
    """Seed of the picture to be made."""

    @property
    def pictures(self) -> tuple[int, ...]:
        """The different pictures taken from, in the order of their first part."""
        return tuple(dict.fromkeys(source for source in self.sources if source >= 0))


def reconstruction_cases(codes: Tensor, count: int, seed: int) -> list[TestCase]:
    """Ask for the parts of single pictures, all pictures in turn before one comes twice.

    Args:
        codes: `(N, M)` long, kinds that every picture shows, `ABSENT` where it shows none.
    """
    rng = np.random.default_rng(seed)
    usable = _usable(codes, 1)
    # whole rounds through all pictures, each in a new order
    order = np.concatenate([rng.permutation(usable) for _ in range(-(-count // len(usable)))])[:count]
    cases = []
    for number, picture in enumerate(order.tolist()):
        row = codes[picture].tolist()
        sources = tuple(picture if code != ABSENT else -1 for code in row)
        cases.append(TestCase(tuple(row), sources, _case_seed(seed, number)))
    return cases


def mix_cases(codes: Tensor, background: int, sources: int, count: int, seed: int) -> list[TestCase]:
    """Ask for creatures put together from parts of so many pictures, each giving at least one foreground part.

    The background comes from the first picture. Pictures that share a kind of a part are not mixed where others are
    to be had, so that a mix of four asks for four different things.

    Args:
        codes: `(N, M)` long; background: index of the background part, or -1 where there is none.

    Raises:
        BestiaryError: there are fewer foreground parts or pictures than sources.
    """
    foreground = [part for part in range(codes.shape[1]) if part != background]
    if sources > len(foreground):
        raise BestiaryError(f"a mix of {sources} needs {sources} foreground parts, but there are {len(foreground)}")
    # another stream for every number of sources
    rng = np.random.default_rng([seed, sources])
    usable = _usable(codes, sources)
    return [
        _mix(
            codes, background, foreground, _unlike_pictures(codes, usable, foreground, sources, rng), rng, number, seed
        )
        for number in range(count)
    ]


def _mix(
    codes: Tensor,
    background: int,
    foreground: Sequence[int],
    pictures: Sequence[int],
    rng: np.random.Generator,
    number: int,
    seed: int,
) -> TestCase:
    """Deal the parts of `(N, M)` codes out among the pictures, evenly and at random, among those that show the part."""
    taken = [-1] * codes.shape[1]
    deck = [pictures[place % len(pictures)] for place in range(len(foreground))]
    # of several random assignments, keep the one in which most pictures show the parts they give
    hands = [rng.permutation(deck).tolist() for _ in range(_DEALS)]
    missing = [
        sum(bool(codes[picture, part] == ABSENT) for part, picture in zip(foreground, hand, strict=True))
        for hand in hands
    ]
    for part, picture in zip(foreground, hands[int(np.argmin(missing))], strict=True):
        # another of the pictures stands in where one does not show the part
        shown = [other for other in pictures if codes[other, part] != ABSENT]
        taken[part] = picture if picture in shown else next(iter(shown), -1)
    if background >= 0 and codes[pictures[0], background] != ABSENT:
        taken[background] = pictures[0]
    mixed = tuple(int(codes[source, part]) if source >= 0 else ABSENT for part, source in enumerate(taken))
    return TestCase(mixed, tuple(taken), _case_seed(seed, number))


def _unlike_pictures(
    codes: Tensor, usable: np.ndarray, foreground: Sequence[int], count: int, rng: np.random.Generator
) -> list[int]:
    """Pictures drawn so that no two share a kind, as far as that can be had."""
    # greedy over a random order of the codes (N, M)
    chosen: list[int] = []
    shuffled = rng.permutation(usable).tolist()
    for picture in shuffled:
        if len(chosen) == count:
            return chosen
        if all(not _share_a_kind(codes, picture, other, foreground) for other in chosen):
            chosen.append(picture)
    # too few unlike pictures: take any others
    rest = [picture for picture in shuffled if picture not in chosen]
    return (chosen + rest)[:count]


def _share_a_kind(codes: Tensor, one: int, other: int, foreground: Sequence[int]) -> bool:
    # codes (N, M): kinds of the same number are the same, unless both are absent
    same = (codes[one] == codes[other]) & (codes[one] != ABSENT)
    return bool(same[list(foreground)].any())


def _usable(codes: Tensor, needed: int) -> np.ndarray:
    # pictures that show anything at all, of codes (N, M)
    usable = torch.nonzero((codes != ABSENT).any(1)).flatten().numpy()
    if len(usable) < needed:
        raise BestiaryError(f"{needed} pictures with parts are needed, but the discovery holds {len(usable)}")
    return usable


def _case_seed(seed: int, number: int) -> int:
    return seed * 100_003 + number
