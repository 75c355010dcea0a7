"""The files of a set of scenes: their names, their bytes, and the records they are listed in. Shared by what writes, checks and exports them."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..concepts.errors import BestiaryError
from ..concepts.files.concept_names import checked_file_name
from ..concepts.files.text_file import read_text

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""What trainers take for pictures."""
STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
RECORDS, REJECTED, EVALUATION = "layouts", "rejected", "eval"
SCORES = "scores.json"
"""What judged the scenes, and what each scored."""
_PNG_LEVEL = 4

Plane = NDArray[np.uint8]


@dataclass(frozen=True)
class SceneObject:
    """A subject as a set describes it."""

    id: str
    """Name of the subject."""
    words: str
    """What captions for others call it."""
    token: str
    """What our own captions call it, tokens and all."""
    bbox: tuple[int, int, int, int]
    """Left, top, width and height of what is visible, in pixels."""
    area: int
    """Visible pixels."""
    visible: float
    """Share of its pixels that the picture shows, 0 to 1."""
    z: int
    counts: str
    """Its visible mask in COCO's compressed run lengths."""


@dataclass(frozen=True)
class SubjectFiles:
    """A subject as it is stored: everything that a replay needs."""

    name: str
    words: str
    size: float | str | None
    support: str
    cutout: str
    """Path within the set, straight RGBA."""
    parts: str
    """Path within the set, or empty."""
    source: Mapping[str, str]
    """File, sha256, licence and author."""


@dataclass(frozen=True)
class SceneRecord:
    """One scene of a set: what it was made of, what it shows, and the hashes of its files."""

    stem: str
    key: str
    """Hash of all that it was made of."""
    layout: Mapping[str, Any]
    options: Mapping[str, Any]
    background: str
    """Path within the set."""
    subjects: tuple[SubjectFiles, ...]
    objects: tuple[SceneObject, ...]
    """In the order of the layout: number k of the label map is the k-th, from 1."""
    place: str
    """Phrase of the captions."""
    text: str
    prompt: str
    """Caption of our own, with `<part:kind>` tokens."""
    captions: tuple[str, ...]
    """Variants of `text`."""
    model: str
    """What repainted the picture; empty for a plain collage."""
    scores: Mapping[str, float]
    rejected: tuple[str, ...]
    """Reasons of the tries before this one."""
    files: Mapping[str, str]
    """sha256 by path within the set."""
    format: int = 1

    def to_json(self) -> str:
        """As text that `read_record` reads."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False, sort_keys=True) + "\n"


@dataclass(frozen=True)
class SetCard:
    """What a set says of itself, besides its scenes."""

    title: str = ""
    licence: str = "other"
    """Of the whole set, as its card names it."""
    require_licence: bool = False
    """Whether subjects whose source names no licence are refused."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Settings of the run, for provenance; plain JSON values."""
    skipped: Sequence[tuple[str, str]] = ()
    """Pictures that gave no subject, with the reason."""


def checked_set_name(name: str) -> str:
    """The name of a set's folder.

    Raises:
        BestiaryError: it leads elsewhere, no file system takes it, or loaders would take it for a picture.
    """
    name = checked_file_name(name, "name of the set")
    if suffix := next((suffix for suffix in PICTURE_SUFFIXES if suffix in name.lower()), None):
        raise BestiaryError(
            f"name of the set {name!r} holds {suffix!r}, and loaders that look for captions replace it in the whole path: leave it out"
        )
    return name


def checked_stem(stem: str) -> str:
    """The name of a scene's files; raises BestiaryError unless it is 1 to 64 letters, digits, hyphens and underscores."""
    if not STEM.fullmatch(stem):
        raise BestiaryError(f"scene {stem[:80]!r}: use 1 to 64 letters, digits, hyphens or underscores")
    return stem


def inside(folder: Path, relative: str) -> Path:
    """A path that a record names, within its set.

    Raises:
        BestiaryError: it leads out of the set.
    """
    path = PurePosixPath(relative.replace("\\", "/"))
    if not relative or path.is_absolute() or ".." in path.parts or ":" in relative:
        raise BestiaryError(f"{folder}: the path {relative[:200]!r} leads out of the set; its file was changed by hand")
    return folder / path


def png_bytes(pixels: Plane) -> bytes:
    """PNG of `(H, W)`, `(H, W, 3)` or `(H, W, 4)`; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def read_png(path: Path) -> Plane:
    """Pixels of a PNG of a set, in the mode it has.

    Raises:
        BestiaryError: it is not there or no picture.
    """
    try:
        with Image.open(path) as picture:
            return np.array(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as fault:
        raise BestiaryError(f"{path} cannot be read as a picture: {fault}; build the set again") from fault


def sha256_of(content: bytes) -> str:
    """Hexadecimal hash of bytes."""
    return hashlib.sha256(content).hexdigest()


def read_record(path: Path) -> SceneRecord:
    """Read what `SceneRecord.to_json` wrote.

    Raises:
        BestiaryError: it is not there, no JSON or no such record.
    """
    try:
        content = json.loads(read_text(path))
        content["subjects"] = tuple(SubjectFiles(**subject) for subject in content["subjects"])
        objects = (SceneObject(**{**entry, "bbox": tuple(entry["bbox"])}) for entry in content["objects"])
        content["objects"] = tuple(objects)
        for name in ("captions", "rejected"):
            content[name] = tuple(content[name])
        return SceneRecord(**content)
    except BestiaryError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise BestiaryError(f"{path} is not the record of a scene: {fault!r}; build the set again") from fault


def read_records(folder: Path) -> Iterator[SceneRecord]:
    """Records of a set, sorted by stem.

    Raises:
        BestiaryError: there are none, or one cannot be read.
    """
    paths = sorted((folder / RECORDS).glob("[!.]*.json"))
    if not paths:
        raise BestiaryError(
            f"{folder} is not a set of scenes: it has no {RECORDS}/*.json; give the folder that a build wrote"
        )
    for path in paths:
        yield read_record(path)
