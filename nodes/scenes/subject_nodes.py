"""Subjects of scenes, as graph blocks: of a picture and a mask, of a folder, and the mask itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ..host.comfy_version import schema
from ..host.socket_types import SceneSubjects, SubjectsSocket
from .segmentation_weights import AUTOMATIC, weights_menu

if TYPE_CHECKING:
    from torch import Tensor

CATEGORY = "Bestiary/scenes"


class BestiarySubject(io.ComfyNode):
    """A picture and a mask become something that scenes are made of."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiarySubject",
            category=CATEGORY,
            search_aliases=["bestiary", "cutout", "character", "compose"],
            inputs=[
                io.Image.Input("image"),
                io.String.Input("name", default="cat"),
                io.String.Input("words", default=""),
                io.String.Input("size", default=""),
                io.String.Input("support", default="ground"),
                io.Mask.Input("mask", optional=True),
                SubjectsSocket.Input("subjects", optional=True),
            ],
            outputs=[SubjectsSocket.Output("all_subjects")],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        name: str,
        words: str,
        size: str,
        support: str,
        mask: Tensor | None = None,
        subjects: SceneSubjects | None = None,
    ) -> io.NodeOutput:
        from .subject_making import added, subjects_of_images

        return io.NodeOutput(added(subjects, subjects_of_images(image, mask, name, words, size, support)))


class BestiarySubjectFolder(io.ComfyNode):
    """A folder of pictures becomes a list of subjects."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiarySubjectFolder",
            category=CATEGORY,
            search_aliases=["bestiary", "load cutouts", "batch"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.String.Input("folder", default="subjects"),
                io.Int.Input("limit", default=8, min=1, max=64),
            ],
            outputs=[
                SubjectsSocket.Output("subjects"),
                io.String.Output("report"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> str:
        from .subject_folder import folder_stamp

        return folder_stamp(str(inputs.get("folder") or ""))

    @classmethod
    def execute(cls, folder: str, limit: int) -> io.NodeOutput:
        from ..host.graph_progress import GraphProgress
        from .subject_folder import read_folder

        return io.NodeOutput(*read_folder(folder, limit, GraphProgress(cls.hidden.unique_id)))


class BestiaryCutOut(io.ComfyNode):
    """The most striking thing of a picture, as a mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryCutOut",
            category=CATEGORY,
            search_aliases=["bestiary", "remove background", "segment", "isnet"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("image"),
                io.Combo.Input("weights", options=weights_menu(), default=AUTOMATIC),
                io.Boolean.Input("largest_only", default=True),
                io.Float.Input("feather", default=0.0, min=0.0, max=32.0, step=0.5),
            ],
            outputs=[
                io.Image.Output("cut_image"),
                io.Mask.Output("mask"),
                io.String.Output("report"),
            ],
        )

    @classmethod
    def execute(cls, image: Tensor, weights: str, largest_only: bool, feather: float) -> io.NodeOutput:
        from ...scenes.cutout import CutoutOptions
        from ..host.graph_progress import GraphProgress
        from .cutting_out import cut_all

        options = CutoutOptions(largest_only=largest_only, feather=feather)
        cut = cut_all(image, weights, options, GraphProgress(cls.hidden.unique_id))
        return io.NodeOutput(*cut, ui=ui.PreviewText(cut[-1]))


NODES: list[type[io.ComfyNode]] = [BestiarySubject, BestiarySubjectFolder, BestiaryCutOut]
