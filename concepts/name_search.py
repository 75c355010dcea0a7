"""Search of parts, kinds, spectra, attributes and dictionaries by typed names, and lists of choices for error messages.

Exact matches take precedence over names with the same plain form (`plain_name`). A number is an index or an id only if the
whole text is a number (`typed_number`).
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key")

SHOWN_CHOICES = 12
"""Maximum names or numbers in one error message."""
LONGEST_SHOWN = 60
"""Maximum characters of one name in a message."""
LONGEST_COMPARED = 200
"""Maximum characters of a name to compare; the cost grows with the square of the length."""


def plain_name(text: str) -> str:
    """Normal form for comparisons of names: case, hyphens, underscores and runs of spaces make no difference."""
    return re.sub(r"[-_\s]+", " ", text).strip().casefold()


class NameIndex(Generic[Key]):
    """Index of names, so that the cost of a look-up does not depend on their number."""

    def __init__(self, named: Iterable[tuple[str, Key]]) -> None:
        """Pairs of a name and its key; names may repeat."""
        self._exact: dict[str, list[Key]] = {}
        self._plain: dict[str, list[Key]] = {}
        for name, key in named:
            self._exact.setdefault(name.strip(), []).append(key)
            self._plain.setdefault(plain_name(name), []).append(key)

    def find(self, typed: str) -> list[Key]:
        """Keys of the names spelt exactly as typed, otherwise of those with the same plain form, in the given order.

        "left wing" and "left_wing" have the same plain form, but are different names if both exist.
        """
        return self._exact.get(typed.strip()) or self._plain.get(plain_name(typed), [])


def same_names(typed: str, names: Iterable[str]) -> list[int]:
    """Positions of the names that match a typed one; see `NameIndex.find`."""
    return NameIndex((name, place) for place, name in enumerate(names)).find(typed)


def same_name(typed: str, names: Iterable[str]) -> str | None:
    """The first of the names that matches a typed one, in its own spelling; None if none does."""
    return next(iter(NameIndex((name, name) for name in names).find(typed)), None)


def typed_number(text: str) -> int | None:
    """The whole number that a text consists of, at most nine digits with or without a sign; None for any other text."""
    return int(text) if re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", text) else None


def shown_name(name: str) -> str:
    """A name for a message: quoted, shortened, control characters escaped."""
    return repr(name if len(name) <= LONGEST_SHOWN else name[: LONGEST_SHOWN - 1] + "…")


def choices_text(wanted: str, names: Sequence[str]) -> str:
    """Names to choose from, the closest to `wanted` first, at most a dozen."""
    by_plain: dict[str, list[str]] = {}
    for name in names:
        by_plain.setdefault(plain_name(name), []).append(name)
    # compare normal forms, show the original spelling
    close = difflib.get_close_matches(plain_name(wanted[:LONGEST_COMPARED]), list(by_plain), n=5, cutoff=0.5)
    ordered = [name for plain in close for name in by_plain[plain]]
    ordered += [name for name in names if plain_name(name) not in close]
    rest = len(ordered) - SHOWN_CHOICES
    listed = ", ".join(shown_name(name) for name in ordered[:SHOWN_CHOICES])
    return f"{listed} and {rest} more" if rest > 0 else listed


def number_ranges(numbers: Iterable[int]) -> str:
    """Whole numbers as ranges, "0..3, 7, 9..12"; at most a dozen ranges."""
    runs: list[list[int]] = []
    # a consecutive number extends the last run
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    listed = ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in runs[:SHOWN_CHOICES])
    return f"{listed}, ..." if len(runs) > SHOWN_CHOICES else listed
