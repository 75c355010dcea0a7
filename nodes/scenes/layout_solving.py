"""Layouts of a graph: solved one after the other, read from text or boxes, and drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...scenes.collage import CollageOptions, Scene, compose
from ...scenes.layout_boxes import boxes_of, layout_from_boxes
from ...scenes.layout_measures import painted
from ...scenes.layout_request import LayoutRequest, supporters
from ...scenes.layout_solver import solve_measured
from ...scenes.layout_text import layout_from_text
from ...scenes.scene_layout import SceneLayout
from ...scenes.subject import Subject
from ..host.graph_progress import GraphProgress
from ..host.socket_types import SceneLayouts, SceneSubjects
from .scene_pictures import as_tensor
from .subject_making import called_by

PREVIEW_EDGE = 512
"""Pixels of the longer side of a layout's picture."""
_GREY = 128
_COLOURS = ((228, 87, 86), (76, 120, 168), (84, 162, 75), (242, 164, 60), (160, 100, 170), (80, 180, 180))


def solve(
    subjects: SceneSubjects, request: LayoutRequest, count: int, progress: GraphProgress
) -> tuple[SceneLayouts, list[Scene]]:
    """Layouts with seeds from the request's upwards, and their collages on grey.

    Raises:
        BestiaryError: as `solve_measured`.
        InterruptProcessingException: the user cancelled.
    """
    progress.begin(count)
    layouts = []
    for number in range(count):
        progress.add()
        asked = replace(request, seed=request.seed + number)
        layouts.append(
            solve_measured(subjects.subjects, asked, lambda layout: max(_on_grey(subjects, layout).occlusion))
        )
    progress.finish()
    return SceneLayouts(tuple(layouts), called_by(subjects)), [_on_grey(subjects, layout) for layout in layouts]


def read_text(text: str, subjects: SceneSubjects, request: LayoutRequest) -> tuple[SceneLayouts, str]:
    """A layout from a text, and what had to be done for it, line by line.

    Raises:
        BestiaryError: the text is empty, or as `layout_from_text`.
    """
    if not text.strip():
        raise BestiaryError(
            "the text is empty: connect the answer of a text node to Layout Request, or type boxes such as cat: [10, 20, 100, 80]"
        )
    read = layout_from_text(text, subjects.subjects, request)
    return SceneLayouts((read.layout,), called_by(subjects), read.place), "\n".join(read.notes)


def read_boxes(boxes: object, subjects: SceneSubjects, request: LayoutRequest) -> tuple[SceneLayouts, str]:
    """A layout from boxes as ComfyUI's nodes give them, and what had to be done for it.

    Boxes with a label go to the subject of that name; when none has one they go to the subjects in their order.

    Args:
        boxes: a box `{x, y, width, height}` with or without `label` or `metadata`, a list of them, or a list of such lists, of which
            the first counts.

    Raises:
        BestiaryError: another form, or as `layout_from_boxes`.
    """
    supporters(subjects.subjects)
    listed = _listed(boxes)
    labels = [box_label(box) for box in listed]
    if not any(labels):
        labels = [one.name for one in subjects.subjects] + [f"box {number}" for number in range(len(listed))]
    named = [
        (label or f"box {number}", *box_sides(box))
        for number, (box, label) in enumerate(zip(listed, labels, strict=False), start=1)
    ]
    fitted = layout_from_boxes(named, subjects.subjects, request)
    return SceneLayouts((fitted.layout,), called_by(subjects)), "\n".join(fitted.notes)


def core_boxes(layouts: SceneLayouts) -> list[list[dict[str, object]]]:
    """Boxes of every layout from back to front, in whole pixels, as ComfyUI's own nodes write them."""
    return [
        [
            {
                "x": round(box.x),
                "y": round(box.y),
                "width": round(box.width),
                "height": round(box.height),
                "label": box.name,
                "metadata": {"type": "obj", "text": "", "desc": box.name, "palette": []},
            }
            for box in boxes_of(layout)
        ]
        for layout in layouts.layouts
    ]


def layouts_text(layouts: Sequence[SceneLayout]) -> str:
    """One layout as its JSON, several as a list of them."""
    if len(layouts) == 1:
        return layouts[0].to_json()
    return json.dumps([json.loads(layout.to_json()) for layout in layouts], indent=1, ensure_ascii=False)


def draw_layouts(scenes: Sequence[Scene]) -> Tensor:
    """Pictures `(B, H, W, 3)` of scenes with the box of every subject and its name."""
    return as_tensor([_drawn(scene) for scene in scenes])


def _on_grey(subjects: SceneSubjects, layout: SceneLayout) -> Scene:
    grey = np.full((layout.height, layout.width, 3), _GREY, np.uint8)
    return compose(subjects.subjects, layout, grey, CollageOptions(shadow=0))


def _drawn(scene: Scene) -> np.ndarray:
    """The collage `(H, W, 3)` with frames."""
    picture = Image.fromarray(scene.picture)
    scale = PREVIEW_EDGE / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    draw = ImageDraw.Draw(picture)
    for number, one in enumerate(painted(scene.layout)):
        colour = _COLOURS[number % len(_COLOURS)]
        left, top = one.x * scale, one.y * scale
        draw.rectangle((left, top, (one.x + one.width) * scale, one.foot * scale), outline=colour, width=2)
        draw.text((left + 4, top + 2), one.subject, fill=colour)
    return np.asarray(picture)


def _listed(boxes: object) -> list[Mapping]:
    if isinstance(boxes, Mapping):
        return [boxes]
    # one list per picture: a layout is of one
    if isinstance(boxes, list) and boxes and isinstance(boxes[0], list):
        boxes = boxes[0]
    if not isinstance(boxes, list) or not boxes or not all(isinstance(box, Mapping) for box in boxes):
        raise BestiaryError(
            f"boxes are {str(boxes)[:80]!r}: connect boxes with x, y, width and height, such as those of a detection node"
        )
    return boxes


def box_label(box: Mapping) -> str:
    """The name that a box carries, or nothing."""
    written = box.get("metadata")
    more = written if isinstance(written, Mapping) else {}
    for value in (box.get("label"), more.get("label"), more.get("desc"), more.get("text")):
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""


def box_sides(box: Mapping) -> tuple[float, float, float, float]:
    try:
        return float(box["x"]), float(box["y"]), float(box["width"]), float(box["height"])
    except (KeyError, TypeError, ValueError) as fault:
        raise BestiaryError(
            f"box {str(box)[:80]!r} has no numbers x, y, width and height: connect other boxes"
        ) from fault


def checked_subjects(subjects: SceneSubjects) -> tuple[Subject, ...]:
    """The subjects of a scene, which can stand together.

    Raises:
        BestiaryError: as `supporters`.
    """
    supporters(subjects.subjects)
    return subjects.subjects
