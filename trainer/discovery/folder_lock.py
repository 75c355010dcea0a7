"""Folder lock: one program at a time, others wait; the lock of a killed program is released by the system."""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...concepts.errors import BestiaryError

WAIT = 60.0
"""Seconds to wait for the lock."""


@contextmanager
def alone_in(folder: Path, wait: float = WAIT) -> Iterator[None]:
    """Lock a folder while the block runs; the system releases the lock when the process ends, however it ends.

    On a file system without locks the block runs unlocked.

    Args:
        wait: seconds to wait for another program.

    Raises:
        BestiaryError: another program still holds the lock after that time.
    """
    held = _open(Path(folder))
    try:
        deadline = time.monotonic() + wait
        while not _taken(held):
            if time.monotonic() > deadline:
                raise BestiaryError(
                    f"{folder} is being changed by another program: try again when it is done, or stop that program"
                )
            time.sleep(0.05)
        yield
    finally:
        # closing also releases the lock
        os.close(held)


def _open(folder: Path) -> int:
    # POSIX locks the folder itself, which leaves no lock file behind; Windows can lock only files
    if os.name != "nt":
        return os.open(folder, os.O_RDONLY)
    name = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return os.open(Path(tempfile.gettempdir()) / f"bestiary-{name}.lock", os.O_RDWR | os.O_CREAT)


def _taken(held: int) -> bool:
    """Try to lock an open file; True also if the file system has no locks."""
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
    # some network file systems do not support locks
    except OSError:
        return True
    return True
