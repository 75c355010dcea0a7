"""Reference pictures of subjects for edit models: of another photograph than the one in the scene, or a model learns to copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .scene_captions import joined
from .set_files import SceneRecord, SubjectFiles

LONGEST = 768
"""Pixels of a reference's side at most."""
_MARGIN = 0.06


@dataclass(frozen=True)
class ChosenReference:
    """A cut-out that shows a subject of a scene."""

    name: str
    cutout: str
    """Path within the set."""
    same_source: bool
    """Whether it is of the very photograph that the scene shows."""


def choose_references(records: Sequence[SceneRecord], record: SceneRecord) -> list[ChosenReference]:
    """One reference for each subject of a scene, of another photograph wherever the set has one; the same ones on each call."""
    chosen = []
    for subject in record.subjects:
        own = _photograph(subject)
        others = {
            _photograph(other): other.cutout
            for scene in records
            for other in scene.subjects
            if other.name == subject.name and _photograph(other) != own
        }
        names = sorted(others)
        # scenes take turns, so that every photograph is a reference
        position = [scene.stem for scene in records].index(record.stem)
        cutout = others[names[position % len(names)]] if names else subject.cutout
        chosen.append(ChosenReference(subject.name, cutout, not names))
    return chosen


def put_together(words: Sequence[str], place: str = "") -> str:
    """Instruction for an edit model: `put the cat of picture 1 and the bird of picture 2 in a wood`.

    Args:
        words: what each subject is called, in the order of its reference pictures; at least one.
        place: phrase such as `in a wood`.
    """
    said = [f"the {one} of picture {number}" for number, one in enumerate(words, start=1)]
    return f"put {joined(said)} {place or 'into one picture'}"


def reference_picture(cutout: NDArray[np.uint8], longest: int = LONGEST) -> NDArray[np.uint8]:
    """A cut-out `(h, w, 4)` in the middle of a white square `(n, n, 3)`, n at most `longest`."""
    picture = Image.fromarray(cutout)
    side = min(longest, round(max(picture.size) * (1 + 2 * _MARGIN)))
    scale = side / (max(picture.size) * (1 + 2 * _MARGIN))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # Pillow multiplies by alpha before it resizes RGBA
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    sheet = Image.new("RGB", (side, side), (255, 255, 255))
    sheet.paste(picture, ((side - size[0]) // 2, (side - size[1]) // 2), picture)
    return np.asarray(sheet)


def side_by_side(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Square pictures in one row `(n, n*count, 3)`, of the size of the smallest."""
    side = min(len(picture) for picture in pictures)
    rows = [np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)) for picture in pictures]
    return np.concatenate(rows, axis=1)


def _photograph(subject: SubjectFiles) -> str:
    return subject.source.get("sha256") or subject.source.get("file") or subject.cutout
