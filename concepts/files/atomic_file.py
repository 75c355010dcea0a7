"""Files that appear whole or not at all: written under a temporary name in the same folder, then renamed."""

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
    """A temporary path beside `path`, which takes its place when the block ends without a fault and is on the disk.

    Threads and processes may write one path at the same time: one of them is the last, and its file is whole.

    Raises:
        BestiaryError: the folder cannot be written to or the disk is full, or the block could not read another file; an earlier
            file at `path` is untouched.
    """
    # beside the target and of this call alone: a rename within one folder is atomic on every system
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{next(_COUNT)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # a rename that reaches the disk before the content would leave an empty file after a power cut
        _flush(temporary)
        os.replace(temporary, path)
    except OSError as fault:
        read = fault.filename is not None and not _lies_at(fault, path, temporary)
        if read:
            raise BestiaryError(
                f"could not read {fault.filename}: {fault.strerror or fault}; {path} was not written"
            ) from fault
        # a picture that Pillow cannot read is an OSError without a number
        if fault.errno is None:
            raise
        remedy = "Free some disk space" if fault.errno in _FULL else "Look at that place and its permissions,"
        raise BestiaryError(
            f"could not write {path}: {fault.strerror or fault}; the existing file is unchanged. {remedy} or choose another --out folder"
        ) from fault
    # after a rename nothing is left to remove; after a fault no half file stays behind
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _lies_at(fault: OSError, path: Path, temporary: Path) -> bool:
    """Whether a fault is one of the file that is written, or of the folders above it."""
    named = Path(os.fsdecode(fault.filename)) if isinstance(fault.filename, str | bytes | os.PathLike) else temporary
    return named in (path, temporary, *path.parents)


def _flush(temporary: Path) -> None:
    """Bring a file to the disk."""
    if not temporary.is_file():  # the block wrote nothing, or a folder: the rename will tell
        return
    descriptor = os.open(temporary, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> int:
    """Remove temporary files directly in `folder` whose process has ended; returns their number.

    For whoever owns the folder, when work in it begins.
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
    """Whether a process of this number runs on this machine."""
    if process == os.getpid():
        return True
    if os.name == "nt":
        return _runs_on_windows(process)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's process, or no number of one
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
        return kernel.GetLastError() == 5  # ERROR_ACCESS_DENIED: it runs, for somebody else
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
