"""The node that checks whether pictures show the requested parts."""

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
    """Scores and a report for pictures generated with parts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryEvaluateParts",
            category="Bestiary/discover",
            search_aliases=["EMR", "CoSim", "metrics"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images"),
                CodebookSocket.Input("codebook"),
                DictionarySocket.Input("dictionary"),
                io.String.Input("prompt", multiline=True, default=""),
                PartSocket.Input("parts", optional=True),
                features_input(),
                fit_input(),
            ],
            outputs=[
                io.Float.Output("emr"),
                io.Float.Output("cosim"),
                io.String.Output("report"),
                io.Image.Output("overlay"),
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
