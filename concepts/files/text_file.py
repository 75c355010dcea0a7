"""Text files that people write: UTF-8 with or without the mark of Windows editors, of a size that a person could write."""

import sys
from pathlib import Path

from ..errors import BestiaryError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST_TEXT = 64 << 20
"""Bytes of a list or a table of captions."""
LARGEST_TOML = 1 << 20
"""Bytes of a recipe or a file of names."""
MOST_STEPS = 100_000_000
"""Bound of the work that dotted names may cost."""


def read_text(path: Path | str, largest: int = LARGEST_TEXT) -> str:
    """The text of a file, without the mark that some editors put before it.

    Raises:
        BestiaryError: it cannot be read, is too large, or is no UTF-8.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= largest else b""
    # a name with NUL is no path at all
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or "that is no name of a file"
        raise BestiaryError(f"could not read {str(path)!r}: {reason}") from fault
    if size > largest:
        raise BestiaryError(f"{path} has {size:,} bytes; the limit is {largest:,}: choose another file")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as fault:
        raise BestiaryError(
            f"{path} is not UTF-8 text: {fault.reason} at byte {fault.start}; save it as UTF-8 in the editor"
        ) from fault


def parse_toml(text: str) -> dict[str, object]:
    """Nested values of TOML text.

    Raises:
        BestiaryError: it is no TOML, too long, or nested too deeply.
    """
    if len(text) > LARGEST_TOML:
        raise BestiaryError(f"it has {len(text):,} characters, the limit is {LARGEST_TOML:,}")
    # names of many parts cost the square of their length
    if sum(line.count(".") ** 2 for line in text.splitlines()) > MOST_STEPS:
        raise BestiaryError("it has keys of too many parts")
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError as fault:
        raise BestiaryError(str(fault)) from fault
    except (RecursionError, ValueError) as fault:
        raise BestiaryError("it is nested too deeply, or holds a number that is too long") from fault
