"""Scenes, as graph blocks: composed, painted by any model in between, restored; prompts by region."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..host.comfy_version import schema
from ..host.socket_types import (
    ComposedScenes,
    LayersSocket,
    LayoutsSocket,
    SceneLayouts,
    ScenesSocket,
    SceneSubjects,
)
from .layout_nodes import SHARE, subjects_input
from .subject_nodes import CATEGORY

if TYPE_CHECKING:
    from torch import Tensor

    from ..host.comfy_objects import Clip

MODES = ["photo", "blur", "noise", "plain"]
EDGE = {"min": 0, "max": 256}


def layouts_input() -> io.Input:
    """Layouts of a scene."""
    return LayoutsSocket.Input("layouts")


class BestiaryComposeScene(io.ComfyNode):
    """Subjects laid over a place, with every mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryComposeScene",
            category=CATEGORY,
            search_aliases=["bestiary", "collage", "composite", "inpaint mask"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                subjects_input(),
                layouts_input(),
                io.Combo.Input("background_mode", options=MODES, default="noise"),
                io.Int.Input("inset", default=5, **EDGE),
                io.Int.Input("feather", default=0, **EDGE),
                io.Float.Input("shadow", default=0.5, **SHARE),
                io.Image.Input("background", optional=True),
                io.Float.Input("lightness", default=0.0, optional=True, **SHARE),
            ],
            outputs=[
                io.Image.Output("image"),
                io.Mask.Output("subject_mask"),
                io.Mask.Output("repaint_mask"),
                io.Mask.Output("each_mask"),
                LayersSocket.Output("layers", is_output_list=True),
                ScenesSocket.Output("scenes"),
            ],
        )

    @classmethod
    def execute(
        cls,
        subjects: SceneSubjects,
        layouts: SceneLayouts,
        background_mode: str,
        inset: int,
        feather: int,
        shadow: float,
        background: Tensor | None = None,
        lightness: float = 0.0,
    ) -> io.NodeOutput:
        from ...scenes.collage import CollageOptions
        from ..host.graph_progress import GraphProgress
        from . import scene_making as making

        scenery, options = making.Scenery(background_mode, background), CollageOptions(shadow, lightness, inset)
        scenes = making.compose_all(subjects, layouts, scenery, options, GraphProgress(cls.hidden.unique_id))
        return io.NodeOutput(
            making.scene_images(scenes),
            making.subject_masks(scenes),
            making.repaint_masks(scenes, inset, feather),
            making.masks_of_each(scenes),
            [making.layers_document(scene) for scene in scenes],
            ComposedScenes(tuple(scenes), options),
        )


class BestiaryRestoreSubjects(io.ComfyNode):
    """The subjects as they were, over what a model made of the scene."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryRestoreSubjects",
            category=CATEGORY,
            search_aliases=["bestiary", "paste back", "keep identity"],
            inputs=[
                io.Image.Input("decoded"),
                io.Image.Input("canvas"),
                io.Mask.Input("mask"),
                io.Int.Input("feather", default=4, **EDGE),
                io.Float.Input("lightness", default=0.0, **SHARE),
            ],
            outputs=[io.Image.Output("image")],
        )

    @classmethod
    def execute(cls, decoded: Tensor, canvas: Tensor, mask: Tensor, feather: int, lightness: float) -> io.NodeOutput:
        from .scene_making import restore

        return io.NodeOutput(restore(decoded, canvas, mask, feather, lightness))


class BestiarySceneRegions(io.ComfyNode):
    """A prompt for every subject's place in the picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiarySceneRegions",
            category=CATEGORY,
            search_aliases=["bestiary", "regional prompt", "two characters", "attention couple"],
            inputs=[
                io.Clip.Input("clip"),
                layouts_input(),
                io.String.Input("text", default="a photo of {subject} {place}", multiline=True, dynamic_prompts=False),
                io.Int.Input("feather", default=16, min=0, max=512),
                io.Float.Input("strength", default=1.0, **SHARE),
                io.String.Input("place", default="", optional=True),
            ],
            outputs=[
                io.Conditioning.Output("conditioning"),
            ],
        )

    @classmethod
    def execute(
        cls, clip: Clip, layouts: SceneLayouts, text: str, feather: int, strength: float, place: str = ""
    ) -> io.NodeOutput:
        from .region_prompts import region_conditioning

        return io.NodeOutput(region_conditioning(clip, layouts, text, place, feather, strength))


NODES: list[type[io.ComfyNode]] = [BestiaryComposeScene, BestiaryRestoreSubjects, BestiarySceneRegions]
