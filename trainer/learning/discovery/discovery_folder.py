"""The folder a discovery leaves behind: written in one stream, read by training and evaluation, edited all or nothing.

It holds `codebook.parts.safetensors`, `part_maps.safetensors` (labels `(N, h, w)` uint8, codes `(N, M)` int16),
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
            images_folder: where the pictures lie now; None takes the place where they were found.
            check_images: refuse where that folder or the first picture is gone.

        Raises:
            BestiaryError: no finished discovery, files that do not fit each other, or pictures that are gone.
        """
        # an edit that was interrupted is completed before anything is read
        folder = Path(folder)
        finish_edit(folder)
        report = read_report(folder)
        pictures = pictures_folder(folder, report) if images_folder is None else Path(images_folder)
        names = read_picture_names(folder)
        maps = read_maps(folder / PART_MAPS)
        check_count(folder, names, maps)
        if check_images and not (pictures / names[0]).is_file():
            raise BestiaryError(
                f"the pictures of {folder} were in {pictures} and {names[0]} is not there: say where they are now"
            )
        # three files of one folder must tell of the same pictures and the same parts
        codebook = PartCodebook.load(folder / CODEBOOK)
        check_maps(folder, maps, codebook)
        return cls(folder, pictures, [pictures / name for name in names], maps, codebook, report)


def read_report(folder: Path, needs: Sequence[str] = ()) -> DiscoveryReport:
    """The report of a finished discovery; `needs` names the entries that the caller reads.

    Raises:
        BestiaryError: the folder holds none, an unfinished one, or a damaged report.
    """
    path = Path(folder) / REPORT
    if not path.is_file():
        unfinished = (path.parent / "state" / "plan.json").is_file()
        cause = "an unfinished discovery: run the same `bestiary discover` again" if unfinished else "no discovery"
        raise BestiaryError(f"{folder} holds {cause}; give a folder that `bestiary discover` finished")
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
        # lines are split at line feeds alone: names may hold other separators
        return checked_names(text_of(path).split("\n")[:-1])


def pictures_folder(folder: Path, report: DiscoveryReport) -> Path:
    """Where the pictures are: where they were found, or at the same place relative to the discovery."""
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
    """Labels `(N, h, w)` uint8 alone, mapped from the file instead of read.

    Raises:
        BestiaryError: the file is missing or damaged.
    """
    with told_as_damaged(path):
        check_maps_header(read_header(path))
        with safe_open(path, "pt") as file:
            return file.get_tensor("labels")


def write_maps(path: Path, pieces: Iterable[PartMaps], num_images: int, grid: tuple[int, int], num_parts: int) -> None:
    """Write pieces of maps one after the other as one file, holding one piece in memory at a time.

    Raises:
        BestiaryError: the pieces do not add up to `num_images`, or the file cannot be written.
    """
    # codes before labels: 2-byte numbers need an even place
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
        # both tensors grow at once, each from its own place in the file
        for piece in pieces:
            file.seek(codes_at + done * num_parts * 2)
            file.write(_little_endian(piece.codes, "<i2"))
            file.seek(codes_at + code_bytes + done * grid[0] * grid[1])
            file.write(_little_endian(piece.labels, "u1"))
            done += len(piece.labels)
        if done != num_images:
            raise BestiaryError(f"{path}: {done} pictures were given for a file of {num_images}")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines of UTF-8 text atomically, one at a time."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)


def write_skipped(path: Path, skipped: Iterable[tuple[str, str]]) -> None:
    """Write the table of files that were passed over."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["path", "reason"])
    writer.writerows(skipped)
    write_text(path, buffer.getvalue())


def read_skipped(folder: Path) -> list[tuple[str, str]]:
    """Relative path and reason of the files that were passed over."""
    path = Path(folder) / SKIPPED
    if not path.is_file():
        return []
    with told_as_damaged(path):
        return checked_skipped(text_of(path))


def write_report(folder: Path, report: Mapping[str, object]) -> None:
    """Write the report; its presence marks a discovery as finished."""
    write_text(Path(folder) / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def read_lines_at(path: Path, rows: Iterable[int]) -> dict[int, str]:
    """Some lines of a text file by their place, reading one line at a time."""
    wanted = set(rows)
    with open(path, encoding="utf-8-sig") as file:
        return {row: line.rstrip("\n") for row, line in enumerate(file) if row in wanted}


@contextmanager
def editing(folder: Path) -> Iterator[Path]:
    """A staging folder whose files replace those of `folder` together when the block ends without a fault.

    An interruption at any point leaves either the old files or, after the next `finish_edit`, the new ones.

    Raises:
        BestiaryError: the folder cannot be written to.
    """
    staging = None
    try:
        # a new folder under a name that nobody could have taken: what leads elsewhere is never written to
        staging = Path(tempfile.mkdtemp(prefix=".edit.", dir=folder))
        yield staging
        # from here on the edit counts: whoever reads the folder next completes it
        os.replace(staging, folder / _STAGED)
        finish_edit(folder)
    except OSError as fault:
        raise BestiaryError(
            f"{folder} cannot be written to ({fault.strerror or fault}): nothing was changed there"
        ) from fault
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def finish_edit(folder: Path) -> None:
    """Complete an edit that was interrupted after it had been decided; does nothing elsewhere.

    Raises:
        BestiaryError: what lies there leads elsewhere or holds no plain files, so no edit has made it; nothing is moved.
    """
    staged = Path(folder) / _STAGED
    if not staged.is_dir() and not staged.is_symlink():
        return
    # links would let a discovery of others move files of its reader
    strange = [staged] if staged.is_symlink() else [path for path in staged.iterdir() if not _is_plain_file(path)]
    if strange:
        raise BestiaryError(
            f"{strange[0]} is a link or no file, which an interrupted edit never leaves: look at it and remove {staged}"
        )
    for path in sorted(staged.iterdir()):
        os.replace(path, Path(folder) / path.name)
    staged.rmdir()


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _little_endian(tensor: Tensor, kind: str) -> bytes:
    # any shape, for example (n, h, w); safetensors is little-endian on every machine
    return np.ascontiguousarray(tensor.numpy().astype(kind)).tobytes()
