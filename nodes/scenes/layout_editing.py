"""Layouts changed by hand: edits as JSON, and what an editor in the browser shows."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, replace

from PIL import Image

from ...concepts.errors import BestiaryError
from ...concepts.name_search import choices_text
from ...scenes.scene_layout import Placement, SceneLayout
from ...scenes.subject import Subject
from ..host.socket_types import SceneLayouts, SceneSubjects
from .scene_sets import shown_subjects

FIELDS = ("x", "y", "width", "turn", "flip", "z")
"""What an edit may change; the height follows from the width."""
THUMBNAIL = 192
"""Pixels of the longer side of a cut-out in the editor."""
MOST_TEXT = 1_000_000


def edited(layouts: SceneLayouts, subjects: SceneSubjects, edits: str) -> SceneLayouts:
    """Layouts after their edits.

    Args:
        layouts: as they were made.
        subjects: those of the layouts.
        edits: JSON `{"0": {"cat": {"x": 10, "y": 20, "width": 80, "turn": 15, "flip": true, "z": 2}}}` by number of the layout
            and name of the subject, in pixels and degrees; every field may be left out. Empty for none.

    Raises:
        BestiaryError: no such JSON, a layout or a subject that is not there, an unknown field, or a value that cannot be.
    """
    read = _read(edits)
    changed = list(layouts.layouts)
    for number, by_name in read.items():
        if not (number.isdigit() and int(number) < len(changed)):
            raise BestiaryError(
                f"edits of layout {number[:20]!r}: there are {len(changed)} layouts, from 0; press Reset in the editor, or empty edits"
            )
        changed[int(number)] = _edited(changed[int(number)], subjects, by_name)
    return replace(layouts, layouts=tuple(changed))


def shown_layouts(layouts: SceneLayouts, subjects: SceneSubjects) -> dict[str, object]:
    """What the editor draws: layouts before their edits, and a picture of every subject as a data URL."""
    first = layouts.layouts[0]
    return {
        "width": first.width,
        "height": first.height,
        "layouts": [[asdict(one) for one in layout.placements] for layout in layouts.layouts],
        "subjects": {
            one.name: {"aspect": one.aspect, "picture": _thumbnail(one)} for one in shown_subjects(subjects, first)
        },
    }


def _read(edits: str) -> Mapping[str, Mapping[str, Mapping[str, object]]]:
    if not edits.strip():
        return {}
    try:
        content = json.loads(edits[: MOST_TEXT + 1])
    except (ValueError, RecursionError) as fault:
        raise BestiaryError(f"edits are JSON, and this cannot be read: {fault}; empty them to begin anew") from fault
    levels = [content, *(content.values() if isinstance(content, dict) else ())]
    levels += [one for level in levels[1:] if isinstance(level, dict) for one in level.values()]
    if not all(isinstance(level, dict) for level in levels):
        raise BestiaryError('edits must be {"0": {"cat": {"x": 10, "y": 20}}}: layout, subject, fields')
    return content


def _edited(layout: SceneLayout, subjects: SceneSubjects, by_name: Mapping[str, Mapping[str, object]]) -> SceneLayout:
    names = [one.subject for one in layout.placements]
    shapes = {one.name: one.aspect for one in shown_subjects(subjects, layout)}
    for name in by_name:
        if name not in names:
            raise BestiaryError(f"edits name {name[:80]!r}; the layout has {choices_text(name, names)}: empty edits")
    placed = tuple(_moved(one, by_name.get(one.subject, {}), shapes[one.subject]) for one in layout.placements)
    made = replace(layout, placements=placed, made_by="edited")
    # checks every value, and says which one cannot be
    return SceneLayout.from_json(json.dumps(asdict(made)))


def _moved(placement: Placement, fields: Mapping[str, object], aspect: float) -> Placement:
    unknown = [name for name in fields if name not in FIELDS]
    if unknown:
        raise BestiaryError(
            f"edits of {placement.subject!r} change {unknown[0][:40]!r}, which is not one of {', '.join(FIELDS)}"
        )
    values = {**asdict(placement), **fields}
    width = values["width"]
    if "width" in fields and isinstance(width, int | float):
        values["height"] = width / aspect
    return Placement(**values)


def _thumbnail(subject: Subject) -> str:
    picture = Image.fromarray(subject.cutout)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
