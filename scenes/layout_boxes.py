"""Layouts as plain boxes and back."""

from __future__ import annotations

from collections.abc import Sequence

from .layout_measures import painted
from .layout_repair import FittedLayout, NamedBox, fit_boxes
from .layout_request import LayoutRequest
from .scene_layout import SceneLayout
from .subject import Subject


def boxes_of(layout: SceneLayout) -> list[NamedBox]:
    """The boxes of a layout from back to front, in pixels; the upright ones of subjects that are turned."""
    return [
        NamedBox(one.subject, one.x, one.y, one.width, one.height, one.turn, one.flip, one.z) for one in painted(layout)
    ]


def layout_from_boxes(
    boxes: Sequence[tuple[str, float, float, float, float]], subjects: Sequence[Subject], request: LayoutRequest
) -> FittedLayout:
    """A layout from `(name, x, y, width, height)` in pixels of the request's canvas, x and y from the left and the top.

    Names are matched to subjects by name. Subjects are painted in the order of their feet, unless all boxes are `NamedBox` with a z.
    What had to be left out, added or moved stands in the notes.

    Raises:
        BestiaryError: as `fit_boxes`.
    """
    return fit_boxes([NamedBox(*box) for box in boxes], subjects, request, "boxes")
