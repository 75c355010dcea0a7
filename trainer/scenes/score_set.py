"""Scores of a set's scenes: does each show its subjects, like themselves, and fit its caption?

Subjects are compared with all their cut-outs in the set. The drawn world's judge looks where the layout put them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ...concepts.files.atomic_file import write_text
from ...scenes.reference_pictures import reference_picture
from ...scenes.scene_set import SceneSet
from ...scenes.set_card import SCORE_NAMES
from ...scenes.set_files import SCORES, SceneRecord, inside, read_png, read_records
from ..evaluation.scene_figures import SceneFigures, score_picture
from ..evaluation.scene_judges import KnownSubject, SceneJudges
from .recaption import read_card

Report = Callable[[int, int], None]
_REFERENCES = 16
"""Cut-outs of a subject that are looked at; further ones are left out."""
_REFERENCE_EDGE = 512


def score_set(
    folder: Path, judges: SceneJudges, *, title: str = "", on_scene: Report = lambda done, total: None
) -> SceneFigures:
    """Write scores into the records of a set and into scores.json, and return them.

    Args:
        judges: those that there are; scores of missing ones are taken off.
        title: of the whole set, which its evaluation shares; empty is the folder's name.
        on_scene: called with (done, total) scenes.

    Raises:
        BestiaryError: `folder` is not a set, a file of it is missing, or there is no place on the disk.
    """
    records = list(read_records(folder))
    scene_set = SceneSet(folder, read_card(folder, title or folder.name))
    known = _known_subjects(folder, records)
    rows = []
    for number, record in enumerate(records, start=1):
        file = f"images/{record.stem}.png"
        subjects = [known[one.id] for one in record.objects]
        boxes = np.array([one.bbox for one in record.objects], np.float32)
        picture = Image.fromarray(read_png(inside(folder, file)))
        row = score_picture(judges, picture, file, record.text, subjects, boxes)
        values: Mapping[str, object] = row
        scene_set.rescore(record, {name: _number(values[name]) for name in SCORE_NAMES})
        rows.append(row)
        on_scene(number, len(records))
    figures = SceneFigures(rows, judges.models, judges.left_out)
    # before `finish`, which removes scores that do not belong to the records
    write_text(folder / SCORES, figures.to_json({"made_by": "bestiary scenes score"}))
    scene_set.finish()
    return figures


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _known_subjects(folder: Path, records: Sequence[SceneRecord]) -> dict[str, KnownSubject]:
    """Every subject of a set by its name, with its different cut-outs."""
    cutouts: dict[str, dict[str, None]] = {}
    words: dict[str, str] = {}
    for record in records:
        for stored in record.subjects:
            cutouts.setdefault(stored.name, {})[stored.cutout] = None
        words |= {one.id: one.words for one in record.objects}
    return {
        name: KnownSubject(name, words[name], tuple(_reference(folder, path) for path in sorted(paths)[:_REFERENCES]))
        for name, paths in cutouts.items()
    }


def _reference(folder: Path, cutout: str) -> Image.Image:
    return Image.fromarray(reference_picture(read_png(inside(folder, cutout)), _REFERENCE_EDGE))
