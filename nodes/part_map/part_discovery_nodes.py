"""Nodes that find parts in pictures, find them again in others, and keep codebooks."""

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
    """Pictures in, a codebook of their parts out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryDiscoverParts",
            display_name="Discover Parts",
            category=CATEGORY,
            description=(
                "Finds the parts of the objects in your pictures and the kinds of each part, without labels. Use "
                "a few dozen pictures of one class of objects, for example birds."
            ),
            search_aliases=["segment", "cluster", "unsupervised", "dino"],
            is_input_list=True,
            # so that it can be run alone, to be looked at and edited, and tells the page its key each time
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip="Pictures of one class of objects: a batch, or a list of different sizes."
                ),
                io.Combo.Input(
                    "feature_source",
                    options=list(SOURCES),
                    default="imagenet",
                    tooltip=(
                        "Feature source. imagenet: a small network for photographs, included. dinov2: a larger network; "
                        "its weights must be in models/dinov2. diffusion: activations of the model connected to "
                        "features. descriptor: colour and texture, for flat drawings."
                    ),
                ),
                io.Int.Input(
                    "num_parts",
                    default=0,
                    min=0,
                    max=32,
                    tooltip="Number of parts. 0 estimates it, 3 to 12; descriptor and diffusion use five.",
                ),
                io.Int.Input(
                    "num_kinds",
                    default=0,
                    min=0,
                    max=256,
                    tooltip="Number of kinds per part; 0 estimates it.",
                ),
                io.Int.Input("seed", default=0, min=0, max=2**31 - 1, tooltip="The same seed gives the same parts."),
                io.Boolean.Input(
                    "flip_foreground",
                    default=False,
                    tooltip="Swaps object and background. Switch it on if the overlays show the parts in the background.",
                ),
                io.Mask.Input(
                    "foreground",
                    optional=True,
                    tooltip="One mask per picture with the object in white. If not connected, the object is detected.",
                ),
                features_input(),
                fit_input(),
                socket(
                    io.Boolean.Input,
                    "allow_download",
                    default=False,
                    optional=True,
                    tooltip="Lets timm download the DINOv2 weights (350 MB) once if they are not on this machine.",
                ),
                socket(
                    io.String.Input,
                    "edits",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip=(
                        "Edits of the discovered parts, one per line: rename part 2, head / merge head, beak / drop "
                        "tail. Write a kind as head:3. Edits do not repeat the discovery."
                    ),
                ),
            ],
            outputs=[
                CodebookSocket.Output(
                    "codebook",
                    display_name="codebook",
                    tooltip="The parts and their kinds, for Segment Parts and other nodes.",
                ),
                PartMapsSocket.Output(
                    "part_maps",
                    display_name="part maps",
                    is_output_list=True,
                    tooltip="The part of each patch, per picture; for Part Mask.",
                ),
                io.Image.Output(
                    "overlays",
                    display_name="overlays",
                    is_output_list=True,
                    tooltip="The pictures with the parts in colour.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="Summary of the discovery, and the pictures to check first.",
                ),
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
    """A model as the eyes of a codebook."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryDiffusionFeatures",
            display_name="Diffusion Features",
            category=CATEGORY,
            description=(
                "Makes a diffusion model the feature source of Discover Parts, Segment Parts and Evaluate Parts. "
                "Required for codebooks whose features are diffusion. No download."
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The base model, without LoRA: features of a codebook depend on the exact model."
                ),
                io.Clip.Input("clip", tooltip="Its CLIP, without a dictionary."),
                io.Vae.Input("vae", tooltip="Its VAE."),
            ],
            outputs=[
                FeaturesSocket.Output(
                    "features",
                    display_name="features",
                    tooltip="For the input features of Discover Parts, Segment Parts and Evaluate Parts.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: Model, clip: Clip, vae: Vae) -> io.NodeOutput:
        from ..denoiser.comfy_denoiser import ComfyDenoiser

        with named_faults("Diffusion Features"):
            return io.NodeOutput(ComfyDenoiser(model, clip, vae))


class BestiarySegmentParts(io.ComfyNode):
    """The parts of a codebook in other pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiarySegmentParts",
            display_name="Segment Parts",
            category=CATEGORY,
            description="Finds the parts of a codebook in any picture: the area of each part, and its kind.",
            search_aliases=["part mask", "part map"],
            inputs=[
                io.Image.Input("images", tooltip="Pictures of the class of objects the codebook was made from."),
                CodebookSocket.Input("codebook", tooltip="From Discover Parts or Load Codebook."),
                features_input(),
                fit_input(),
            ],
            outputs=[
                io.Mask.Output(
                    "masks",
                    display_name="masks (one per part)",
                    is_output_list=True,
                    tooltip="One mask per part, white where the part is.",
                ),
                io.String.Output(
                    "part_names",
                    display_name="names of the parts",
                    is_output_list=True,
                    tooltip="The part names, in the order of the masks.",
                ),
                io.Image.Output("overlay", display_name="overlay", tooltip="The pictures with the parts in colour."),
                io.String.Output(
                    "codes",
                    display_name="codes",
                    tooltip="The kind of every part, one line per picture, in the form used in prompts.",
                ),
                PartMapsSocket.Output(
                    "part_maps", display_name="part maps", tooltip="The part of each patch, for Part Mask."
                ),
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
    """One mask from part maps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryPartMask",
            display_name="Part Mask",
            category=CATEGORY,
            description="Outputs the mask of one or several parts, for inpainting, regional prompts or cut-outs.",
            inputs=[
                PartMapsSocket.Input("part_maps", tooltip="From Segment Parts or Discover Parts."),
                io.String.Input(
                    "parts",
                    default="foreground",
                    tooltip=(
                        "Names or numbers of parts, separated by commas: head, wing. foreground means everything except "
                        "the background."
                    ),
                ),
                io.Boolean.Input(
                    "invert", default=False, tooltip="Inverts the mask: everything except these parts. Applied last."
                ),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=-512,
                    max=512,
                    tooltip="Pixels by which the mask is expanded; negative values shrink it.",
                ),
                io.Float.Input(
                    "feather",
                    default=0.0,
                    min=0.0,
                    max=256.0,
                    step=0.5,
                    tooltip="Width of the soft edge in pixels; applied after grow.",
                ),
            ],
            outputs=[io.Mask.Output("mask", display_name="mask", tooltip="White where the parts are.")],
        )

    @classmethod
    def execute(
        cls, part_maps: SeenParts, parts: str, invert: bool = False, grow: int = 0, feather: float = 0.0
    ) -> io.NodeOutput:
        from .part_mask import mask_of_parts

        with named_faults("Part Mask"):
            return io.NodeOutput(mask_of_parts(part_maps, parts, grow=grow, feather=feather, invert=invert))


class BestiaryLoadCodebook(io.ComfyNode):
    """From a file to a codebook."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryLoadCodebook",
            display_name="Load Codebook",
            category=CATEGORY,
            description="Loads a codebook from models/bestiary, as written by Save Codebook and `bestiary discover`.",
            inputs=[
                io.Combo.Input(
                    "codebook_name",
                    options=concept_names(CODEBOOK_SUFFIX),
                    tooltip=f"A file ending in {CODEBOOK_SUFFIX}.",
                )
            ],
            outputs=[
                CodebookSocket.Output(
                    "codebook",
                    display_name="codebook",
                    tooltip="The parts and their kinds, for Segment Parts and other nodes.",
                ),
                io.String.Output(
                    "summary", display_name="summary", tooltip="Parts, kinds and feature source of the codebook."
                ),
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
    """From a codebook to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiarySaveCodebook",
            display_name="Save Codebook",
            category=CATEGORY,
            description=(
                "Saves a codebook in models/bestiary. Existing files are never overwritten: a number is appended "
                "to the name."
            ),
            is_output_node=True,
            inputs=[
                CodebookSocket.Input("codebook", tooltip="From Discover Parts."),
                io.String.Input(
                    "filename", default="my_parts", tooltip=f"Name without {CODEBOOK_SUFFIX}; may name a sub-folder."
                ),
            ],
            outputs=[
                io.String.Output(
                    "saved_name", display_name="saved as", tooltip="The file name as listed by Load Codebook."
                )
            ],
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
