"""Whether a set of scenes is what trainers and loaders expect: every rule, and the file that breaks it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..concepts.errors import BestiaryError
from ..concepts.files.text_file import read_text
from .collage import SOLID, visible_box
from .folder_rules import SetFault, caption_faults, coco_faults, name_in, paired_faults, path_faults, picture_files
from .set_card import metadata_rows, scores_fit
from .set_files import (
    EVALUATION,
    RECORDS,
    SCORES,
    STEM,
    Plane,
    SceneRecord,
    inside,
    read_png,
    read_record,
    sha256_of,
)
from .set_views import KINDS, MARK
from .view_verify import verify_view


def verify_set(folder: Path, kind: str | None = None) -> list[SetFault]:
    """All faults of a set or of a view, sorted by file; none where everything is right.

    Args:
        folder: a set, or a view that `export_view` wrote.
        kind: check this view of the set too.

    Raises:
        BestiaryError: it is neither, or has no such view.
    """

    folder = Path(folder)
    if kind is not None and kind not in KINDS:
        raise BestiaryError(f"no view for {kind!r}: choose {', '.join(KINDS)}")
    if (folder / MARK).is_file():
        return _sorted(verify_view(folder, kind))
    if not (folder / RECORDS).is_dir():
        raise BestiaryError(
            f"{folder} is not a set of scenes: it has no folder {RECORDS}; give the folder that a build wrote"
        )
    faults = list(_faults_of_set(folder))
    if (folder / EVALUATION).is_dir():
        faults += [
            SetFault(f"{EVALUATION}/{fault.file}", fault.reason) for fault in _faults_of_set(folder / EVALUATION)
        ]
        faults += _shared_photographs(folder)
    if kind is not None:
        place = folder / "views" / kind
        if not (place / MARK).is_file():
            raise BestiaryError(f"{folder} has no view for {kind}: export it first")
        faults += [SetFault(f"views/{kind}/{fault.file}", fault.reason) for fault in verify_view(place, kind)]
    return _sorted(faults)


def _faults_of_set(folder: Path) -> Iterator[SetFault]:
    images = folder / "images"
    yield from path_faults(folder)
    yield from caption_faults(images, folder)
    yield from paired_faults(images, folder / "masks", folder)
    yield from paired_faults(images, folder / "instances", folder, "label map")
    records = {}
    for path in sorted((folder / RECORDS).glob("[!.]*.json")):
        try:
            records[path.stem] = read_record(path)
        except BestiaryError as fault:
            yield SetFault(name_in(path, folder), str(fault))
    stems = {path.stem for path in picture_files(images)}
    for stem in sorted(stems - records.keys()):
        yield SetFault(f"{RECORDS}/{stem}.json", f"the record of images/{stem}.png is missing")
    for stem in sorted(records.keys() - stems):
        yield SetFault(f"images/{stem}.png", "the picture of this scene is missing")
    for stem in sorted(records.keys() & stems):
        yield from _faults_of_scene(folder, stem, records[stem])
    ordered = [records[stem] for stem in sorted(records)]
    yield from _faults_of_rows(folder, ordered)
    yield from _faults_of_coco(folder, ordered)
    yield from _faults_of_card(folder)
    if (folder / SCORES).is_file() and not scores_fit(folder, ordered):
        yield SetFault(SCORES, "the scores are not those of the scenes: score the set again")


def _faults_of_scene(folder: Path, stem: str, record: SceneRecord) -> Iterator[SetFault]:
    name = f"{RECORDS}/{stem}.json"
    if record.stem != stem or not STEM.fullmatch(stem):
        yield SetFault(name, f"the record is of scene {record.stem!r}")
    for file, sha in sorted(record.files.items()):
        try:
            content = inside(folder, file).read_bytes()
        except BestiaryError as fault:
            yield SetFault(name, str(fault))
            continue
        except OSError:
            yield SetFault(file, f"this file of scene {stem} is missing")
            continue
        if sha256_of(content) != sha:
            yield SetFault(file, "the file was changed after it was written: build the set again")
    try:
        labels, union = read_png(folder / f"instances/{stem}.png"), read_png(folder / f"masks/{stem}.png")
    except BestiaryError as fault:
        yield SetFault(f"instances/{stem}.png", str(fault))
        return
    yield from _faults_of_labels(stem, labels, union, record)


def _faults_of_labels(stem: str, labels: Plane, union: Plane, record: SceneRecord) -> Iterator[SetFault]:
    file = f"instances/{stem}.png"
    if labels.ndim != 2 or union.ndim != 2 or labels.dtype != np.uint8 or union.dtype != np.uint8:
        yield SetFault(file, f"label maps and masks have one channel of 8 bits, not {labels.shape} and {union.shape}")
        return
    if int(labels.max(initial=0)) > len(record.objects):
        yield SetFault(file, f"it shows subject {int(labels.max())}, and the scene has {len(record.objects)}")
    if labels.shape == union.shape and (stray := int(((labels > 0) & (union < SOLID)).sum())):
        yield SetFault(f"masks/{stem}.png", f"{stray} pixels show a subject and are black in the mask")
    for number, entry in enumerate(record.objects, start=1):
        box, area = visible_box(labels, number), int((labels == number).sum())
        if box != entry.bbox:
            yield SetFault(f"{RECORDS}/{stem}.json", f"the box of {entry.id!r} is {entry.bbox}, the label map's {box}")
        if area != entry.area:
            yield SetFault(
                f"{RECORDS}/{stem}.json", f"the area of {entry.id!r} is {entry.area}, the label map's {area}"
            )
        if not area:
            yield SetFault(file, f"no pixel of {entry.id!r} is visible, though the caption names it")


def _faults_of_rows(folder: Path, records: list[SceneRecord]) -> Iterator[SetFault]:
    name = "metadata.jsonl"
    try:
        rows = [json.loads(line) for line in read_text(folder / name).splitlines() if line.strip()]
        listed = {str(row["file_name"]): row for row in rows}
    except (BestiaryError, ValueError, KeyError, TypeError) as fault:
        yield SetFault(name, f"it cannot be read: {fault}")
        return
    wanted = {str(row["file_name"]): json.loads(json.dumps(row)) for row in metadata_rows(records)}
    for file, row in listed.items():
        for column in ("file_name", "mask_file_name", "instances_file_name"):
            try:
                if not inside(folder, str(row.get(column, ""))).is_file():
                    yield SetFault(name, f"{column} {str(row.get(column))!r} is not a file of the set")
            except BestiaryError:
                yield SetFault(name, f"{column} {str(row.get(column))!r} leads out of the set")
        if not str(row.get("text", "")).strip():
            yield SetFault(name, f"the text of {file} is empty")
        elif "<" in str(row["text"]) and file in wanted and row["text"] != wanted[file]["text"]:
            yield SetFault(name, f"the text of {file} holds tokens that other trainers read as letters")
        if file in wanted and row != wanted[file]:
            columns = sorted(key for key in row.keys() | wanted[file].keys() if row.get(key) != wanted[file].get(key))
            yield SetFault(name, f"{', '.join(columns)} of {file} differ from its record")
        caption = folder / "images" / f"{Path(file).stem}.txt"
        if caption.is_file() and caption.read_text("utf-8", "replace").strip() != str(row.get("text", "")).strip():
            yield SetFault(name_in(caption, folder), "the caption is not the text of its row in metadata.jsonl")
    for file in sorted(wanted.keys() - listed.keys()):
        yield SetFault(name, f"no row for {file}")
    if len(rows) != len(listed):
        yield SetFault(name, "a picture has two rows")


def _faults_of_coco(folder: Path, records: list[SceneRecord]) -> Iterator[SetFault]:
    name = "annotations.coco.json"
    try:
        coco = json.loads(read_text(folder / name))
        yield from coco_faults(coco, name, {f"images/{record.stem}.png": record for record in records})
    except (BestiaryError, ValueError, KeyError, TypeError, AttributeError) as fault:
        yield SetFault(name, f"it cannot be read: {fault!r}")


def _faults_of_card(folder: Path) -> Iterator[SetFault]:
    try:
        card = read_text(folder / "README.md")
    except BestiaryError as fault:
        yield SetFault("README.md", str(fault))
        return
    if not card.startswith("---\n") or '"images/*.png"' not in card or '"metadata.jsonl"' not in card:
        yield SetFault("README.md", "its header does not list the pictures, and datasets reads the captions alone")


def _shared_photographs(folder: Path) -> Iterator[SetFault]:
    """Photographs of the evaluation must not be trained on."""
    seen: dict[str, set[str]] = {}
    for place in (folder, folder / EVALUATION):
        for path in (place / RECORDS).glob("[!.]*.json"):
            try:
                subjects = read_record(path).subjects
            except BestiaryError:
                continue
            seen.setdefault(place.name, set()).update(subject.source.get("sha256", "") for subject in subjects)
    shared = set.intersection(*seen.values()) - {""} if len(seen) == 2 else set()
    for sha in sorted(shared):
        yield SetFault(EVALUATION, f"the photograph of sha256 {sha[:16]} is in training and in evaluation")


def _sorted(faults: Iterable[SetFault]) -> list[SetFault]:
    return sorted(dict.fromkeys(faults), key=lambda fault: (fault.file, fault.reason))
