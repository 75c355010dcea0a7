"""Finding a name among many as people type it, and saying what there is when it is not found."""

import difflib
import re
from collections.abc import Iterable, Sequence

SHOWN_CHOICES = 12
"""Names or numbers that one error message lists."""
LONGEST_SHOWN = 60
"""Characters of one name in a message."""
LONGEST_COMPARED = 200
"""Characters of a name that are compared with others; comparing costs the square of the length."""


def plain_name(text: str) -> str:
    """The form in which names are compared: case, hyphens, underscores and runs of spaces make no difference."""
    return re.sub(r"[-_\s]+", " ", text).strip().casefold()


def same_names(wanted: str, names: Sequence[str]) -> list[int]:
    """Places of the names that a typed one means: those spelt exactly so, else those that are alike in their plain form.

    "left wing" and "left_wing" are alike, and still two names where both are there.
    """
    exact = [place for place, name in enumerate(names) if name == wanted.strip()]
    return exact or [place for place, name in enumerate(names) if plain_name(name) == plain_name(wanted)]


def shown_name(name: str) -> str:
    """A name as it stands in a message: quoted, shortened, control characters escaped."""
    return repr(name if len(name) <= LONGEST_SHOWN else name[: LONGEST_SHOWN - 1] + "…")


def choices_text(wanted: str, names: Sequence[str]) -> str:
    """Names to choose from, the closest to `wanted` first, at most a dozen."""
    by_plain: dict[str, list[str]] = {}
    for name in names:
        by_plain.setdefault(plain_name(name), []).append(name)
    # compared in the plain form, shown as they are spelt
    close = difflib.get_close_matches(plain_name(wanted[:LONGEST_COMPARED]), list(by_plain), n=5, cutoff=0.5)
    ordered = [name for plain in close for name in by_plain[plain]]
    ordered += [name for name in names if plain_name(name) not in close]
    rest = len(ordered) - SHOWN_CHOICES
    listed = ", ".join(shown_name(name) for name in ordered[:SHOWN_CHOICES])
    return f"{listed} and {rest} more" if rest > 0 else listed


def number_ranges(numbers: Iterable[int]) -> str:
    """Whole numbers as ranges, "0..3, 7, 9..12"; at most a dozen ranges."""
    runs: list[list[int]] = []
    # a number next to the last run makes that run longer
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    listed = ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in runs[:SHOWN_CHOICES])
    return f"{listed}, ..." if len(runs) > SHOWN_CHOICES else listed
