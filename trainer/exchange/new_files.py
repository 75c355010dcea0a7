"""Files that join those of a folder together or not at all, and replace none of another content."""

import filecmp
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...concepts.errors import BestiaryError


@contextmanager
def added_together(folder: Path) -> Iterator[Path]:
    """An empty folder whose files move into `folder` when the block ends without a fault.

    Raises:
        BestiaryError: a file of the same name and another content is there already, or the folder cannot be written to;
            nothing was changed there then.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    staging = folder / f".new.{os.getpid()}"
    try:
        staging.mkdir(parents=True)
        yield staging
        files = sorted(path.relative_to(staging) for path in staging.rglob("*") if path.is_file())
        for name in files:
            # written again with the same content, a file stays the same
            if (folder / name).exists() and not _same(staging / name, folder / name):
                raise BestiaryError(f"{folder / name} is there already and is another file: choose another --out")
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / name, folder / name)
    except OSError as fault:
        raise BestiaryError(
            f"cannot write to {folder}: {fault.strerror or fault}; choose another --out folder"
        ) from fault
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        # after a fault no empty folder stays behind
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _same(first: Path, second: Path) -> bool:
    return second.is_file() and filecmp.cmp(first, second, shallow=False)
