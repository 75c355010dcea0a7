"""Captions, checks, references and sets of scenes, as graph blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ..host.comfy_version import schema
from ..host.socket_types import ComposedScenes, SceneLayouts, ScenesSocket, SceneSubjects
from .layout_nodes import subjects_input
from .scene_nodes import layouts_input
from .subject_nodes import CATEGORY

if TYPE_CHECKING:
    from torch import Tensor

VIEWS = ["none", "kohya", "ai-toolkit", "onetrainer", "simpletuner", "musubi", "diffusers", "custom-diffusion", "coco"]
VIEWS += ["comfyui", "edit", "layers"]
"""Trainers and loaders that sets are written for."""


class BestiarySceneCaption(io.ComfyNode):
    """A scene in words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiarySceneCaption",
            display_name="Scene Caption",
            category=CATEGORY,
            description=(
                "Writes a caption for every layout: a photo of a cat and two dogs in a garden. Equal subjects are counted; "
                "trigger words and part tokens stand where training needs them."
            ),
            search_aliases=["bestiary", "caption", "dataset text"],
            inputs=[
                subjects_input(),
                layouts_input(),
                io.String.Input(
                    "template",
                    default="a photo of {subjects} {place}",
                    dynamic_prompts=False,
                    tooltip="Text with {subjects} and, where it is wanted, {place}.",
                ),
                io.String.Input(
                    "place",
                    default="",
                    tooltip="Words for {place}, such as in a garden; empty takes what a language model wrote, if one did.",
                ),
                io.Boolean.Input(
                    "relations", default=False, tooltip="Also say who stands left of, in front of or on whom."
                ),
                io.String.Input(
                    "triggers",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Trigger words for other trainers, one per line: cat = sks.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "captions",
                    display_name="captions",
                    is_output_list=True,
                    tooltip="Plain words and trigger words, one caption per layout.",
                ),
                io.String.Output(
                    "prompts",
                    display_name="prompts",
                    is_output_list=True,
                    tooltip="The same with the part tokens of the subjects, for our own training.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        subjects: SceneSubjects,
        layouts: SceneLayouts,
        template: str,
        place: str,
        relations: bool,
        triggers: str = "",
    ) -> io.NodeOutput:
        from ...scenes.scene_captions import CaptionOptions
        from .scene_sets import captions_of, triggers_of

        named = triggers_of(triggers, [one.name for one in subjects.subjects])
        return io.NodeOutput(
            *captions_of(subjects, layouts, place, CaptionOptions(template, named, relations=relations))
        )


class BestiaryJudgeScene(io.ComfyNode):
    """Painted scenes that can be kept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryJudgeScene",
            display_name="Judge Scene",
            category=CATEGORY,
            description=(
                "Measures painted scenes against their collage and keeps the good ones: subjects unchanged, no seams, no empty "
                "place, nothing extra beside the subjects."
            ),
            search_aliases=["bestiary", "quality gate", "psnr", "filter"],
            inputs=[
                io.Image.Input("image", tooltip="Painted scenes, from VAE Decode or Restore Subjects."),
                io.Image.Input("canvas", tooltip="The scenes before they were painted, from Compose Scene."),
                io.Mask.Input("mask", tooltip="1 where a subject is: the output subjects of Compose Scene."),
                io.Float.Input(
                    "min_fidelity",
                    default=30.0,
                    min=0.0,
                    max=99.0,
                    step=0.5,
                    tooltip="Smallest likeness of the subjects before and after, in dB; 99 is exact.",
                ),
                io.Float.Input(
                    "max_seam",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How many times harder than in the collage the subjects' edge may be.",
                ),
                io.Float.Input(
                    "min_place",
                    default=0.02,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Smallest variation of the place's colours; less is an empty picture.",
                ),
                io.Float.Input(
                    "max_extra",
                    default=0.1,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Largest area of a thing beside the subjects, as a share of theirs; needs things.",
                ),
                io.Mask.Input(
                    "things",
                    optional=True,
                    tooltip="1 wherever a segmentation node sees a thing in the painted picture, such as Cut Out Subject.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "kept", display_name="kept", tooltip="The pictures without fault; all if none is left."
                ),
                io.Boolean.Output("passed", display_name="passed", tooltip="Whether any picture is without fault."),
                io.Float.Output("fidelity", display_name="fidelity", tooltip="Lowest likeness of the subjects, in dB."),
                io.String.Output("report", display_name="report", tooltip="Figures and reasons, one line per picture."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        canvas: Tensor,
        mask: Tensor,
        min_fidelity: float,
        max_seam: float,
        min_place: float,
        max_extra: float,
        things: Tensor | None = None,
    ) -> io.NodeOutput:
        from ...scenes.scene_gate import SceneLimits
        from .scene_sets import judge_all, judged_text, kept_pictures

        judged = judge_all(image, canvas, mask, SceneLimits(min_fidelity, max_seam, min_place, max_extra), things)
        passed, report = any(not one.faults for one in judged), judged_text(judged)
        fidelity = min(one.fidelity for one in judged)
        return io.NodeOutput(kept_pictures(image, judged), passed, fidelity, report, ui=ui.PreviewText(report))


class BestiarySubjectReferences(io.ComfyNode):
    """Pictures of the subjects for models that edit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiarySubjectReferences",
            display_name="Subject References",
            category=CATEGORY,
            description=(
                "Gives a picture of every subject on white and an instruction, for edit models such as Qwen-Image-Edit or "
                "Kontext. Shows another picture of a subject where there is one."
            ),
            search_aliases=["bestiary", "reference image", "edit model"],
            inputs=[
                subjects_input(),
                layouts_input(),
                io.Int.Input(
                    "size", default=512, min=64, max=2048, step=8, tooltip="Largest side of a picture, in pixels."
                ),
            ],
            outputs=[
                io.Image.Output(
                    "references",
                    display_name="references",
                    is_output_list=True,
                    tooltip="One picture per subject of the first layout, in its order.",
                ),
                io.String.Output(
                    "instruction", display_name="instruction", tooltip="Such as: put the cat of picture 1 in a garden."
                ),
            ],
        )

    @classmethod
    def execute(cls, subjects: SceneSubjects, layouts: SceneLayouts, size: int) -> io.NodeOutput:
        from .scene_sets import references

        return io.NodeOutput(*references(subjects, layouts, size))


class BestiarySaveSceneSet(io.ComfyNode):
    """Scenes as a training set on disk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiarySaveSceneSet",
            display_name="Save Scene Set",
            category=CATEGORY,
            description=(
                "Writes scenes as a training set: pictures, captions, masks, label maps, boxes. Run again, it adds what is new; "
                "nothing in the set is overwritten."
            ),
            search_aliases=["bestiary", "dataset", "export kohya", "training data"],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                ScenesSocket.Input("scenes", tooltip="From Compose Scene."),
                io.String.Input(
                    "captions", force_input=True, tooltip="One caption per scene, from Scene Caption or any text node."
                ),
                io.String.Input("name", default="scenes", tooltip="Name of the set's folder."),
                io.Combo.Input(
                    "target",
                    options=["output", "input"],
                    default="output",
                    tooltip="Write below ComfyUI's output folder, or its input folder for its own training nodes.",
                ),
                io.Combo.Input(
                    "view",
                    options=VIEWS,
                    default="none",
                    tooltip="Also arrange the set as a trainer reads it, with its configuration file.",
                ),
                io.String.Input(
                    "prompts", force_input=True, optional=True, tooltip="Captions with part tokens, from Scene Caption."
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="Painted scenes in place of the collages, from Restore Subjects."
                ),
                io.String.Input(
                    "place",
                    default="",
                    optional=True,
                    tooltip="Words for the place of the scenes, such as in a garden.",
                ),
            ],
            outputs=[
                io.String.Output("folder", display_name="folder", tooltip="Where the set, or its view, was written."),
                io.Int.Output("count", display_name="count", tooltip="Number of scenes in the set."),
            ],
        )

    @classmethod
    def execute(
        cls,
        scenes: list[ComposedScenes],
        captions: list[str],
        name: list[str],
        target: list[str],
        view: list[str],
        prompts: list[str] | None = None,
        image: list[Tensor] | None = None,
        place: list[str] | None = None,
    ) -> io.NodeOutput:
        import torch

        from ..host.graph_progress import GraphProgress
        from .scene_sets import joined_scenes, save_set, set_folder

        texts = {"captions": captions, "prompts": prompts or []}
        pictures = None if image is None else torch.cat([one[..., :3] for one in image])
        where = (place or [""])[0]
        folder, count = save_set(
            joined_scenes(scenes),
            texts,
            where,
            pictures,
            set_folder(name[0], target[0]),
            view[0],
            GraphProgress(cls.hidden.unique_id),
        )
        return io.NodeOutput(str(folder), count, ui=ui.PreviewText(f"{count} scenes in {folder}"))


NODES: list[type[io.ComfyNode]] = [
    BestiarySceneCaption,
    BestiaryJudgeScene,
    BestiarySubjectReferences,
    BestiarySaveSceneSet,
]
