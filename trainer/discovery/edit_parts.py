"""`bestiary parts rename|merge|drop`: edits a discovery before training; all of its files change together or none.

A name is a part (`head`, or its number) or a kind of a part (`head:17`, `head:cardinal`).
Letters: N pictures, n pictures of a piece, (h, w) patch grid, M parts, d channels of part means.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.part_map import codebook_edits
from ...concepts.part_map.codebook_edits import CodebookEdit, merge_named, rename_named, split_name
from ...concepts.part_map.joined_kinds import PartMeans, refit_kinds
from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.part_map.part_map import ABSENT, PartMaps
from ...concepts.part_prompt.caption_file import format_caption
from ..learning.discovery.discovery_folder import (
    CAPTIONS,
    CODEBOOK,
    PAGE,
    PART_MAPS,
    editing,
    finish_edit,
    pictures_folder,
    read_labels,
    read_maps,
    read_picture_names,
    read_report,
    write_lines,
    write_maps,
    write_report,
)
from ..learning.discovery.discovery_report import DiscoveryReport, DoubtEntry
from ..learning.discovery.discovery_schema import check_count, check_maps
from .counts import PER_KIND, PartCounts, TypicalPictures
from .folder_lock import alone_in
from .page import page_content, write_discovery_page
from .state import DiscoveryState, read_plan

_PIECE = 1024
_REPORT_ENTRIES = ("images", "skipped", "parts", "typical", "examples", "part_of", "source", "settings")

Edit = Callable[[PartCodebook], CodebookEdit]


def rename_part(folder: Path, name: str, new_name: str) -> None:
    """Rename a part or a kind.

    Raises:
        BestiaryError: no such part or kind, or a new name that is taken or not allowed in prompts.
    """
    _edit(folder, lambda codebook: rename_named(codebook, name, new_name))


def merge_parts(folder: Path, names: Sequence[str]) -> None:
    """Merge parts, or kinds of one part, into the first one named.

    The kinds of merged parts are refitted from the stored part means, unless some of them have names.

    Raises:
        BestiaryError: fewer than two names, unknown ones, parts mixed with kinds, or kinds of different parts.
    """
    _edit(folder, lambda codebook: merge_named(codebook, names), refit=True)


def drop_parts(folder: Path, names: Sequence[str]) -> None:
    """Drop parts or kinds: their patches become background.

    Raises:
        BestiaryError: no name, an unknown one, the background, the only part, or the only kind of a part.
    """
    if not names:
        raise BestiaryError("nothing to drop: name parts, or kinds as part:kind")

    def drop(codebook: PartCodebook) -> CodebookEdit:
        # resolve all names first: dropping renumbers the rest, and the user typed the old numbers
        split = [split_name(name) for name in names]
        kinds = [_found_kind(codebook, part, kind) for part, kind in split if kind is not None]
        parts = {codebook.find_part(part) for part, kind in split if kind is None}
        edit = codebook_edits.rename(codebook)  # changes nothing
        for part, kind in sorted(set(kinds), reverse=True):  # from the last, so that the numbers before it stay
            edit = _after(edit, codebook_edits.drop_kind(edit.codebook, str(part), str(kind)))
        for part in sorted(parts, reverse=True):
            edit = _after(edit, codebook_edits.drop_part(edit.codebook, str(part)))
        return edit

    _edit(folder, drop)


def _found_kind(codebook: PartCodebook, part: str, kind: str) -> tuple[int, int]:
    index = codebook.find_part(part)
    return index, codebook.find_kind(index, kind)


def _after(first: CodebookEdit, second: CodebookEdit) -> CodebookEdit:
    """Composition of two edits, applied in this order."""
    kinds = tuple(
        tuple(ABSENT if kind == ABSENT else second.kinds[part][kind] for kind in moved)
        for part, moved in zip(first.parts, first.kinds, strict=True)
    )
    return CodebookEdit(second.codebook, tuple(second.parts[part] for part in first.parts), kinds)


def _edit(folder: Path, change: Edit, refit: bool = False) -> None:
    """Change the codebook and update all files, with the folder locked: an edit builds on the one before it."""
    # refuse a folder without a discovery before locking it
    read_report(folder, needs=_REPORT_ENTRIES)
    with alone_in(folder):
        _edit_alone(folder, change, refit)


def _edit_alone(folder: Path, change: Edit, refit: bool) -> None:
    """Change the codebook and update maps, captions, report and page to match."""
    folder = Path(folder)
    # leftovers of killed programs: the lock guarantees that no other program uses them
    for left in folder.glob(".edit.*"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
    # complete an interrupted edit first: this one builds on it
    finish_edit(folder)
    report = read_report(folder, needs=_REPORT_ENTRIES)
    codebook = PartCodebook.load(folder / CODEBOOK)
    old = read_maps(folder / PART_MAPS)
    check_count(folder, read_picture_names(folder), old)
    check_maps(folder, old, codebook, report)
    edit = change(codebook)
    codebook, codes = edit.codebook, _moved_codes(edit, old)
    # the stored part means keep the original part numbers: `part_of` maps them to the current ones
    part_of = [edit.parts[part] for part in report["part_of"]]
    moved_report: DiscoveryReport = {**report, "part_of": part_of, "typical": _typical(report, edit, codes)}
    report = _with_kept_doubts(moved_report, edit)
    # parts that absorbed others; the background is excluded because it keeps its kinds
    joined = [new for new in set(edit.parts) if edit.parts.count(new) > 1 and new != codebook.background]
    if refit and joined and not any(codebook.kind_names[part] for part in joined):
        codebook, codes, report = _with_fitted_kinds(folder, codebook, codes, report, joined[0])

    def moved(rows: slice) -> PartMaps:
        return PartMaps(edit.apply(PartMaps(old.labels[rows], old.codes[rows])).labels, codes[rows])

    _replace_files(folder, codebook, moved, codes, report)


def _replace_files(
    folder: Path,
    codebook: PartCodebook,
    maps_of: Callable[[slice], PartMaps],
    codes: Tensor,
    report: DiscoveryReport,
) -> None:
    """Write all new files beside the old ones, with codes `(N, M)`, and swap them in together."""
    counts = PartCounts(codebook.num_parts)

    def pieces() -> Iterator[PartMaps]:
        for start in range(0, len(codes), _PIECE):
            piece = maps_of(slice(start, start + _PIECE))
            counts.add(piece)
            yield piece

    # all or none: a mix of old and new files would be inconsistent
    with editing(folder) as staging:
        write_maps(staging / PART_MAPS, pieces(), len(codes), codebook.grid, codebook.num_parts)
        codebook.save(staging / CODEBOOK)
        write_lines(staging / CAPTIONS, (format_caption(row) for row in codes.tolist()))
        # only complete after `write_maps`, which consumes the counting generator
        counted: DiscoveryReport = {**report, "parts": counts.report(codebook.part_names)}
        write_report(staging, counted)
        labels = read_labels(staging / PART_MAPS)
        content = page_content(folder, pictures_folder(folder, counted), codebook, counted, labels)
        write_discovery_page(staging / PAGE, content)


def _with_kept_doubts(report: DiscoveryReport, edit: CodebookEdit) -> DiscoveryReport:
    """The report with doubts and confidence under the new numbers; the confidence of merged parts becomes unknown."""
    confidence = report.get("confidence")
    if confidence is None or len(confidence) != len(edit.parts):
        return report
    # the confidence of a merged part cannot be derived from those of its members
    moved: list[float | None] = [None] * edit.codebook.num_parts
    for old, new in enumerate(edit.parts):
        moved[new] = confidence[old] if edit.parts.count(new) == 1 else None
    doubts: list[DoubtEntry] = [
        {**doubt, "part": edit.parts[doubt["part"]]} if doubt["part"] >= 0 else doubt
        for doubt in report.get("doubts", [])
    ]
    kept = [doubt for doubt in doubts if doubt["part"] != edit.codebook.background]
    return {**report, "confidence": moved, "doubts": kept}


def _moved_codes(edit: CodebookEdit, old: PartMaps) -> Tensor:
    """Codes `(N, M)` under the new numbers, computed in pieces to bound memory."""
    starts = range(0, len(old.codes), _PIECE)
    pieces = (PartMaps(old.labels[start : start + _PIECE], old.codes[start : start + _PIECE]) for start in starts)
    return torch.cat([edit.apply(piece).codes for piece in pieces])


def _typical(report: DiscoveryReport, edit: CodebookEdit, codes: Tensor) -> dict[str, list[int]]:
    """Typical pictures under the new numbers, as far as their new codes `(N, M)` still match."""
    moved: dict[str, list[int]] = {}
    for key, rows in report["typical"].items():
        part, kind = (int(number) for number in key.split(":"))
        new = edit.kinds[part][kind]
        if new != ABSENT:
            # a picture that showed both merged parts keeps only the kind of the larger one
            still = [row for row in rows if int(codes[row, edit.parts[part]]) == new]
            found = moved.setdefault(f"{edit.parts[part]}:{new}", [])
            found += [row for row in still if row not in found]
    return {key: rows[:PER_KIND] for key, rows in moved.items()}


def _with_fitted_kinds(
    folder: Path, codebook: PartCodebook, codes: Tensor, report: DiscoveryReport, part: int
) -> tuple[PartCodebook, Tensor, DiscoveryReport]:
    """Kinds of one part refitted from the stored means; everything unchanged if these were deleted."""
    plan = read_plan(folder) if (folder / "state" / "plan.json").is_file() else None
    if plan is None or not any((folder / "state").glob("parts-*.safetensors")):
        return codebook, codes, report
    state = DiscoveryState(folder / "state", plan["files"]["count"], plan["shard_images"])
    pieces = [PartMeans(shard.means, shard.counts).joined(report["part_of"], part) for shard in state.read_parts()]
    # (N, 1, d) and (N, 1)
    seen = PartMeans(torch.cat([piece.means for piece in pieces]), torch.cat([piece.counts for piece in pieces]))
    # same bound on the number of pictures as in the discovery itself
    refitted = refit_kinds(codebook, part, seen, plan["kinds"], plan["seed"], plan["kind_images"])
    new_codes = refitted.codes.masked_fill(codes[:, part] == ABSENT, ABSENT)  # (N,)
    typical = TypicalPictures(refitted.alone)
    # `refitted.alone` has this part as number 0: translate keys and codes back
    typical.add(0, new_codes.unsqueeze(1), seen.means)
    kept = {key: rows for key, rows in report["typical"].items() if not key.startswith(f"{part}:")}
    kept |= {key.replace("0:", f"{part}:", 1): rows for key, rows in typical.rows().items()}
    codes = codes.clone()
    codes[:, part] = new_codes
    return refitted.codebook, codes, {**report, "typical": kept}
