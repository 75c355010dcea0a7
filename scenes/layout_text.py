"""Layouts as text: the question for a language model, and a tolerant reader of what models, people and other tools write."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..concepts.errors import BestiaryError
from ..concepts.name_search import choices_text
from .layout_names import match_names
from .layout_repair import MOST_BOXES, NamedBox, fit_boxes
from .layout_request import LayoutRequest, supporters
from .literal_text import find_values
from .scene_layout import SceneLayout, is_number
from .subject import Subject
from .subject_sizes import relative_sizes

_NAME_KEYS = ("subject", "id", "name", "label", "object", "category", "class", "phrase")
_BOX_KEYS = ("box", "bbox", "bounding_box", "boundingbox", "rect", "position")
_CORNER_KEYS = ("bbox_2d", "box_2d", "xyxy", "box_xyxy", "bbox_xyxy")
_PLACE_KEYS = ("scene", "place", "background", "background prompt", "background_prompt")
_SIDES = (
    ("x", "y", "width", "height"),
    ("x", "y", "w", "h"),
    ("left", "top", "width", "height"),
)
_CORNERS = (("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"), ("xmin", "ymin", "xmax", "ymax"))
_LMD_CANVAS = (512.0, 512.0)
"""That LLM-grounded Diffusion and Gen4Gen ask for boxes on."""
_LONGEST_PLACE = 200
_LINE = re.compile(
    r"^[ \t>#*\-\d.)]{0,12}([^\n:=\[({]{1,80}?)[ \t]{0,4}[:=\-]?[ \t]{0,4}[\[(]([-+\d., \teE]{3,120})[\])]",
    re.MULTILINE,
)
_CANVAS = re.compile(r"canvas\W{0,6}(\d{1,5})\W{1,4}(\d{1,5})", re.IGNORECASE)
_BACKGROUND = re.compile(r"^[ \t*]{0,4}background(?: prompt)?[ \t*]{0,4}:(.{1,400})$", re.MULTILINE | re.IGNORECASE)

Sides = tuple[float, float, float, float]
"""Left, top, width and height."""


class TextLayout(NamedTuple):
    """A layout read from text."""

    layout: SceneLayout
    notes: tuple[str, ...]
    """What was left out, added, assumed or moved, in words."""
    place: str
    """The background that the text names, empty if none."""


@dataclass
class _Found:
    """Boxes of one value of the text."""

    boxes: list[NamedBox] = field(default_factory=list)
    canvas: tuple[float, float] | None = None
    """Width and height that the boxes are measured on, if the text says so."""
    place: str = ""
    tuples: bool = False
    """Whether a box came as `(name, [x, y, w, h])`."""


def layout_from_text(
    text: str, subjects: Sequence[Subject], request: LayoutRequest, canvas: tuple[float, float] | None = None
) -> TextLayout:
    """A layout of exactly the subjects, from text.

    Read are: layouts as `SceneLayout.to_json` writes them; answers to `layout_request`; any JSON of names with boxes, in fences or
    among other words; Python's tuples `('a cat', [x, y, w, h])`, also after `Objects:`; lines `cat: [x, y, w, h]`; COCO
    annotations with their images and categories. Boxes are `[left, top, width, height]`, or corners where a key says so. Names
    are matched to subjects by name. Where a text holds several layouts the one with most of the subjects counts, of equals the last.

    Boxes are measured on `canvas` (width, height), else on the canvas that the text states, else, if no number is above 1, in
    shares of the canvas; tuples else on 512 x 512, and all others on the request's canvas.

    Raises:
        BestiaryError: no box of any subject; program code; more than 100 kB; brackets nested deeper than 64; what `fit_boxes` raises.
    """
    supporters(subjects)
    candidates = _candidates(text)
    best, most = _Found(), 0
    for found in candidates:
        count = len(match_names([box.name for box in found.boxes[:MOST_BOXES]], subjects).places)
        if count and count >= most:
            best, most = found, count
    if not most:
        _refuse(candidates, subjects)
    background = _BACKGROUND.search(text)
    place = best.place or (background.group(1).strip(" *\"'")[:_LONGEST_PLACE] if background else "")
    stated = _CANVAS.search(text)
    if best.canvas is None and stated and min(map(int, stated.groups())) > 0:
        best.canvas = (float(stated.group(1)), float(stated.group(2)))
    (wide, high), assumed = _canvas(best, request, canvas)
    across, down = request.width / wide, request.height / high
    boxes = [
        box._replace(x=box.x * across, y=box.y * down, width=box.width * across, height=box.height * down)
        for box in best.boxes
    ]
    layout, notes = fit_boxes(boxes, subjects, request, "text")
    return TextLayout(layout, (*assumed, *notes), place)


def layout_request(subjects: Sequence[Subject], place: str = "", width: int = 512, height: int = 512) -> str:
    """The question for a language model whose answer `layout_from_text` reads.

    Args:
        subjects: at least one.
        place: where the scene is, such as `in a garden`; empty leaves it open.
        width: of the canvas that the boxes are asked on, in pixels.
        height: likewise.

    Raises:
        BestiaryError: no subject, two of one name, or supporters that cannot be.
    """
    supporters(subjects)
    sizes = relative_sizes(subjects).sizes
    lines = []
    for subject, size in zip(subjects, sizes, strict=True):
        where = {"ground": "stands on the ground", "sky": "is in the air", "any": "may be anywhere"}.get(
            subject.support, f"stands on {_id(subject.support.removeprefix('on:').strip())}"
        )
        lines.append(
            f"- {_id(subject.name)}: {subject.called}; {where}; its longest side is {size:.0%} of the largest one's;"
            f" width : height = {subject.aspect:.2f} : 1"
        )
    answer = {
        "canvas": [width, height],
        "scene": "a short description of the background",
        "objects": [{"id": _id(subject.name), "box": ["left", "top", "width", "height"]} for subject in subjects],
    }
    return "\n".join(
        [
            f"Plan a picture{' ' + place.strip() if place.strip() else ''}. Its canvas is {width} pixels wide and {height} pixels high;"
            " x grows to the right and y downwards, from the top left corner.",
            "These things are in it, each exactly once:",
            *lines,
            "Give every one of them a box that shows all of it. Keep all boxes on the canvas and away from each other; let things on"
            f" the ground end in the lowest {round(height * 0.38)} pixels, the nearer ones lower and larger.",
            "Answer with JSON alone, in this form, with numbers in place of the words for left, top, width and height:",
            json.dumps(answer, ensure_ascii=False),
        ]
    )


def _id(name: str) -> str:
    return re.sub(r"\s+", "_", name.strip())


def _refuse(candidates: Sequence[_Found], subjects: Sequence[Subject]) -> None:
    """Says which boxes there are instead."""
    names = [box.name for found in candidates for box in found.boxes]
    wanted = choices_text("", [subject.name for subject in subjects])
    if not names:
        raise BestiaryError(
            'the text holds no box: write JSON such as {"objects": [{"id": "cat", "box": [left, top, width, height]}]};'
            f" wanted {wanted}"
        )
    found = choices_text("", list(dict.fromkeys(names)))
    raise BestiaryError(f"no box of the text has the name of a subject: found {found}; wanted {wanted}")


def _candidates(text: str) -> list[_Found]:
    """Boxes of every value of the text; single ones also taken together, and those of lines."""
    candidates = []
    singles = _Found()
    for value in find_values(text):
        found = _Found()
        _collect(value, found)
        if len(found.boxes) == 1:
            singles.boxes += found.boxes
            singles.tuples |= found.tuples
            singles.canvas = singles.canvas or found.canvas
            singles.place = singles.place or found.place
        if found.boxes:
            candidates.append(found)
    lines = _Found()
    for line in _LINE.finditer(text):
        sides = _four(list(map(float, re.findall(r"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?", line.group(2)))))
        if sides and len(lines.boxes) <= MOST_BOXES:
            lines.boxes.append(_named_box(line.group(1).strip(" \t\"'`*"), sides))
    # the joined ones first: of equals the last counts, and a value that holds all is better than its pieces
    return [found for found in (lines, singles) if found.boxes] + candidates


def _collect(value: object, found: _Found) -> None:
    """Every named box within a value."""
    if len(found.boxes) > MOST_BOXES:
        return
    if isinstance(value, Mapping):
        _collect_mapping(value, found)
    elif isinstance(value, list | tuple):
        box = _named(value)
        if box:
            found.boxes.append(box)
            found.tuples = True
            return
        for one in value:
            _collect(one, found)


def _named_box(name: str, sides: Sides) -> NamedBox:
    return NamedBox(name, sides[0], sides[1], sides[2], sides[3])


def _named(value: Sequence[object]) -> NamedBox | None:
    """`(name, [x, y, w, h])` or `(name, x, y, w, h)`."""
    if len(value) < 2 or not isinstance(value[0], str):
        return None
    numbers = value[1] if len(value) == 2 else value[1:]
    sides = _four(numbers)
    return _named_box(value[0], sides) if sides else None


def _collect_mapping(value: Mapping[object, object], found: _Found) -> None:
    plain = {str(key).casefold(): entry for key, entry in value.items()}
    if isinstance(plain.get("annotations"), list) and isinstance(plain.get("categories"), list):
        _collect_coco(plain, found)
        return
    name = _text_of(plain, _NAME_KEYS)
    box = _box(plain)
    if name is not None and box is not None:
        turn, flip, z = plain.get("turn"), plain.get("flip"), plain.get("z")
        found.boxes.append(
            NamedBox(
                name,
                *box,
                float(turn) if isinstance(turn, int | float) and is_number(turn) else 0.0,
                flip is True,
                z if isinstance(z, int) and is_number(z) else None,
            )
        )
        return
    if box is not None:
        return
    _note_canvas(plain, found)
    for key, entry in value.items():
        sides = _nameless_box(entry)
        if isinstance(key, str) and sides and key.casefold() not in (*_BOX_KEYS, *_CORNER_KEYS, "canvas"):
            found.boxes.append(_named_box(key, sides))
        else:
            _collect(entry, found)


def _text_of(plain: Mapping[str, object], keys: Sequence[str]) -> str | None:
    return next((entry for entry in map(plain.get, keys) if isinstance(entry, str)), None)


def _note_canvas(plain: Mapping[str, object], found: _Found) -> None:
    """What a mapping says of the canvas and the place."""
    canvas = plain.get("canvas", plain)
    named = [canvas.get("width"), canvas.get("height")] if isinstance(canvas, Mapping) else canvas
    sides = [float(side) for side in named if is_number(side)] if isinstance(named, list | tuple) else []
    if isinstance(named, list | tuple) and len(named) == len(sides) == 2 and min(sides) > 0 and found.canvas is None:
        found.canvas = (sides[0], sides[1])
    place = _text_of(plain, _PLACE_KEYS) or ""
    found.place = found.place or place.strip()[:_LONGEST_PLACE]


def _box(plain: Mapping[str, object]) -> Sides | None:
    """Left, top, width and height of a mapping with a box, under one of the usual keys."""
    for key in (*_BOX_KEYS, *_CORNER_KEYS):
        inner = plain.get(key)
        if sides := _four(inner):
            return _from_corners(sides) if key in _CORNER_KEYS else sides
        if isinstance(inner, Mapping) and (box := _box_of_sides(inner)):
            return box
    return _box_of_sides(plain)


def _nameless_box(entry: object) -> Sides | None:
    """A box that is known by the key it stands under: four numbers, or a mapping of sides or corners without a name."""
    if sides := _four(entry):
        return sides
    if isinstance(entry, Mapping) and not any(isinstance(entry.get(key), str) for key in _NAME_KEYS):
        return _box_of_sides(entry)
    return None


def _box_of_sides(plain: Mapping[str, object]) -> Sides | None:
    for keys in (*_SIDES, *_CORNERS):
        if sides := _four([plain.get(key) for key in keys]):
            return _from_corners(sides) if keys in _CORNERS else sides
    return None


def _from_corners(corners: Sides) -> Sides:
    left, top, right, bottom = corners
    return left, top, right - left, bottom - top


def _four(value: object) -> Sides | None:
    """A list of four numbers."""
    if not isinstance(value, list | tuple) or len(value) != 4 or not all(map(is_number, value)):
        return None
    first, second, third, fourth = map(float, value)
    return first, second, third, fourth


def _collect_coco(content: Mapping[str, object], found: _Found) -> None:
    """Boxes of the first picture of a COCO file that has any, with that picture's size as canvas."""
    names = {one.get("id"): one.get("name") for one in _mappings(content["categories"])}
    pictures = {one.get("id"): one for one in _mappings(content.get("images"))}
    first: object = None
    for one in _mappings(content["annotations"]):
        box, name = _four(one.get("bbox")), names.get(_key(one.get("category_id")))
        if box is None or not isinstance(name, str) or len(found.boxes) > MOST_BOXES:
            continue
        if not found.boxes:
            first = _key(one.get("image_id"))
        if _key(one.get("image_id")) == first:
            found.boxes.append(_named_box(name, box))
    _note_canvas({key: pictures.get(first, {}).get(key) for key in ("width", "height")}, found)


def _mappings(value: object) -> Iterator[Mapping[str, object]]:
    """The mappings of a list whose ids can be looked up."""
    if isinstance(value, list | tuple):
        yield from (one for one in value if isinstance(one, Mapping) and _key(one.get("id")) == one.get("id"))


def _key(value: object) -> object:
    return value if isinstance(value, int | str) else None


def _canvas(
    found: _Found, request: LayoutRequest, canvas: tuple[float, float] | None
) -> tuple[tuple[float, float], tuple[str, ...]]:
    """Width and height that the boxes are measured on, and what was assumed about it."""
    if canvas is not None:
        if len(canvas) != 2 or not all(is_number(side) and side > 0 for side in canvas):
            raise BestiaryError(f"the canvas of a text, {canvas}, must be a width and a height above 0")
        return canvas, ()
    if found.canvas is not None:
        return found.canvas, ()
    if all(box.x + box.width <= 1.001 and box.y + box.height <= 1.001 for box in found.boxes):
        return (1.0, 1.0), ()
    fits = all(box.x + box.width <= 512 and box.y + box.height <= 512 for box in found.boxes)
    if found.tuples and fits and (request.width, request.height) != _LMD_CANVAS:
        return _LMD_CANVAS, ("tuples without a canvas: read as on 512 x 512",)
    return (float(request.width), float(request.height)), ()
