"""Text files from users: UTF-8 with or without byte order mark, of limited size."""

import sys
from pathlib import Path

from ..errors import BestiaryError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST_TEXT = 64 << 20
"""Maximum bytes of a list or a table of captions."""
LARGEST_TOML = 1 << 20
"""Maximum bytes of a recipe or a file of names."""
MOST_STEPS = 100_000_000
"""Limit for the parsing cost of dotted keys."""


def read_text(path: Path | str, largest: int = LARGEST_TEXT) -> str:
    """The text of a file, without byte order mark.

    Raises:
        BestiaryError: it cannot be read, is too large, or is not UTF-8.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= largest else b""
    # a path with NUL raises ValueError
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or "it is not a valid file name"
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
        BestiaryError: the text is not TOML, too long, or nested too deeply.
    """
    if len(text) > LARGEST_TOML:
        raise BestiaryError(f"it has {len(text):,} characters, the limit is {LARGEST_TOML:,}")
    # the cost of a dotted key grows with the square of its parts
    if sum(line.count(".") ** 2 for line in text.splitlines()) > MOST_STEPS:
        raise BestiaryError("it has dotted keys with too many parts: shorten them")
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError as fault:
        raise BestiaryError(str(fault)) from fault
    except (RecursionError, ValueError) as fault:
        raise BestiaryError("it is nested too deeply, or contains a number that is too long") from fault
