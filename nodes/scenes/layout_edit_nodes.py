"""Layouts changed by hand, as a graph block with an editor in the browser."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.comfy_version import schema
from ..host.socket_types import LayoutsSocket, SceneLayouts, SceneSubjects
from .layout_nodes import subjects_input
from .scene_nodes import layouts_input
from .subject_nodes import CATEGORY


class BestiaryEditLayout(io.ComfyNode):
    """A layout that people drag."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryEditLayout",
            category=CATEGORY,
            search_aliases=["bestiary", "drag subjects", "move", "arrange"],
            is_output_node=True,
            inputs=[
                layouts_input(),
                subjects_input(),
                io.String.Input("edits", default="", multiline=True, dynamic_prompts=False),
            ],
            outputs=[
                LayoutsSocket.Output("edited"),
            ],
        )

    @classmethod
    def execute(cls, layouts: SceneLayouts, subjects: SceneSubjects, edits: str) -> io.NodeOutput:
        from .layout_editing import edited, shown_layouts

        changed = edited(layouts, subjects, edits)
        return io.NodeOutput(changed, ui={"bestiary_layout": [shown_layouts(layouts, subjects)]})


NODES: list[type[io.ComfyNode]] = [BestiaryEditLayout]
