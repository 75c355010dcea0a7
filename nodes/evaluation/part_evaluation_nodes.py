"""The node that judges pictures: do they show the parts they were asked for?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui
from torch import Tensor

from ...concepts.pictures.square_fit import SQUARE_FITS
from ..host.comfy_version import schema
from ..host.graph_progress import GraphProgress
from ..host.socket_types import (
    ChosenParts,
    CodebookSocket,
    DictionarySocket,
    NamedCodebook,
    NamedDictionary,
    PartSocket,
)
from ..part_map.part_inputs import features_input, fit_input, segment
from ..part_map.part_pictures import named_faults

if TYPE_CHECKING:
    from ...concepts.denoiser.denoiser import Denoiser


class BestiaryEvaluateParts(io.ComfyNode):
    """Figures and reasons for pictures made with parts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryEvaluateParts",
            display_name="Evaluate Parts",
            category="Bestiary/discover",
            description=(
                "Checks whether generated pictures show the requested parts: exact match rate (EMR) and code "
                "similarity (CoSim) of PartCraft, with a result for every part."
            ),
            search_aliases=["EMR", "CoSim", "metrics"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Pictures generated with the requested parts."),
                CodebookSocket.Input("codebook", tooltip="The codebook the dictionary was trained with."),
                DictionarySocket.Input("dictionary", tooltip="The dictionary the pictures were generated with."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="The prompt of the pictures. Only its <part:kind> mentions are used.",
                ),
                PartSocket.Input(
                    "parts", optional=True, tooltip="Requested parts, instead of or in addition to a prompt."
                ),
                features_input(),
                fit_input(),
            ],
            outputs=[
                io.Float.Output(
                    "emr",
                    display_name="EMR",
                    tooltip="Fraction of the requested parts found with the requested kind, 0 to 1.",
                ),
                io.Float.Output(
                    "cosim", display_name="CoSim", tooltip="Mean similarity of found and requested kinds, -1 to 1."
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="Every requested part, and what the pictures show.",
                ),
                io.Image.Output(
                    "overlay", display_name="overlay", tooltip="The pictures with the found parts in colour."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        codebook: NamedCodebook,
        dictionary: NamedDictionary,
        prompt: str,
        parts: ChosenParts | None = None,
        features: Denoiser | None = None,
        fit: str = SQUARE_FITS[0],
    ) -> io.NodeOutput:
        from ..part_map.part_drawing import draw_overlays
        from .part_judging import judged_text, score_parts, scores_text
        from .requested_parts import read_asked_parts

        owner = codebook.codebook
        with named_faults("Evaluate Parts"):
            asked = read_asked_parts(prompt, parts, dictionary, owner)
            pictures, seen = segment(images, codebook, features, fit, GraphProgress(cls.hidden.unique_id))
        scores = score_parts(owner, seen, asked)
        report = scores_text(owner, asked, scores)
        overlay = draw_overlays(pictures, seen, judged_text(owner, seen, asked))
        return io.NodeOutput(scores.emr, scores.cosim, report, overlay, ui=ui.PreviewText(report))


NODES: list[type[io.ComfyNode]] = [BestiaryEvaluateParts]
