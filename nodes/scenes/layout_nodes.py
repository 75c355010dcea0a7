"""Layouts of scenes, as graph blocks: solved, from text, from boxes, and boxes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..host.comfy_version import schema
from ..host.socket_types import BoundingBoxSocket, LayoutsSocket, SceneLayouts, SceneSubjects, SubjectsSocket
from .subject_nodes import CATEGORY

if TYPE_CHECKING:
    from ...scenes.layout_request import LayoutRequest

MOST_SIDE = 8192
SHARE = {"min": 0.0, "max": 1.0, "step": 0.01}


def subjects_input() -> io.Input:
    """The subjects of a scene."""
    return SubjectsSocket.Input("subjects")


def layouts_output() -> io.Output:
    """Layouts that a node made."""
    return LayoutsSocket.Output("layouts")


def _canvas_inputs() -> list[io.Input]:
    side = {"default": 768, "min": 64, "max": MOST_SIDE, "step": 8}
    return [
        io.Int.Input("width", **side),
        io.Int.Input("height", **side),
    ]


def _seed_input(**extras: bool) -> io.Input:
    return io.Int.Input("seed", default=0, min=0, max=2**53 - 1, **extras)


def _limit_inputs() -> list[io.Input]:
    """Limits of what was read, which the solver repairs by."""
    return [
        _seed_input(optional=True),
        io.Float.Input("max_occlusion", default=0.15, optional=True, **SHARE),
    ]


def _request(width: int, height: int, seed: int = 0, max_occlusion: float = 0.15) -> LayoutRequest:
    from ...scenes.layout_request import LayoutRequest

    return LayoutRequest(width, height, seed, max_occlusion=max_occlusion)


class BestiarySolveLayout(io.ComfyNode):
    """Subjects on a canvas, by chance and within limits."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiarySolveLayout",
            category=CATEGORY,
            search_aliases=["bestiary", "arrange", "random layout", "scene layout"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                subjects_input(),
                *_canvas_inputs(),
                io.Int.Input("count", default=1, min=1, max=1000),
                _seed_input(),
                io.Float.Input("coverage", default=0.22, min=0.01, max=1.0, step=0.01),
                io.Float.Input("max_occlusion", default=0.15, **SHARE),
                io.Float.Input("ground", default=0.62, **SHARE),
                io.Float.Input("perspective", default=0.3, min=0.0, max=0.99, step=0.01),
                io.Boolean.Input("flip", default=True),
                io.Float.Input("ground_near", default=0.97, optional=True, **SHARE),
                io.Float.Input("turn", default=0.0, min=0.0, max=180.0, step=1.0, optional=True),
            ],
            outputs=[
                layouts_output(),
                io.Image.Output("preview"),
                io.String.Output("json"),
            ],
        )

    @classmethod
    def execute(
        cls,
        subjects: SceneSubjects,
        width: int,
        height: int,
        count: int,
        seed: int,
        coverage: float,
        max_occlusion: float,
        ground: float,
        perspective: float,
        flip: bool,
        ground_near: float = 0.97,
        turn: float = 0.0,
    ) -> io.NodeOutput:
        from ...scenes.layout_request import LayoutRequest
        from ..host.graph_progress import GraphProgress
        from .layout_solving import draw_layouts, layouts_text, solve

        band = (ground, ground_near)
        request = LayoutRequest(width, height, seed, coverage, max_occlusion, band, perspective, flip, turn)
        layouts, scenes = solve(subjects, request, count, GraphProgress(cls.hidden.unique_id))
        preview = draw_layouts(scenes)
        shown = ui.PreviewImage(preview, cls=cls)
        return io.NodeOutput(layouts, preview, layouts_text(layouts.layouts), ui=shown)


class BestiaryLayoutRequest(io.ComfyNode):
    """The question for a language model that the graph runs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryLayoutRequest",
            category=CATEGORY,
            search_aliases=["bestiary", "llm layout", "prompt for layout"],
            inputs=[
                subjects_input(),
                io.String.Input("place", default="in a garden"),
                *_canvas_inputs(),
            ],
            outputs=[io.String.Output("request")],
        )

    @classmethod
    def execute(cls, subjects: SceneSubjects, place: str, width: int, height: int) -> io.NodeOutput:
        from ...scenes.layout_text import layout_request

        return io.NodeOutput(layout_request(subjects.subjects, place, width, height))


class BestiaryLayoutFromText(io.ComfyNode):
    """Boxes in a text become a layout."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryLayoutFromText",
            category=CATEGORY,
            search_aliases=["bestiary", "llm layout", "parse layout"],
            inputs=[
                io.String.Input("text", default="", multiline=True),
                subjects_input(),
                *_canvas_inputs(),
                *_limit_inputs(),
            ],
            outputs=[layouts_output(), io.String.Output("notes")],
        )

    @classmethod
    def execute(cls, text: str, subjects: SceneSubjects, **request: Any) -> io.NodeOutput:
        from .layout_solving import read_text

        layouts, notes = read_text(text, subjects, _request(**request))
        return io.NodeOutput(layouts, notes, ui=ui.PreviewText(notes or "read as it is"))


class BestiaryLayoutFromBoxes(io.ComfyNode):
    """ComfyUI's own boxes become a layout."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryLayoutFromBoxes",
            category=CATEGORY,
            search_aliases=["bestiary", "bounding box", "bbox"],
            inputs=[
                # newer frontends would draw fields for one box, with names that the canvas has too
                BoundingBoxSocket.Input("boxes", extra_dict={"forceInput": True}),
                subjects_input(),
                *_canvas_inputs(),
                *_limit_inputs(),
            ],
            outputs=[layouts_output(), io.String.Output("notes")],
        )

    @classmethod
    def execute(cls, boxes: object, subjects: SceneSubjects, **request: Any) -> io.NodeOutput:
        from .layout_solving import read_boxes

        layouts, notes = read_boxes(boxes, subjects, _request(**request))
        return io.NodeOutput(layouts, notes, ui=ui.PreviewText(notes or "taken as they are"))


class BestiaryLayoutBoxes(io.ComfyNode):
    """A layout becomes ComfyUI's own boxes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryLayoutBoxes",
            category=CATEGORY,
            search_aliases=["bestiary", "bounding box", "bbox"],
            inputs=[LayoutsSocket.Input("layouts")],
            outputs=[BoundingBoxSocket.Output("boxes")],
        )

    @classmethod
    def execute(cls, layouts: SceneLayouts) -> io.NodeOutput:
        from .layout_solving import core_boxes

        return io.NodeOutput(core_boxes(layouts))


NODES: list[type[io.ComfyNode]] = [
    BestiarySolveLayout,
    BestiaryLayoutRequest,
    BestiaryLayoutFromText,
    BestiaryLayoutFromBoxes,
    BestiaryLayoutBoxes,
]
