"""Files that appear whole or not at all: written under a temporary name in the same folder, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import BestiaryError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends without a fault.

    Raises:
        BestiaryError: the folder cannot be written to or the disk is full; an earlier file at `path` is untouched.
    """
    # beside the target and of this process alone: a rename within one folder is atomic on every system
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as fault:
        raise BestiaryError(
            f"could not write {path}: {fault.strerror or fault}; nothing was changed there. "
            "Free some disk space or choose another --out folder"
        ) from fault
    # after a rename nothing is left to remove; after a fault no half file stays behind
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def check_writable(folder: Path) -> None:
    """Make sure, before long work, that files can be made in `folder`, which need not exist yet; leaves no trace.

    Raises:
        BestiaryError: they cannot.
    """
    # the folder need not exist: what counts is the nearest one above it that does
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    probe = place / f".writable.{os.getpid()}.part"
    try:
        probe.open("xb").close()
        probe.unlink()
    except OSError as fault:
        raise BestiaryError(
            f"cannot write to {folder}: {fault.strerror or fault}; choose another --out folder"
        ) from fault
