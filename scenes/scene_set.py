"""Sets of scenes on disk: pictures, captions, masks, label maps and boxes in one folder that trainers and loaders read as it is.

Every file appears whole or not at all, and a scene's record is the last of its files: a build that is stopped anywhere goes on
where it was and ends with the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from ..concepts.errors import BestiaryError
from ..concepts.files.atomic_file import remove_leftovers, write_bytes, write_text
from .coco_masks import encoded_mask
from .collage import CollageOptions, Scene, compose
from .scene_captions import plain_words
from .scene_layout import SceneLayout
from .set_card import coco_annotations, metadata_rows, provenance, scores_fit, set_card
from .set_files import (
    RECORDS,
    REJECTED,
    SCORES,
    Plane,
    SceneObject,
    SceneRecord,
    SetCard,
    SubjectFiles,
    checked_set_name,
    checked_stem,
    inside,
    png_bytes,
    read_png,
    read_record,
    read_records,
    sha256_of,
)
from .source_list import check_licences
from .subject import PictureSource, Subject


@dataclass(frozen=True)
class SceneEntry:
    """A finished scene and its words."""

    scene: Scene
    text: str
    """Caption, one line."""
    options: CollageOptions = field(default_factory=CollageOptions)
    """Those that the scene was composed with."""
    prompt: str = ""
    """Caption of our own column; `text` where empty."""
    captions: tuple[str, ...] = ()
    """Other wordings of `text`."""
    place: str = ""
    """Phrase of the place."""
    picture: Plane | None = None
    """`(H, W, 3)` the repainted picture in place of the collage."""
    model: str = ""
    """What repainted it."""
    scores: Mapping[str, float] = field(default_factory=dict)
    rejected: tuple[str, ...] = ()
    """Reasons of the tries before this one."""


class SceneSet:
    """A set that is being written."""

    def __init__(self, folder: Path, card: SetCard | None = None) -> None:
        """Open or make a set.

        Args:
            folder: its own folder; its name is checked.

        Raises:
            BestiaryError: the name cannot be a set's.
        """
        self.folder = Path(folder)
        self.card = card or SetCard()
        self._stored: dict[str, tuple[str, str]] = {}
        self._whole: set[tuple[str, str]] = set()
        checked_set_name(self.folder.name)
        for place in (self.folder, *(path for path in self.folder.glob("*") if path.is_dir())):
            remove_leftovers(place)

    def is_finished(self, stem: str, key: str) -> bool:
        """Whether a scene of this stem is written whole and was made of the same things; a rejected one counts too."""
        rejected = self.folder / REJECTED / f"{checked_stem(stem)}.json"
        with suppress(BestiaryError, OSError, ValueError, KeyError):
            if rejected.is_file() and json.loads(rejected.read_text("utf-8"))["key"] == key:
                return True
        try:
            record = read_record(self.folder / RECORDS / f"{stem}.json")
            return record.key == key and all(self._is_whole(name, sha) for name, sha in record.files.items())
        except (BestiaryError, OSError):
            return False

    def _is_whole(self, name: str, sha: str) -> bool:
        # cut-outs and backgrounds are shared by many scenes: each is read once
        if (name, sha) in self._whole:
            return True
        if sha256_of(inside(self.folder, name).read_bytes()) != sha:
            return False
        if name.startswith(("subjects/", "backgrounds/")):
            self._whole.add((name, sha))
        return True

    def rejection(self, stem: str) -> tuple[str, ...]:
        """Reasons why a scene could not be made; none where it was made, or never tried."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads((self.folder / REJECTED / f"{checked_stem(stem)}.json").read_text("utf-8"))
            return tuple(map(str, content["reasons"]))
        return ()

    def clear(self) -> None:
        """Remove all scenes and the files that describe them; whatever else lies in the folder stays."""
        for folder in (RECORDS, REJECTED):
            for path in (self.folder / folder).glob("[!.]*.json"):
                self._remove(path.stem)
                path.unlink(missing_ok=True)
        self._remove_unused([])
        for name in ("metadata.jsonl", "annotations.coco.json", "README.md", "provenance.json", SCORES):
            (self.folder / name).unlink(missing_ok=True)

    def write(self, stem: str, entry: SceneEntry, key: str) -> SceneRecord:
        """Write one scene.

        Args:
            key: from `scene_key`.

        Raises:
            BestiaryError: no caption, more than one line, nothing to see of a subject, a picture of another size, a source without
                licence where the card requires one, or no place on the disk.
        """
        scene = entry.scene
        _check(checked_stem(stem), entry)
        if self.card.require_licence:
            check_licences(scene.subjects)
        picture = scene.picture if entry.picture is None else entry.picture
        subjects = [self._store_subject(subject) for subject in scene.subjects]
        files = {
            f"images/{stem}.png": png_bytes(picture),
            f"images/{stem}.txt": f"{entry.text}\n".encode(),
            f"masks/{stem}.png": png_bytes(scene.union),
            f"instances/{stem}.png": png_bytes(scene.labels),
        }
        if any(subject.parts is not None for subject in scene.subjects):
            files[f"parts/{stem}.png"] = png_bytes(scene.parts)
        background, stored = self._store("backgrounds", scene.background)
        shared = {path: sha for entry in subjects for path, sha in entry[1].items()} | stored
        for name, content in files.items():
            write_bytes(self.folder / name, content)
        record = SceneRecord(
            stem=stem,
            key=key,
            layout=json.loads(scene.layout.to_json()),
            options=asdict(entry.options),
            background=background,
            subjects=tuple(subject for subject, _ in subjects),
            objects=tuple(_described(scene, index) for index in range(len(scene.subjects))),
            place=entry.place,
            text=entry.text,
            prompt=entry.prompt or entry.text,
            captions=entry.captions,
            model=entry.model,
            scores={name: float(value) for name, value in entry.scores.items()},
            rejected=entry.rejected,
            files={name: sha256_of(content) for name, content in files.items()} | shared,
        )
        write_text(self.folder / RECORDS / f"{stem}.json", record.to_json())
        with suppress(OSError):
            (self.folder / REJECTED / f"{stem}.json").unlink(missing_ok=True)
        return record

    def recaption(self, record: SceneRecord, text: str, prompt: str, captions: tuple[str, ...] = ()) -> bool:
        """Give a scene that is there other captions; returns whether they differ. `finish` then lists them.

        Raises:
            BestiaryError: a caption that is empty or has more than one line, or no place on the disk.
        """
        stem = checked_stem(record.stem)
        _check_captions(stem, (text, prompt, *captions))
        if (record.text, record.prompt, record.captions) == (text, prompt, captions):
            return False
        name, content = f"images/{stem}.txt", f"{text}\n".encode()
        files = {**record.files, name: sha256_of(content)}
        write_bytes(self.folder / name, content)
        # how well the picture fits the words was measured with the old ones
        scores = {called: value for called, value in record.scores.items() if called != "ti"}
        changed = replace(record, text=text, prompt=prompt, captions=captions, scores=scores, files=files)
        write_text(self.folder / RECORDS / f"{stem}.json", changed.to_json())
        return True

    def rescore(self, record: SceneRecord, scores: Mapping[str, float | None]) -> SceneRecord:
        """Give a scene that is there new scores, None for those that it no longer has; `finish` then lists them.

        Raises:
            BestiaryError: no place on the disk.
        """
        kept = {name: value for name, value in record.scores.items() if name not in scores}
        given = {name: float(value) for name, value in scores.items() if value is not None}
        changed = replace(record, scores={**kept, **given})
        write_text(self.folder / RECORDS / f"{checked_stem(record.stem)}.json", changed.to_json())
        return changed

    def reject(self, stem: str, key: str, reasons: Sequence[str]) -> None:
        """Note that no try of this scene was good enough; it has no files."""
        self._remove(checked_stem(stem))
        content = {"stem": stem, "key": key, "reasons": list(reasons)}
        write_text(self.folder / REJECTED / f"{stem}.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def finish(self, stems: Sequence[str] | None = None) -> int:
        """Write the files that describe the whole set; returns the number of its scenes.

        Args:
            stems: scenes of the plan; what an earlier plan wrote besides is removed. None keeps all.

        Raises:
            BestiaryError: there is no scene.
        """
        if stems is not None:
            folders = [self.folder / name for name in (RECORDS, REJECTED)]
            for stem in {path.stem for place in folders for path in place.glob("[!.]*.json")} - set(stems):
                self._remove(stem)
                (self.folder / REJECTED / f"{stem}.json").unlink(missing_ok=True)
        records = list(read_records(self.folder))
        self._remove_unused(records)
        rejected = [json.loads(path.read_text("utf-8")) for path in sorted((self.folder / REJECTED).glob("[!.]*.json"))]
        texts = {
            "metadata.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in metadata_rows(records)),
            "annotations.coco.json": json.dumps(coco_annotations(records), indent=1, ensure_ascii=False) + "\n",
            "README.md": set_card(self.folder, records, self.card),
        }
        for name, text in texts.items():
            write_text(self.folder / name, text)
        hashes = {name: sha256_of(text.encode()) for name, text in texts.items()}
        if (self.folder / SCORES).is_file() and not scores_fit(self.folder, records):
            (self.folder / SCORES).unlink()
        report = provenance(records, rejected, self.card, hashes)
        write_text(self.folder / "provenance.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        return len(records)

    def _store(self, folder: str, pixels: Plane) -> tuple[str, dict[str, str]]:
        """Write pixels under the hash of their PNG; returns the path within the set, and its hash."""
        # cut-outs come again in scene after scene, and compressing them costs more than all else
        known = sha256_of(np.ascontiguousarray(pixels).tobytes() + repr((folder, pixels.shape)).encode())
        if known in self._stored and (self.folder / self._stored[known][0]).is_file():
            name, sha = self._stored[known]
            return name, {name: sha}
        content = png_bytes(pixels)
        sha = sha256_of(content)
        name = f"{folder}/{sha[:16]}.png"
        path = self.folder / name
        if not path.is_file() or path.stat().st_size != len(content):
            write_bytes(path, content)
        self._stored[known] = (name, sha)
        return name, {name: sha}

    def _store_subject(self, subject: Subject) -> tuple[SubjectFiles, dict[str, str]]:
        cutout, files = self._store("subjects", subject.cutout)
        parts = ""
        if subject.parts is not None:
            parts, stored = self._store("subjects", subject.parts)
            files |= stored
        stored_subject = SubjectFiles(
            subject.name, subject.words, subject.size, subject.support, cutout, parts, asdict(subject.source)
        )
        return stored_subject, files

    def _remove(self, stem: str) -> None:
        # the record goes first: without it the scene does not exist
        for name in (f"{RECORDS}/{stem}.json", f"images/{stem}.png", f"images/{stem}.txt"):
            (self.folder / name).unlink(missing_ok=True)
        for folder in ("masks", "instances", "parts"):
            (self.folder / folder / f"{stem}.png").unlink(missing_ok=True)

    def _remove_unused(self, records: Sequence[SceneRecord]) -> None:
        used = {name for record in records for name in record.files}
        for folder in ("subjects", "backgrounds"):
            for path in (self.folder / folder).glob("[0-9a-f]*.png"):
                if f"{folder}/{path.name}" not in used and len(path.stem) == 16:
                    path.unlink(missing_ok=True)


def scene_key(
    subjects: Sequence[Subject],
    layout: SceneLayout,
    background: Plane,
    options: CollageOptions,
    words: Mapping[str, object] | None = None,
) -> str:
    """Hash of all that a scene is made of: cut-outs, layout, background `(H, W, 3)`, options.

    Args:
        words: what else decides: captions, seeds and settings of a repaint, as JSON values.
    """
    placed = {placement.subject for placement in layout.placements}
    content = {
        "layout": layout.to_json(),
        "options": asdict(options),
        "background": [list(background.shape), sha256_of(np.ascontiguousarray(background).tobytes())],
        "words": dict(words or {}),
        "subjects": [
            [
                subject.name,
                subject.words,
                subject.support,
                subject.size,
                asdict(subject.source),
                list(subject.cutout.shape),
                sha256_of(np.ascontiguousarray(subject.cutout).tobytes()),
                "" if subject.parts is None else sha256_of(np.ascontiguousarray(subject.parts).tobytes()),
            ]
            for subject in sorted(subjects, key=lambda subject: subject.name)
            if subject.name in placed
        ],
    }
    return sha256_of(json.dumps(content, sort_keys=True, ensure_ascii=False).encode())


def replayed(folder: Path, stem: str) -> Scene:
    """A scene of a set composed once more from its record: the same pixels, unless a model repainted it.

    Raises:
        BestiaryError: the record or one of its files is missing or was changed.
    """
    record = read_record(Path(folder) / RECORDS / f"{checked_stem(stem)}.json")
    layout = SceneLayout.from_json(json.dumps(record.layout))
    try:
        options = CollageOptions(**record.options)
    except TypeError as fault:
        raise BestiaryError(f"scene {stem} was composed with options that are not known here: {fault}") from fault
    background = read_png(inside(Path(folder), record.background))
    return compose([stored_subject(Path(folder), files) for files in record.subjects], layout, background, options)


def stored_subject(folder: Path, files: SubjectFiles) -> Subject:
    """A subject of a set, read back."""
    parts = read_png(inside(folder, files.parts)) if files.parts else None
    cutout = read_png(inside(folder, files.cutout))
    source = PictureSource(**files.source)
    return Subject(files.name, cutout, files.words, files.size, files.support, parts, source)


def _check(stem: str, entry: SceneEntry) -> None:
    _check_captions(stem, (entry.text, entry.prompt or entry.text, *entry.captions))
    if entry.picture is not None and entry.picture.shape != entry.scene.picture.shape:
        raise BestiaryError(
            f"scene {stem}: the repainted picture is {entry.picture.shape}, the collage {entry.scene.picture.shape}"
        )
    for index, subject in enumerate(entry.scene.subjects):
        if not entry.scene.area(index):
            raise BestiaryError(
                f"scene {stem}: no pixel of {subject.name!r} is visible, though the caption would name it; solve another layout"
            )


def _check_captions(stem: str, captions: Sequence[str]) -> None:
    for text in captions:
        if not text.strip() or "\n" in text or "\r" in text:
            raise BestiaryError(f"scene {stem}: a caption is one line that says something, not {text[:80]!r}")


def _described(scene: Scene, index: int) -> SceneObject:
    subject, placement = scene.subjects[index], scene.layout.placements[index]
    return SceneObject(
        id=subject.name,
        words=plain_words(subject),
        token=subject.called,
        bbox=scene.box(index),
        area=scene.area(index),
        visible=round(1 - scene.occlusion[index], 6),
        z=placement.z,
        counts=str(encoded_mask(scene.labels == index + 1)["counts"]),
    )
