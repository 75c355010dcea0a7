"""The result folder of a discovery: written as a stream, read by training and evaluation, edited atomically.

It contains `codebook.parts.safetensors`, `part_maps.safetensors` (labels `(N, h, w)` uint8, codes `(N, M)` int16),
`images.txt` and `captions.txt` (one line per picture, same order), `skipped.csv`, `report.json` and `index.html`.
"""

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from torch import Tensor

from ....concepts.errors import BestiaryError
from ....concepts.files.atomic_file import replacing, write_text
from ....concepts.files.concept_file import read_header, read_tensors
from ....concepts.part_map.part_codebook import PartCodebook
from ....concepts.part_map.part_map import PartMaps
from .discovery_report import DiscoveryReport
from .discovery_schema import (
    check_count,
    check_maps,
    check_maps_header,
    checked_names,
    checked_report,
    checked_skipped,
    json_of,
    text_of,
    told_as_damaged,
)

CODEBOOK = "codebook.parts.safetensors"
PART_MAPS = "part_maps.safetensors"
IMAGES, CAPTIONS = "images.txt", "captions.txt"
SKIPPED, REPORT, PAGE = "skipped.csv", "report.json", "index.html"
_STAGED = ".edit-ready"


@dataclass(frozen=True)
class Discovery:
    """The parts found in N pictures."""

    folder: Path
    images_folder: Path
    image_paths: list[Path]
    """N picture files, in the order of the maps."""
    maps: PartMaps
    codebook: PartCodebook
    report: DiscoveryReport

    @classmethod
    def load(cls, folder: Path, images_folder: Path | None = None, *, check_images: bool = True) -> "Discovery":
        """Read a finished discovery.

        Args:
            images_folder: current folder of the pictures; None uses the recorded one.
            check_images: raise an error if that folder or the first picture is missing.

        Raises:
            BestiaryError: no finished discovery, inconsistent files, or missing pictures.
        """
        # complete an interrupted edit first: its files are only partly in place
        folder = Path(folder)
        finish_edit(folder)
        report = read_report(folder)
        pictures = pictures_folder(folder, report) if images_folder is None else Path(images_folder)
        names = read_picture_names(folder)
        maps = read_maps(folder / PART_MAPS)
        check_count(folder, names, maps)
        if check_images and not (pictures / names[0]).is_file():
            raise BestiaryError(
                f"the pictures of {folder} were in {pictures}, but {names[0]} is missing there: give their current folder"
            )
        # files copied from different discoveries would be inconsistent
        codebook = PartCodebook.load(folder / CODEBOOK)
        check_maps(folder, maps, codebook)
        return cls(folder, pictures, [pictures / name for name in names], maps, codebook, report)


def read_report(folder: Path, needs: Sequence[str] = ()) -> DiscoveryReport:
    """The report of a finished discovery; `needs` lists the entries that the caller reads.

    Raises:
        BestiaryError: the folder contains no discovery, an unfinished one, or a damaged report.
    """
    path = Path(folder) / REPORT
    if not path.is_file():
        unfinished = (path.parent / "state" / "plan.json").is_file()
        cause = "an unfinished discovery: run the same `bestiary discover` again" if unfinished else "no discovery"
        raise BestiaryError(f"{folder} contains {cause}; give the folder of a finished `bestiary discover`")
    # a report is written last, so an unreadable one is damaged, not unfinished
    with told_as_damaged(path):
        return checked_report(json_of(text_of(path)), ("images_folder", *needs))


def read_picture_names(folder: Path) -> list[str]:
    """Paths of the pictures of a discovery within their folder, in the order of the maps.

    Raises:
        BestiaryError: the list is missing or damaged.
    """
    path = Path(folder) / IMAGES
    with told_as_damaged(path):
        # split at line feeds only: splitlines would also split at other separators in names
        return checked_names(text_of(path).split("\n")[:-1])


def pictures_folder(folder: Path, report: DiscoveryReport) -> Path:
    """Folder of the pictures: the recorded one, or the one at the same path relative to the discovery."""
    recorded = Path(report["images_folder"])
    beside = (Path(folder) / report.get("images_folder_relative", ".")).resolve()
    return recorded if recorded.is_dir() or not beside.is_dir() else beside


def read_maps(path: Path) -> PartMaps:
    """Labels and codes of a discovery.

    Raises:
        BestiaryError: the file is missing or damaged.
    """
    with told_as_damaged(path):
        check_maps_header(read_header(path))
        tensors = read_tensors(path)
    return PartMaps(tensors["labels"], tensors["codes"].long())  # (N, h, w), (N, M)


def read_labels(path: Path) -> Tensor:
    """Labels `(N, h, w)` uint8 only, memory-mapped from the file.

    Raises:
        BestiaryError: the file is missing or damaged.
    """
    with told_as_damaged(path):
        check_maps_header(read_header(path))
        with safe_open(path, "pt") as file:
            return file.get_tensor("labels")


def write_maps(path: Path, pieces: Iterable[PartMaps], num_images: int, grid: tuple[int, int], num_parts: int) -> None:
    """Write pieces of maps to one file, with one piece in memory at a time.

    Raises:
        BestiaryError: the pieces do not add up to `num_images`, or the file cannot be written.
    """
    # codes before labels: 2-byte numbers need an even offset
    label_bytes, code_bytes = num_images * grid[0] * grid[1], num_images * num_parts * 2
    header = json.dumps(
        {
            "labels": {
                "dtype": "U8",
                "shape": [num_images, *grid],
                "data_offsets": [code_bytes, code_bytes + label_bytes],
            },
            "codes": {"dtype": "I16", "shape": [num_images, num_parts], "data_offsets": [0, code_bytes]},
        }
    ).encode()
    # readers expect the tensors to begin at a multiple of 8
    header += b" " * (-len(header) % 8)
    codes_at = 8 + len(header)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        done = 0
        # both tensors are written piece by piece, each at its own offset in the file
        for piece in pieces:
            file.seek(codes_at + done * num_parts * 2)
            file.write(_little_endian(piece.codes, "<i2"))
            file.seek(codes_at + code_bytes + done * grid[0] * grid[1])
            file.write(_little_endian(piece.labels, "u1"))
            done += len(piece.labels)
        if done != num_images:
            raise BestiaryError(f"{path}: got {done} pictures for a file of {num_images}")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines of UTF-8 text atomically, one at a time."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)


def write_skipped(path: Path, skipped: Iterable[tuple[str, str]]) -> None:
    """Write the table of skipped files."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["path", "reason"])
    writer.writerows(skipped)
    write_text(path, buffer.getvalue())


def read_skipped(folder: Path) -> list[tuple[str, str]]:
    """Relative path and reason of the skipped files."""
    path = Path(folder) / SKIPPED
    if not path.is_file():
        return []
    with told_as_damaged(path):
        return checked_skipped(text_of(path))


def write_report(folder: Path, report: Mapping[str, object]) -> None:
    """Write the report; its presence marks a discovery as finished."""
    write_text(Path(folder) / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def read_lines_at(path: Path, rows: Iterable[int]) -> dict[int, str]:
    """The lines of a text file with these indices, reading one line at a time."""
    wanted = set(rows)
    with open(path, encoding="utf-8-sig") as file:
        return {row: line.rstrip("\n") for row, line in enumerate(file) if row in wanted}


@contextmanager
def editing(folder: Path) -> Iterator[Path]:
    """A staging folder whose files replace those of `folder` together when the block ends without an error.

    An interruption at any point leaves either the old files or, after the next `finish_edit`, the new ones.

    Raises:
        BestiaryError: the folder cannot be written to.
    """
    staging = None
    try:
        # mkdtemp creates a new folder, so no link planted in advance can redirect the writes
        staging = Path(tempfile.mkdtemp(prefix=".edit.", dir=folder))
        yield staging
        # after this rename the edit is committed: the next reader completes it if this process dies
        os.replace(staging, folder / _STAGED)
        finish_edit(folder)
    except OSError as fault:
        raise BestiaryError(
            f"{folder} cannot be written to ({fault.strerror or fault}): no file was changed; check its permissions"
        ) from fault
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def finish_edit(folder: Path) -> None:
    """Complete an edit that was interrupted after its commit; does nothing if there is none.

    Raises:
        BestiaryError: the staging folder is or contains a link or a folder, so no edit made it; nothing is moved.
    """
    staged = Path(folder) / _STAGED
    if not staged.is_dir() and not staged.is_symlink():
        return
    # security: links in a downloaded discovery could move files of the user
    strange = [staged] if staged.is_symlink() else [path for path in staged.iterdir() if not _is_plain_file(path)]
    if strange:
        raise BestiaryError(
            f"{strange[0]} is a link or not a file, so no interrupted edit left it: inspect it and remove {staged}"
        )
    for path in sorted(staged.iterdir()):
        os.replace(path, Path(folder) / path.name)
    staged.rmdir()


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _little_endian(tensor: Tensor, kind: str) -> bytes:
    # any shape, for example (n, h, w); safetensors is little-endian on every machine
    return np.ascontiguousarray(tensor.numpy().astype(kind)).tobytes()
