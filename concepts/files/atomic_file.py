"""Atomic writing of files: under a temporary name in the same folder, then renamed."""

import errno
import itertools
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import BestiaryError

_COUNT = itertools.count()
_TEMPORARY = re.compile(r"\..+\.(\d+)(?:-\d+)?\.part")
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which is flushed and renamed to it when the block ends without an error.

    Threads and processes may write the same path concurrently: the last one wins, with a complete file.

    Raises:
        BestiaryError: the folder cannot be written to or the disk is full, or the block could not read another file; an
            existing file at `path` is unchanged.
    """
    # in the same folder, where a rename is atomic on every system, and unique per call
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{next(_COUNT)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # flush first: a rename that reaches the disk before the content would leave an empty file after a power failure
        _flush(temporary)
        os.replace(temporary, path)
    except OSError as fault:
        read = fault.filename is not None and not _lies_at(fault, path, temporary)
        if read:
            raise BestiaryError(
                f"could not read {fault.filename}: {fault.strerror or fault}; {path} was not written"
            ) from fault
        # Pillow raises OSError without errno for unreadable pictures: not an error of writing
        if fault.errno is None:
            raise
        remedy = "Free some disk space" if fault.errno in _FULL else "Check that folder and its permissions,"
        raise BestiaryError(
            f"could not write {path}: {fault.strerror or fault}; the existing file is unchanged. {remedy} or choose another --out folder"
        ) from fault
    # removes the partial file after an error; after a rename there is nothing left
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _lies_at(fault: OSError, path: Path, temporary: Path) -> bool:
    """True if an error concerns the written file or one of its parent folders."""
    named = Path(os.fsdecode(fault.filename)) if isinstance(fault.filename, str | bytes | os.PathLike) else temporary
    return named in (path, temporary, *path.parents)


def _flush(temporary: Path) -> None:
    """Flush a file to the disk."""
    if not temporary.is_file():  # the block wrote nothing, or a folder: the rename will raise an error
        return
    descriptor = os.open(temporary, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> int:
    """Remove temporary files directly in `folder` whose process has ended; returns their number.

    To be called by the owner of the folder before it starts to work there.
    """
    count = 0
    with suppress(OSError):
        for entry in Path(folder).iterdir():
            match = _TEMPORARY.fullmatch(entry.name)
            if match and entry.is_file() and not is_running(int(match[1])):
                with suppress(OSError):
                    entry.unlink()
                    count += 1
    return count


def is_running(process: int) -> bool:
    """True if a process with this id is running on this machine."""
    if process == os.getpid():
        return True
    if os.name == "nt":
        return _runs_on_windows(process)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process, or not a valid process id
        return process < 2**31
    return True


def _runs_on_windows(process: int) -> bool:
    if sys.platform != "win32":
        return False  # the library below exists on Windows only
    import ctypes

    query, still_active = 0x1000, 259  # PROCESS_QUERY_LIMITED_INFORMATION, STILL_ACTIVE
    kernel = ctypes.windll.kernel32
    handle = kernel.OpenProcess(query, False, process)
    if not handle:
        return kernel.GetLastError() == 5  # ERROR_ACCESS_DENIED: it is running for another user
    try:
        code = ctypes.c_ulong()
        return not kernel.GetExitCodeProcess(handle, ctypes.byref(code)) or code.value == still_active
    finally:
        kernel.CloseHandle(handle)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def check_writable(folder: Path) -> None:
    """Check before long work that files can be created in `folder`, which may not exist yet; leaves no files.

    Raises:
        BestiaryError: files cannot be created there.
    """
    # test the nearest existing parent, without creating the folder itself
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
