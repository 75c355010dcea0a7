"""Layouts of scenes, as graph blocks: solved, from text, from boxes, and boxes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    return SubjectsSocket.Input("subjects", tooltip="What the scene is made of, from Scene Subject.")


def layouts_output() -> io.Output:
    """Layouts that a node made."""
    return LayoutsSocket.Output("layouts", display_name="layouts", tooltip="Where every subject stands.")


def _canvas_inputs() -> list[io.Input]:
    side = {"default": 768, "min": 64, "max": MOST_SIDE, "step": 8}
    return [
        io.Int.Input("width", tooltip="Width of the canvas in pixels.", **side),
        io.Int.Input("height", tooltip="Height of the canvas in pixels.", **side),
    ]


def _seed_input(**extras: bool) -> io.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=2**53 - 1,
        tooltip="The same seed gives the same layout, to the last bit.",
        **extras,
    )


def _limit_inputs() -> list[io.Input]:
    """Limits of what was read, which the solver repairs by."""
    return [
        _seed_input(optional=True),
        io.Float.Input(
            "max_occlusion",
            default=0.15,
            optional=True,
            tooltip="Largest share of a subject that others may hide; boxes that overlap more are moved apart.",
            **SHARE,
        ),
    ]


def _request(width: int, height: int, seed: int, max_occlusion: float) -> LayoutRequest:
    from ...scenes.layout_request import LayoutRequest

    return LayoutRequest(width, height, seed, max_occlusion=max_occlusion)


class BestiarySolveLayout(io.ComfyNode):
    """Subjects on a canvas, by chance and within limits."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiarySolveLayout",
            display_name="Solve Layout",
            category=CATEGORY,
            description=(
                "Places subjects on a canvas by chance: on the ground, in the right size against each other, none hidden by "
                "more than the limit. The same seed gives the same layout."
            ),
            search_aliases=["bestiary", "arrange", "random layout", "scene layout"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                subjects_input(),
                *_canvas_inputs(),
                io.Int.Input(
                    "count", default=1, min=1, max=1000, tooltip="Number of layouts, with seeds from seed upwards."
                ),
                _seed_input(),
                io.Float.Input(
                    "coverage",
                    default=0.22,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Largest share of the canvas that the boxes of all subjects take together.",
                ),
                io.Float.Input(
                    "max_occlusion", default=0.15, tooltip="Largest share of a subject that others may hide.", **SHARE
                ),
                io.Float.Input(
                    "ground",
                    default=0.62,
                    tooltip="Where the ground begins at its far side, as a share of the height from the top.",
                    **SHARE,
                ),
                io.Float.Input(
                    "perspective",
                    default=0.3,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    tooltip="How much smaller subjects at the far side of the ground are; 0 keeps all sizes exact.",
                ),
                io.Boolean.Input("flip", default=True, tooltip="Mirror some subjects left to right, by chance."),
                io.Float.Input(
                    "ground_near",
                    default=0.97,
                    optional=True,
                    tooltip="Where the ground ends at its near side, as a share of the height from the top.",
                    **SHARE,
                ),
                io.Float.Input(
                    "turn",
                    default=0.0,
                    min=0.0,
                    max=180.0,
                    step=1.0,
                    optional=True,
                    tooltip="Turn subjects by chance up to this many degrees to either side.",
                ),
            ],
            outputs=[
                layouts_output(),
                io.Image.Output(
                    "preview", display_name="preview", tooltip="Every layout with the boxes of its subjects."
                ),
                io.String.Output(
                    "json", display_name="json", tooltip="The layouts as JSON, which Layout from Text reads."
                ),
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
            display_name="Layout Request",
            category=CATEGORY,
            description=(
                "Writes the question that asks a language model for a layout. Connect it to any text generation node, and "
                "that node's answer to Layout from Text."
            ),
            search_aliases=["bestiary", "llm layout", "prompt for layout"],
            inputs=[
                subjects_input(),
                io.String.Input(
                    "place", default="in a garden", tooltip="Where the scene is; empty leaves it to the model."
                ),
                *_canvas_inputs(),
            ],
            outputs=[io.String.Output("request", display_name="request", tooltip="The question, for a text node.")],
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
            display_name="Layout from Text",
            category=CATEGORY,
            description=(
                "Reads a layout from text: the answer of a language model, JSON of Solve Layout, or lines such as "
                "cat: [10, 20, 100, 80]. Faults are repaired and listed; program code is never run."
            ),
            search_aliases=["bestiary", "llm layout", "parse layout"],
            inputs=[
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip="Names with boxes [left, top, width, height]; words around them do not matter.",
                ),
                subjects_input(),
                *_canvas_inputs(),
                *_limit_inputs(),
            ],
            outputs=[
                layouts_output(),
                io.String.Output(
                    "notes", display_name="notes", tooltip="What had to be added, moved or left out, line by line."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        text: str,
        subjects: SceneSubjects,
        width: int,
        height: int,
        seed: int = 0,
        max_occlusion: float = 0.15,
    ) -> io.NodeOutput:
        from .layout_solving import read_text

        layouts, notes = read_text(text, subjects, _request(width, height, seed, max_occlusion))
        return io.NodeOutput(layouts, notes, ui=ui.PreviewText(notes or "read as it is"))


class BestiaryLayoutFromBoxes(io.ComfyNode):
    """ComfyUI's own boxes become a layout."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryLayoutFromBoxes",
            display_name="Layout from Boxes",
            category=CATEGORY,
            description=(
                "Makes a layout of boxes that were drawn or detected. Boxes with a label go to the subject of that name, "
                "others to the subjects in their order."
            ),
            search_aliases=["bestiary", "bounding box", "bbox"],
            inputs=[
                BoundingBoxSocket.Input(
                    "boxes", tooltip="Boxes in pixels of the canvas, from any node that gives some."
                ),
                subjects_input(),
                *_canvas_inputs(),
                *_limit_inputs(),
            ],
            outputs=[
                layouts_output(),
                io.String.Output(
                    "notes", display_name="notes", tooltip="What had to be added, moved or left out, line by line."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        boxes: object,
        subjects: SceneSubjects,
        width: int,
        height: int,
        seed: int = 0,
        max_occlusion: float = 0.15,
    ) -> io.NodeOutput:
        from .layout_solving import read_boxes

        layouts, notes = read_boxes(boxes, subjects, _request(width, height, seed, max_occlusion))
        return io.NodeOutput(layouts, notes, ui=ui.PreviewText(notes or "taken as they are"))


class BestiaryLayoutBoxes(io.ComfyNode):
    """A layout becomes ComfyUI's own boxes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryLayoutBoxes",
            display_name="Boxes of Layout",
            category=CATEGORY,
            description="Gives the boxes of a layout to any node that takes bounding boxes, from back to front.",
            search_aliases=["bestiary", "bounding box", "bbox"],
            inputs=[LayoutsSocket.Input("layouts", tooltip="From any layout node.")],
            outputs=[
                BoundingBoxSocket.Output(
                    "boxes", display_name="boxes", tooltip="One list of boxes with labels for every layout, in pixels."
                )
            ],
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
