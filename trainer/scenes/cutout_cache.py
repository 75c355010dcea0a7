"""Cut-outs kept on disk by the content they were made of, so that no picture is cut twice."""

import functools
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...concepts.errors import BestiaryError
from ...concepts.files.atomic_file import remove_leftovers, write_bytes, write_text
from ...scenes.set_files import png_bytes, read_png, sha256_of

FOLDER = ".cutouts"
"""Within the folder of a result: hidden, so that it is never read as a folder of pictures."""
_IN_MEMORY = 8
"""Decoded cut-outs; each has up to 17 MB."""


@dataclass(frozen=True)
class CutRecord:
    """What became of one picture."""

    key: str
    """Hash of the picture, its mask or the weights, and the options."""
    way: str = ""
    """Source of the mask."""
    faults: tuple[str, ...] = ()
    """Why the mask was refused; empty where there is a cut-out."""
    warning: str = ""
    png: str = ""
    """sha256 of the cut-out's file."""
    parts: str = ""
    """sha256 of the file of part labels."""


class CutoutCache:
    """A folder with one record for each picture, and a PNG for each cut-out."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        remove_leftovers(self.folder)
        self._read = functools.lru_cache(maxsize=_IN_MEMORY)(self._pixels)

    def find(self, key: str) -> CutRecord | None:
        """The record of a key; None where there is none, or its files are not whole."""
        try:
            content = json.loads((self.folder / f"{key}.json").read_text("utf-8"))
            record = CutRecord(**{**content, "faults": tuple(content["faults"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None
        for name, sha in ((self.path(key), record.png), (self._parts_path(key), record.parts)):
            with suppress(OSError):
                if not sha or sha256_of(name.read_bytes()) == sha:
                    continue
            return None
        return record if record.key == key and (record.png or record.faults) else None

    def keep(
        self, record: CutRecord, cutout: NDArray[np.uint8] | None, parts: NDArray[np.uint8] | None = None
    ) -> CutRecord:
        """Write a cut-out `(h, w, 4)` and its part labels `(h, w)`, then the record; returns the record with the hashes.

        Raises:
            BestiaryError: the folder cannot be written to.
        """
        hashes = {"png": "", "parts": ""}
        for name, pixels, path in (
            ("png", cutout, self.path(record.key)),
            ("parts", parts, self._parts_path(record.key)),
        ):
            if pixels is not None:
                content = png_bytes(pixels)
                write_bytes(path, content)
                hashes[name] = sha256_of(content)
        kept = CutRecord(**{**asdict(record), "faults": record.faults, **hashes})
        write_text(self.folder / f"{record.key}.json", json.dumps(asdict(kept), ensure_ascii=False) + "\n")
        return kept

    def pixels(self, key: str) -> NDArray[np.uint8]:
        """A cut-out `(h, w, 4)`.

        Raises:
            BestiaryError: its file cannot be read.
        """
        return self._read(self.path(key))

    def parts(self, key: str) -> NDArray[np.uint8]:
        """Part labels `(h, w)` of a cut-out."""
        return self._read(self._parts_path(key))

    def path(self, key: str) -> Path:
        """File of a cut-out."""
        return self.folder / f"{key}.png"

    def remove_all_but(self, keys: set[str]) -> None:
        """Remove the files of other keys."""
        with suppress(OSError):
            for path in self.folder.iterdir():
                if path.name.split(".")[0] not in keys and path.suffix in (".png", ".json"):
                    path.unlink(missing_ok=True)

    def _parts_path(self, key: str) -> Path:
        return self.folder / f"{key}.parts.png"

    @staticmethod
    def _pixels(path: Path) -> NDArray[np.uint8]:
        pixels = read_png(path)
        if pixels.ndim == 3 and pixels.shape[2] != 4:
            raise BestiaryError(f"{path} is not a cut-out: delete it, and the picture is cut again")
        return pixels
