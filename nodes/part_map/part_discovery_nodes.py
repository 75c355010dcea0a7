"""Nodes that discover parts, segment pictures with a codebook, and load and save codebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui
from torch import Tensor

from ...concepts.files.concept_names import CODEBOOK_SUFFIX
from ...concepts.pictures.square_fit import SQUARE_FITS
from ..host.comfy_version import schema, socket
from ..host.concept_folders import concept_names, file_stamp
from ..host.graph_progress import GraphProgress
from ..host.socket_types import CodebookSocket, NamedCodebook, PartMapsSocket
from .feature_choice import SOURCES, open_source
from .part_inputs import FeaturesSocket, features_input, fit_input, segment
from .part_pictures import checked_fit, named_faults

if TYPE_CHECKING:
    from ...concepts.denoiser.denoiser import Denoiser
    from ..host.comfy_objects import Clip, Model, Vae
    from .seen_parts import SeenParts

CATEGORY = "Bestiary/discover"


class BestiaryDiscoverParts(io.ComfyNode):
    """Discovers the parts of pictures and outputs a codebook."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryDiscoverParts",
            category=CATEGORY,
            search_aliases=["segment", "cluster", "unsupervised", "dino"],
            is_input_list=True,
            # an output node can run alone, and sends its key to the editor in the browser on every run
            is_output_node=True,
            inputs=[
                io.Image.Input("images"),
                io.Combo.Input("feature_source", options=list(SOURCES), default="imagenet"),
                io.Int.Input("num_parts", default=0, min=0, max=32),
                io.Int.Input("num_kinds", default=0, min=0, max=256),
                io.Int.Input("seed", default=0, min=0, max=2**31 - 1),
                io.Boolean.Input("flip_foreground", default=False),
                io.Mask.Input("foreground", optional=True),
                features_input(),
                fit_input(),
                socket(io.Boolean.Input, "allow_download", default=False, optional=True),
                socket(io.String.Input, "edits", default="", multiline=True, optional=True),
            ],
            outputs=[
                CodebookSocket.Output("codebook"),
                PartMapsSocket.Output("part_maps", is_output_list=True),
                io.Image.Output("overlays", is_output_list=True),
                io.String.Output("report"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        feature_source: list[str],
        num_parts: list[int],
        num_kinds: list[int],
        seed: list[int],
        flip_foreground: list[bool],
        foreground: list[Tensor] | None = None,
        features: list[Denoiser] | None = None,
        fit: list[str] | None = None,
        allow_download: list[bool] | None = None,
        edits: list[str] | None = None,
    ) -> io.NodeOutput:
        from .discovery_job import DiscoveryChoice, doubts, part_confidence, unsure_pictures
        from .found_parts import AskedDiscovery, discover_once
        from .kept_discoveries import BlockPlace
        from .part_drawing import found_overlays
        from .part_reports import discovery_text

        with named_faults("Discover Parts"):
            # is_input_list: every option arrives as a list
            area = checked_fit(fit[0] if fit else SQUARE_FITS[0])
            choice = DiscoveryChoice(num_parts[0], num_kinds[0], seed[0], flip_foreground[0], area)
            allowed = bool(allow_download and allow_download[0])
            connected = features[0] if features else None
            source = open_source({"name": feature_source[0]}, connected, allow_download=allowed)
            asked = AskedDiscovery(images, foreground, source, choice, connected)
            place = BlockPlace.of(cls.hidden.unique_id, cls.hidden.extra_pnginfo)
            text = edits[0] if edits else ""
            found, key = discover_once(asked, text, place)
        report = discovery_text(
            found.codebook,
            found.seen,
            doubts(found.codebook, found.seen),
            confidence=part_confidence(found),
            unsure=unsure_pictures(found),
        )
        codebook = NamedCodebook("discovered", found.codebook, found.origin)
        shown = {**ui.PreviewText(report).as_dict(), "bestiary_discovered": ({"key": key, "edits": text},)}
        return io.NodeOutput(codebook, found.seen, found_overlays(found), report, ui=shown)


class BestiaryDiffusionFeatures(io.ComfyNode):
    """A diffusion model as feature source."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryDiffusionFeatures",
            category=CATEGORY,
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                io.Vae.Input("vae"),
            ],
            outputs=[FeaturesSocket.Output("features")],
        )

    @classmethod
    def execute(cls, model: Model, clip: Clip, vae: Vae) -> io.NodeOutput:
        from ..denoiser.comfy_denoiser import ComfyDenoiser

        with named_faults("Diffusion Features"):
            return io.NodeOutput(ComfyDenoiser(model, clip, vae))


class BestiarySegmentParts(io.ComfyNode):
    """Segments pictures with the parts of a codebook."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiarySegmentParts",
            category=CATEGORY,
            search_aliases=["part mask", "part map"],
            inputs=[
                io.Image.Input("images"),
                CodebookSocket.Input("codebook"),
                features_input(),
                fit_input(),
            ],
            outputs=[
                io.Mask.Output("masks", is_output_list=True),
                io.String.Output("part_names", is_output_list=True),
                io.Image.Output("overlay"),
                io.String.Output("codes"),
                PartMapsSocket.Output("part_maps"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        codebook: NamedCodebook,
        features: Denoiser | None = None,
        fit: str = SQUARE_FITS[0],
    ) -> io.NodeOutput:
        from .part_drawing import draw_overlays, kind_text
        from .part_mask import part_masks
        from .part_reports import codes_text

        with named_faults("Segment Parts"):
            pictures, seen = segment(images, codebook, features, fit, GraphProgress(cls.hidden.unique_id))
        overlay = draw_overlays(pictures, seen, kind_text(codebook.codebook, seen))
        return io.NodeOutput(part_masks(seen), list(seen.part_names), overlay, codes_text(seen), seen)


class BestiaryPartMask(io.ComfyNode):
    """Builds one mask from part maps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryPartMask",
            category=CATEGORY,
            inputs=[
                PartMapsSocket.Input("part_maps"),
                io.String.Input("parts", default="foreground"),
                io.Boolean.Input("invert", default=False),
                io.Int.Input("grow", default=0, min=-512, max=512),
                io.Float.Input("feather", default=0.0, min=0.0, max=256.0, step=0.5),
            ],
            outputs=[io.Mask.Output("mask")],
        )

    @classmethod
    def execute(
        cls, part_maps: SeenParts, parts: str, invert: bool = False, grow: int = 0, feather: float = 0.0
    ) -> io.NodeOutput:
        from .part_mask import mask_of_parts

        with named_faults("Part Mask"):
            return io.NodeOutput(mask_of_parts(part_maps, parts, grow=grow, feather=feather, invert=invert))


class BestiaryLoadCodebook(io.ComfyNode):
    """Loads a codebook from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryLoadCodebook",
            category=CATEGORY,
            inputs=[
                io.Combo.Input(
                    "codebook_name",
                    options=concept_names(CODEBOOK_SUFFIX),
                )
            ],
            outputs=[
                CodebookSocket.Output("codebook"),
                io.String.Output("summary"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> str:
        return file_stamp(str(inputs.get("codebook_name") or ""))

    @classmethod
    def execute(cls, codebook_name: str) -> io.NodeOutput:
        from .codebook_files import load_codebook
        from .part_reports import codebook_text

        with named_faults("Load Codebook"):
            loaded = load_codebook(codebook_name)
        return io.NodeOutput(loaded, codebook_text(loaded.codebook))


class BestiarySaveCodebook(io.ComfyNode):
    """Saves a codebook to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiarySaveCodebook",
            category=CATEGORY,
            is_output_node=True,
            inputs=[
                CodebookSocket.Input("codebook"),
                io.String.Input("filename", default="my_parts"),
            ],
            outputs=[io.String.Output("saved_name")],
        )

    @classmethod
    def execute(cls, codebook: NamedCodebook, filename: str) -> io.NodeOutput:
        from .codebook_files import save_codebook

        with named_faults("Save Codebook"):
            name = save_codebook(codebook.codebook, filename)
        return io.NodeOutput(name, ui=ui.PreviewText(f"models/bestiary/{name}"))


NODES: list[type[io.ComfyNode]] = [
    BestiaryDiscoverParts,
    BestiaryDiffusionFeatures,
    BestiarySegmentParts,
    BestiaryPartMask,
    BestiaryLoadCodebook,
    BestiarySaveCodebook,
]
