"""Judges whose weights may be missing: a usual one is left out with what to do, one that was named is an error."""

from collections.abc import Callable
from typing import TypeVar

from ...concepts.errors import BestiaryError

Judge = TypeVar("Judge")


def load_or_leave_out(columns: str, named: object, load: Callable[[], Judge], left_out: dict[str, str]) -> Judge | None:
    """The judge that `load` gives; None if it cannot, and why under its `columns` in `left_out`.

    Raises:
        BestiaryError: it cannot, and the user `named` the weights (is not None).
    """
    try:
        return load()
    except BestiaryError as fault:
        if named is not None:
            raise
        left_out[columns] = str(fault)
        return None
