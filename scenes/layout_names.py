"""Which subject a name in somebody else's layout means: found by the name, never by its place in a list."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..concepts.name_search import plain_name, shown_name
from .subject import Subject

_LONGEST_NAME = 200
"""Characters of a name that are compared."""
_ARTICLES = {"a", "an", "the", "one"}


class MatchedNames(NamedTuple):
    """Whose names these are."""

    places: dict[int, int]
    """Place of a name -> place of its subject, each subject at most once."""
    notes: tuple[str, ...]
    """What was left out or had to be guessed, in words."""


def match_names(names: Sequence[str], subjects: Sequence[Subject]) -> MatchedNames:
    """Find the subject of every name, in this order: spelt alike; case, hyphens and underscores aside; what captions call it;
    all words of one within the other, in singular or plural, if that leaves one subject.

    A name that means several subjects alike (`a cat`, where captions call two of them so) goes to the first that is free.
    Names of no subject, and of one that was named before, are left out.
    """
    taken: dict[int, int] = {}
    places: dict[int, int] = {}
    notes: list[str] = []
    shorter = [name[:_LONGEST_NAME] for name in names]
    # all names through the strictest rule before any goes through the next: a vague name never takes an exact one's subject
    left = list(range(len(names)))
    for same in _RULES:
        still = []
        for place in left:
            meant = [number for number, subject in enumerate(subjects) if same(shorter[place], subject)]
            free = [number for number in meant if number not in taken]
            if same is _share_words and len(free) > 1:
                still.append(place)
            elif free:
                taken[free[0]] = places[place] = free[0]
                if len(meant) > 1:
                    notes.append(
                        f"{shown_name(names[place])} could be several subjects: taken as {shown_name(subjects[free[0]].name)}"
                    )
            elif meant:
                notes.append(f"{shown_name(names[place])} again, for a subject that has its box: left out")
            else:
                still.append(place)
        left = still
    notes += [f"{shown_name(names[place])} is not a subject of the scene: left out" for place in left]
    return MatchedNames(places, tuple(notes))


def _spelt_alike(name: str, subject: Subject) -> bool:
    return name.strip() == subject.name


def _plainly_alike(name: str, subject: Subject) -> bool:
    return plain_name(name) == plain_name(subject.name)


def _called_alike(name: str, subject: Subject) -> bool:
    # `cat` is what `cat 1` and `cat 2` are called, and `cat 3` is neither
    numberless = re.sub(r"\d+", " ", subject.name)
    return bool(_words(name)) and _words(name) in (_words(subject.name), _words(numberless), _words(subject.called))


def _share_words(name: str, subject: Subject) -> bool:
    asked = set(_words(name))
    for text in (subject.name, subject.called):
        own = set(_words(text))
        if asked and own and (asked <= own or own <= asked):
            return True
    return False


@functools.lru_cache(maxsize=4096)
def _words(text: str) -> tuple[str, ...]:
    """Words in lower case without articles, mentions and plural endings."""
    plain = re.sub(r"<[^<>]*>", " ", text[:_LONGEST_NAME]).casefold()
    words = [word for word in re.findall(r"[^\W_]+", plain) if word not in _ARTICLES]
    return tuple(word.removesuffix("s") if len(word) > 3 else word for word in words)


_RULES: tuple[Callable[[str, Subject], bool], ...] = (_spelt_alike, _plainly_alike, _called_alike, _share_words)
