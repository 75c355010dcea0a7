"""Captions, checks, references and sets of scenes, as graph blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ..host.comfy_version import schema
from ..host.socket_types import BoundingBoxSocket, ComposedScenes, SceneLayouts, ScenesSocket, SceneSubjects
from .layout_nodes import subjects_input
from .scene_nodes import layouts_input
from .subject_nodes import CATEGORY

if TYPE_CHECKING:
    from torch import Tensor

    from ..host.comfy_objects import Clip
    from .scene_scoring import ClipVision

VIEWS = ["none", "kohya", "ai-toolkit", "onetrainer", "simpletuner", "musubi", "diffusers", "custom-diffusion", "coco"]
VIEWS += ["comfyui", "edit", "layers"]
"""Trainers and loaders that sets are written for."""


class BestiarySceneCaption(io.ComfyNode):
    """A scene in words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiarySceneCaption",
            category=CATEGORY,
            search_aliases=["bestiary", "caption", "dataset text"],
            inputs=[
                subjects_input(),
                layouts_input(),
                io.String.Input("template", default="a photo of {subjects} {place}", dynamic_prompts=False),
                io.String.Input("place", default=""),
                io.Boolean.Input("relations", default=False),
                io.String.Input("triggers", default="", multiline=True, optional=True),
            ],
            outputs=[
                io.String.Output("captions", is_output_list=True),
                io.String.Output("prompts", is_output_list=True),
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
            category=CATEGORY,
            search_aliases=["bestiary", "quality gate", "psnr", "filter"],
            inputs=[
                io.Image.Input("image"),
                io.Image.Input("canvas"),
                io.Mask.Input("mask"),
                io.Float.Input("min_fidelity", default=30.0, min=0.0, max=99.0, step=0.5),
                io.Float.Input("max_seam", default=4.0, min=0.0, max=100.0, step=0.1),
                io.Float.Input("min_place", default=0.02, min=0.0, max=1.0, step=0.01),
                io.Float.Input("max_extra", default=0.1, min=0.0, max=10.0, step=0.01),
                io.Mask.Input("things", optional=True),
            ],
            outputs=[
                io.Image.Output("kept"),
                io.Boolean.Output("passed"),
                io.Float.Output("fidelity"),
                io.String.Output("report"),
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
            category=CATEGORY,
            search_aliases=["bestiary", "reference image", "edit model"],
            inputs=[
                subjects_input(),
                layouts_input(),
                io.Int.Input("size", default=512, min=64, max=2048, step=8),
            ],
            outputs=[
                io.Image.Output("references", is_output_list=True),
                io.String.Output("instruction"),
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
            category=CATEGORY,
            search_aliases=["bestiary", "dataset", "export kohya", "training data"],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                ScenesSocket.Input("scenes"),
                io.String.Input("captions", force_input=True),
                io.String.Input("name", default="scenes"),
                io.Combo.Input("target", options=["output", "input"], default="output"),
                io.Combo.Input("view", options=VIEWS, default="none"),
                io.String.Input("prompts", force_input=True, optional=True),
                io.Image.Input("image", optional=True),
                io.String.Input("place", default="", optional=True),
            ],
            outputs=[
                io.String.Output("folder"),
                io.Int.Output("count"),
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


class BestiaryScoreScene(io.ComfyNode):
    """Whether pictures show all subjects, like themselves, and follow the prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryScoreScene",
            category=CATEGORY,
            search_aliases=["bestiary", "CP-CLIP", "TI-CLIP", "metrics", "evaluate"],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            inputs=[
                io.Image.Input("image"),
                subjects_input(),
                io.String.Input("prompt", default="", multiline=True, dynamic_prompts=False),
                io.Combo.Input("judge", options=["clip vision", "drawn world"], default="clip vision"),
                io.ClipVision.Input("clip_vision", optional=True),
                BoundingBoxSocket.Input("boxes", optional=True, extra_dict={"forceInput": True}),
                io.Clip.Input("clip", optional=True),
            ],
            outputs=[
                io.Float.Output("cp"),
                io.Float.Output("ti"),
                io.Float.Output("found"),
                io.String.Output("report"),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        subjects: SceneSubjects,
        prompt: str,
        judge: str,
        clip_vision: ClipVision | None = None,
        boxes: object = None,
        clip: Clip | None = None,
    ) -> io.NodeOutput:
        from ..host.graph_progress import GraphProgress
        from . import scene_scoring as scoring

        scorer = scoring.SceneScorer(judge, clip_vision, clip)
        scored = scoring.score_all(image, subjects, prompt, scorer, boxes, GraphProgress(cls.hidden.unique_id))
        cp, ti, found = (scoring.mean_of(scored, name) or 0.0 for name in ("cp", "ti", "found"))
        report = scoring.scores_json(scored, prompt, judge)
        return io.NodeOutput(cp, ti, found, report, ui=ui.PreviewText(scoring.scores_text(scored)))


NODES: list[type[io.ComfyNode]] = [
    BestiarySceneCaption,
    BestiaryJudgeScene,
    BestiaryScoreScene,
    BestiarySubjectReferences,
    BestiarySaveSceneSet,
]
