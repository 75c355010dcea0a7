"""Validation of the files of a discovery, individually and against each other, when they are read and before an edit.

Letters: N pictures, M parts, (h, w) patch grid.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import cast

from ....concepts.errors import BestiaryError
from ....concepts.files.concept_file import Header
from ....concepts.files.file_schema import (
    broken,
    checked_json,
    checked_list,
    checked_number,
    checked_numbered,
    checked_table,
    checked_text,
    checked_whole,
)
from ....concepts.part_map.part_codebook import PartCodebook
from ....concepts.part_map.part_map import PartMaps
from .discovery_report import DiscoveryReport, PartEntry

LARGEST_LIST = 1 << 30
"""Maximum bytes of a list of pictures, or of a report."""
_LONGEST_PATH = 32_768


@contextmanager
def told_as_damaged(path: Path) -> Iterator[None]:
    """Context that turns errors about a file of a discovery into messages with its path and the remedy."""
    try:
        yield
    except BestiaryError as fault:
        reason = str(fault).removeprefix(f"{path} ").removesuffix("; download or write it again")
        raise BestiaryError(f"{path} is damaged ({reason}): run the discovery again with --restart") from fault
    except OSError as fault:
        raise BestiaryError(
            f"{path} cannot be read ({fault.strerror or 'it does not exist'}): run the discovery again with --restart"
        ) from fault


def text_of(path: Path) -> str:
    """A file's text, without a byte order mark.

    Raises:
        BestiaryError: it is not UTF-8, or too long.
        OSError: it cannot be read.
    """
    if path.stat().st_size > LARGEST_LIST:
        raise BestiaryError(f"it is larger than {LARGEST_LIST:,} bytes")
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as fault:
        raise BestiaryError(f"it is not UTF-8 text: {fault.reason} at byte {fault.start}") from fault


def json_of(text: str) -> object:
    """The value of JSON text.

    Raises:
        BestiaryError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as fault:
        raise BestiaryError("it is nested too deeply") from fault
    except ValueError as fault:
        line = getattr(fault, "lineno", None)
        raise BestiaryError("it is not valid JSON" + (f", line {line}" if line else "")) from fault


def checked_names(names: Sequence[str]) -> list[str]:
    """Paths of pictures within their folder.

    Raises:
        BestiaryError: the list is empty, or a path is empty, absolute or points outside the folder.
    """
    if not names:
        raise BestiaryError("it lists no pictures")
    for line, name in enumerate(names, 1):
        checked_text(name, f"line {line}", _LONGEST_PATH)
        # both flavours: the file may have been written on another operating system
        outside = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
        if outside or ".." in PurePosixPath(name).parts:
            raise BestiaryError(f"line {line} is {name[:80]!r}, which points outside the picture folder")
    return list(names)


def checked_skipped(text: str) -> list[tuple[str, str]]:
    """Path and reason of the skipped files.

    Raises:
        BestiaryError: the table has other columns, or a line does not have two columns.
    """
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=False))
    except csv.Error as fault:
        raise BestiaryError("it is not a table of paths and reasons") from fault
    rows = [row for row in rows if row]
    if not rows or rows[0] != ["path", "reason"]:
        raise BestiaryError("its first line is not 'path,reason'")
    for line, row in enumerate(rows[1:], 2):
        if len(row) != 2:
            raise BestiaryError(f"line {line} has {len(row)} columns, expected a path and a reason")
    return [(path, reason) for path, reason in rows[1:]]


def checked_report(report: object, needs: Sequence[str]) -> DiscoveryReport:
    """A report after checking types and consistency of the entries it has.

    Args:
        report: the JSON value.
        needs: required entries.

    Raises:
        BestiaryError: names the first invalid entry and the expected value.
    """
    entries = checked_table(report, "the report")
    lacking = [name for name in needs if name not in entries]
    if lacking:
        raise BestiaryError(f"it lacks {', '.join(lacking)}")
    checked_json(entries, "the report")
    for name in ("images_folder", "images_folder_relative"):
        if name in entries:
            checked_text(entries[name], name, _LONGEST_PATH)
    # the number of pictures bounds every picture index that follows
    images = checked_whole(entries.get("images", 1), "images", 1)
    checked_whole(entries.get("skipped", 0), "skipped")
    for row in checked_list(entries.get("examples", []), "examples"):
        checked_whole(row, "a picture in examples", 0, images - 1)
    for name in ("source", "settings"):
        checked_table(entries.get(name, {}), name)
    parts = checked_list(entries.get("parts", []), "parts")
    for number, part in enumerate(parts):
        _check_part(part, number, images)
    for part in checked_list(entries.get("part_of", []), "part_of"):
        checked_whole(part, "a part in part_of", 0, max(len(parts) - 1, 0) if "parts" in entries else 255)
    for key, rows in checked_table(entries.get("typical", {}), "typical").items():
        part, _, kind = key.partition(":")
        if not (part.isascii() and part.isdigit() and kind.isascii() and kind.isdigit() and len(key) < 20):
            raise broken("a name in typical", key, "part:kind, two numbers")
        for row in checked_list(rows, f"typical {key}"):
            checked_whole(row, f"a picture in typical {key}", 0, images - 1)
    return cast(DiscoveryReport, entries)


def _check_part(value: object, number: int, images: int) -> None:
    entry = f"parts[{number}]"
    part = checked_table(value, entry, PartEntry.__required_keys__)
    # bool is a subclass of int: True would pass as part 1
    if part["index"] != number or isinstance(part["index"], bool):
        raise broken(f"{entry}.index", part["index"], str(number))
    checked_text(part["name"], f"{entry}.name")
    checked_whole(part["images"], f"{entry}.images", 0, images)
    checked_number(part["area"], f"{entry}.area", 0, 1)
    for size in checked_numbered(part["kinds"], f"{entry}.kinds", 1 << 20).values():
        checked_whole(size, f"the size of a kind in {entry}", 0, images)


def check_maps_header(header: Header) -> None:
    """Types and shapes of part maps: labels `(N, h, w)` and codes `(N, M)`.

    Raises:
        BestiaryError: one is missing or has another type or shape.
    """
    entries = header.entries
    lacking = [name for name in ("labels", "codes") if name not in entries]
    if lacking:
        raise BestiaryError(f"it lacks {', '.join(lacking)}")
    labels, codes = entries["labels"], entries["codes"]
    if labels.dtype != "U8" or len(labels.shape) != 3 or 0 in labels.shape:
        raise BestiaryError(f"labels are {labels.dtype} {list(labels.shape)}, expected bytes (pictures, rows, columns)")
    if codes.dtype not in ("I16", "I32", "I64") or len(codes.shape) != 2 or codes.shape[0] != labels.shape[0]:
        raise BestiaryError(
            f"codes are {codes.dtype} {list(codes.shape)}, expected whole numbers ({labels.shape[0]} pictures, parts)"
        )


def check_count(folder: Path, names: Sequence[str], maps: PartMaps) -> None:
    """Raises BestiaryError if the list of pictures and the maps, labels `(N, h, w)`, differ in N."""
    if len(names) != len(maps.labels):
        raise BestiaryError(
            f"{folder}: images.txt has {len(names)} lines, part_maps.safetensors {len(maps.labels)} pictures; run the discovery again"
        )


def check_maps(folder: Path, maps: PartMaps, codebook: PartCodebook, report: DiscoveryReport | None = None) -> None:
    """Check that maps, codebook and report of one folder describe the same pictures, parts and kinds.

    Raises:
        BestiaryError: they differ.
    """
    parts = maps.codes.shape[1]  # of (N, M)
    if parts != codebook.num_parts:
        raise BestiaryError(
            f"{folder}: part_maps.safetensors has {parts} parts, codebook.parts.safetensors {codebook.num_parts}: "
            "the files are from two discoveries; run the discovery again"
        )
    largest = int(maps.labels.max())
    if largest >= parts:
        raise BestiaryError(
            f"{folder}: part_maps.safetensors contains part {largest} of {parts}: it is damaged; run the discovery again"
        )
    # an absent part has the code -1
    for part, kinds in enumerate(codebook.num_kinds):
        low, high = int(maps.codes[:, part].min()), int(maps.codes[:, part].max())
        if low < -1 or high >= kinds:
            raise BestiaryError(
                f"{folder}: part_maps.safetensors contains kind {high if high >= kinds else low} of part "
                f"{codebook.part_names[part]!r}, which has {kinds} kinds: it is damaged; run the discovery again"
            )
    if report is None:
        return
    # indices of the report refer to the maps and the codebook
    listed = report.get("images", len(maps.labels))
    if listed != len(maps.labels) or len(report.get("parts", range(parts))) != parts:
        raise BestiaryError(
            f"{folder}: report.json lists {listed} pictures and {len(report.get('parts', ()))} parts, part_maps.safetensors "
            f"{len(maps.labels)} and {parts}: the files are from two discoveries; run the discovery again"
        )
    for key in report.get("typical", {}):
        part, kind = (int(number) for number in key.split(":"))
        if part >= parts or kind >= codebook.num_kinds[part]:
            raise BestiaryError(
                f"{folder}: report.json lists typical pictures of {key}, which does not exist; run the discovery again"
            )
