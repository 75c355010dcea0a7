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
    return LayoutsSocket.Input("layouts", tooltip="Where every subject stands, from any layout node.")


class BestiaryComposeScene(io.ComfyNode):
    """Subjects laid over a place, with every mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryComposeScene",
            display_name="Compose Scene",
            category=CATEGORY,
            description=(
                "Lays the subjects of every layout over a background, with contact shadows and all masks. In masks 1 is the "
                "subject; the repaint mask is 1 where a model may paint."
            ),
            search_aliases=["bestiary", "collage", "composite", "inpaint mask"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                subjects_input(),
                layouts_input(),
                io.Combo.Input(
                    "background_mode",
                    options=MODES,
                    default="noise",
                    tooltip="photo and blur take the picture connected to background; noise and plain need none.",
                ),
                io.Int.Input(
                    "inset",
                    default=5,
                    tooltip="Pixels of a subject's edge that the repaint mask includes.",
                    **EDGE,
                ),
                io.Int.Input(
                    "feather",
                    default=0,
                    tooltip="Pixels over which the repaint mask fades, inside the subjects.",
                    **EDGE,
                ),
                io.Float.Input(
                    "shadow", default=0.5, tooltip="Darkness of the contact shadow below subjects; 0 for none.", **SHARE
                ),
                io.Image.Input(
                    "background",
                    optional=True,
                    tooltip="Pictures of places; the seed of each layout chooses one. Fitted to the canvas.",
                ),
                io.Float.Input(
                    "lightness",
                    default=0.0,
                    optional=True,
                    tooltip="How far subjects take on the lightness of their place; 0 keeps their pixels exact.",
                    **SHARE,
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The scene, one picture per layout."),
                io.Mask.Output(
                    "subject_mask", display_name="subjects", tooltip="1 where any subject is, one per layout."
                ),
                io.Mask.Output(
                    "repaint_mask", display_name="repaint", tooltip="1 where a model may paint, for inpainting nodes."
                ),
                io.Mask.Output(
                    "each_mask",
                    display_name="each subject",
                    tooltip="One mask per subject, 1 where it can be seen, in the order of the layout; then those of the next layout.",
                ),
                LayersSocket.Output(
                    "layers",
                    display_name="layers",
                    is_output_list=True,
                    tooltip="The scene as ComfyUI's layers, for its compositor; one document per layout.",
                ),
                ScenesSocket.Output("scenes", display_name="scenes", tooltip="All of it, for Save Scene Set."),
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
            display_name="Restore Subjects",
            category=CATEGORY,
            description=(
                "Puts the subjects of a scene back into a painted picture, exact to the pixel inside their edge. Every model "
                "changes them a little, even behind a mask."
            ),
            search_aliases=["bestiary", "paste back", "keep identity"],
            inputs=[
                io.Image.Input("decoded", tooltip="What the model painted, from VAE Decode."),
                io.Image.Input("canvas", tooltip="The scene before it was painted, from Compose Scene."),
                io.Mask.Input("mask", tooltip="1 where a subject is: the output subjects of Compose Scene."),
                io.Int.Input(
                    "feather",
                    default=4,
                    tooltip="Pixels inside the subjects' edge over which the two pictures pass into each other.",
                    **EDGE,
                ),
                io.Float.Input(
                    "lightness",
                    default=0.0,
                    tooltip="How far subjects follow a place that became lighter or darker; 0 keeps their pixels exact.",
                    **SHARE,
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The painted scene with its own subjects.")
            ],
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
            display_name="Scene Regions",
            category=CATEGORY,
            description=(
                "Writes a prompt for each subject and limits it to the subject's box, with one prompt for the rest of the "
                "picture. Keeps learned creatures apart that one prompt would mix."
            ),
            search_aliases=["bestiary", "regional prompt", "two characters", "attention couple"],
            inputs=[
                io.Clip.Input("clip", tooltip="CLIP of the model; with a part dictionary, words may hold part tokens."),
                layouts_input(),
                io.String.Input(
                    "text",
                    default="a photo of {subject} {place}",
                    multiline=True,
                    dynamic_prompts=False,
                    tooltip="Prompt of every region: {subject} becomes the subject's words, {place} the place.",
                ),
                io.Int.Input(
                    "feather",
                    default=16,
                    min=0,
                    max=512,
                    tooltip="Width of the soft edge of a region, in pixels.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    tooltip="Share of a subject's own prompt inside its region; the rest is the prompt of the whole picture.",
                    **SHARE,
                ),
                io.String.Input(
                    "place",
                    default="",
                    optional=True,
                    tooltip="Words for {place}, such as in a garden; empty takes what a language model wrote, if one did.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning", display_name="CONDITIONING", tooltip="For the positive input of any sampler."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, clip: Clip, layouts: SceneLayouts, text: str, feather: int, strength: float, place: str = ""
    ) -> io.NodeOutput:
        from .region_prompts import region_conditioning

        return io.NodeOutput(region_conditioning(clip, layouts, text, place, feather, strength))


NODES: list[type[io.ComfyNode]] = [BestiaryComposeScene, BestiaryRestoreSubjects, BestiarySceneRegions]
