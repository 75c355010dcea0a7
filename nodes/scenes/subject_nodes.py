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
            display_name="Scene Subject",
            category=CATEGORY,
            description=(
                "Cuts a subject out of a picture by a mask and adds it to a list of subjects. Any node that gives a mask "
                "of a thing can come before it."
            ),
            search_aliases=["bestiary", "cutout", "character", "compose"],
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="Picture that shows the subject. Of a batch the first is shown in scenes, the others are references.",
                ),
                io.String.Input(
                    "name", default="cat", tooltip="Name of the subject; every subject of a scene has its own."
                ),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="What prompts and captions call it, such as grey cat or <head:cardinal> bird; the name if empty.",
                ),
                io.String.Input(
                    "size",
                    default="",
                    tooltip=(
                        "Length of its longest side against the others: a number, a noun such as horse, or tiny, small, medium, large "
                        "or huge. Empty: guessed by its words."
                    ),
                ),
                io.String.Input(
                    "support",
                    default="ground",
                    tooltip="Where it stands: ground, sky, any, or on:NAME for another subject it stands on.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the subject is. Without a mask the transparency of the picture is used.",
                ),
                SubjectsSocket.Input("subjects", optional=True, tooltip="Subjects to add this one to."),
            ],
            outputs=[
                SubjectsSocket.Output(
                    "all_subjects", display_name="subjects", tooltip="The list with this subject added."
                )
            ],
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
            display_name="Scene Subjects from Folder",
            category=CATEGORY,
            description=(
                "Reads subjects from a folder in ComfyUI's input folder: transparent pictures, pictures with NAME_mask.png "
                "beside them, or photographs, which IS-Net cuts out."
            ),
            search_aliases=["bestiary", "load cutouts", "batch"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.String.Input(
                    "folder",
                    default="subjects",
                    tooltip="Folder inside ComfyUI's input folder. Each picture or each subfolder in it is one subject.",
                ),
                io.Int.Input("limit", default=8, min=1, max=64, tooltip="Number of subjects at most."),
            ],
            outputs=[
                SubjectsSocket.Output(
                    "subjects", display_name="subjects", tooltip="One subject per picture or subfolder."
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="What became of every picture, one line each."
                ),
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
            display_name="Cut Out Subject",
            category=CATEGORY,
            description=(
                "Finds the subject of a picture and gives its mask, with IS-Net weights that you put into "
                "models/bestiary/segmentation. Nothing is downloaded."
            ),
            search_aliases=["bestiary", "remove background", "segment", "isnet"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("image", tooltip="Photographs or drawings, one or many."),
                io.Combo.Input(
                    "weights",
                    options=weights_menu(),
                    default=AUTOMATIC,
                    tooltip=(
                        "IS-Net weights in models/bestiary/segmentation; automatic takes the first. Plain ground needs no weights and "
                        "only suits pictures with an even background."
                    ),
                ),
                io.Boolean.Input(
                    "largest_only", default=True, tooltip="Keep only the largest connected piece of the mask."
                ),
                io.Float.Input(
                    "feather",
                    default=0.0,
                    min=0.0,
                    max=32.0,
                    step=0.5,
                    tooltip="Blur of the finished mask, in pixels.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "cut_image",
                    display_name="image",
                    tooltip="The picture with the subject's own colours along its edge, for the mask beside it.",
                ),
                io.Mask.Output("mask", display_name="mask", tooltip="White where the subject is."),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="Size of the mask, and reasons to doubt it, one line per picture.",
                ),
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
