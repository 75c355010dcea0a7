"""One program at a time in a folder: others wait, and a killed one holds nothing up."""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...concepts.errors import BestiaryError

WAIT = 60.0
"""Seconds after which waiting is given up."""


@contextmanager
def alone_in(folder: Path, wait: float = WAIT) -> Iterator[None]:
    """Hold a folder while the block runs; the system lets go of it when the process ends, however it ends.

    Where the file system knows no locks, the block runs without one.

    Args:
        wait: seconds to wait for another program.

    Raises:
        BestiaryError: another program still holds it after that time.
    """
    held = _open(Path(folder))
    try:
        deadline = time.monotonic() + wait
        while not _taken(held):
            if time.monotonic() > deadline:
                raise BestiaryError(
                    f"{folder} is being changed by another program: try again when it is done, or end it"
                )
            time.sleep(0.05)
        yield
    finally:
        os.close(held)


def _open(folder: Path) -> int:
    # the folder itself can be held, so no file is left in it; Windows holds only files
    if os.name != "nt":
        return os.open(folder, os.O_RDONLY)
    name = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return os.open(Path(tempfile.gettempdir()) / f"bestiary-{name}.lock", os.O_RDWR | os.O_CREAT)


def _taken(held: int) -> bool:
    """Try to hold an open file; True also where this file system has no locks."""
    if os.name == "nt":
        import msvcrt

        try:
            msvcrt.locking(held, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
