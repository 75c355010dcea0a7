"""Where part tokens look, and where they may, as graph blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from comfy_api.latest import io, ui
from torch import Tensor

from ..host.comfy_version import schema, socket
from ..host.socket_types import AttentionSocket
from .attention_layers import LayerChoice

if TYPE_CHECKING:
    from ..host.comfy_objects import Model
    from .attention_record import AttentionRecord


def block_of(node: type[io.ComfyNode]) -> str | None:
    """Id of the node that runs, for what it shall show later; None outside a graph."""
    return getattr(node.hidden, "unique_id", None)


class BestiaryAttentionMaps(io.ComfyNode):
    """Patches a MODEL so that its samplings record where part tokens look."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryAttentionMaps",
            display_name="Attention Maps",
            category="Bestiary/attention",
            hidden=[io.Hidden.unique_id],
            description=(
                "Records where each part token of the prompt looks while a sampler runs. The picture stays the same to "
                "the last bit. Show the record with Show Attention."
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model that will be sampled. It stays as it is; a patched copy comes out."
                ),
                io.Combo.Input(
                    "layers",
                    options=list(get_args(LayerChoice)),
                    default="auto",
                    optional=True,
                    tooltip=(
                        "Which cross-attention layers to record, by their grid: full, half, quarter or eighth of the latent. "
                        "auto takes those at which parts are trained (16x16 for SD 1.5 at 512 pixels), all takes every one."
                    ),
                ),
                io.Boolean.Input(
                    "include_negative",
                    default=False,
                    optional=True,
                    tooltip="Also record the parts that the negative prompt holds.",
                ),
            ],
            outputs=[
                io.Model.Output("patched_model", display_name="MODEL", tooltip="For any sampler; it fills the record."),
                AttentionSocket.Output("attention", display_name="attention", tooltip="For Show Attention."),
            ],
        )

    @classmethod
    def execute(cls, model: Model, layers: LayerChoice = "auto", include_negative: bool = False) -> io.NodeOutput:
        from .attention_record import AttentionRecord
        from .model_patching import record_attention

        record = AttentionRecord(layers, include_negative, block_of(cls))
        return io.NodeOutput(record_attention(model, record), record)


class BestiaryShowAttention(io.ComfyNode):
    """Heat maps of a record."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryShowAttention",
            display_name="Show Attention",
            category="Bestiary/attention",
            description=(
                "Draws where each part token looked as a heat map over the picture, and gives the same as masks. "
                "Needs the latent or the picture of the sampler, so that it runs after it."
            ),
            inputs=[
                AttentionSocket.Input("record", tooltip="The attention output of Attention Maps."),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="What the sampler gave. Says which sampling is meant if several used the model.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="The decoded picture to draw over. Without it the ground is dark."
                ),
                io.String.Input(
                    "parts",
                    default="",
                    optional=True,
                    tooltip="Parts to show, separated by commas, such as head, wing:cardinal. Empty shows all.",
                ),
                io.Int.Input(
                    "first_step",
                    default=1,
                    min=1,
                    max=10000,
                    optional=True,
                    tooltip="First step to average over, from 1.",
                ),
                io.Int.Input(
                    "last_step",
                    default=10000,
                    min=1,
                    max=10000,
                    optional=True,
                    tooltip="Last step to average over; anything above the number of steps means the last one.",
                ),
                io.Float.Input(
                    "opacity",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="How much the heat map covers the picture: 0 not at all, 1 altogether.",
                ),
                socket(
                    io.Float.Input,
                    "mask_threshold",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="0 gives soft masks. Above, a mask is 1 where attention reaches this share of its range.",
                ),
            ],
            outputs=[
                io.Image.Output("heat_maps", display_name="heat maps", tooltip="One for every part of every picture."),
                io.Image.Output("overview", display_name="overview", tooltip="Each picture with all its heat maps."),
                io.Mask.Output(
                    "masks", display_name="masks", tooltip="One for every heat map, as large as the picture."
                ),
                io.String.Output("description", display_name="text", tooltip="How strong each part was, and where."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        record: AttentionRecord,
        latent: dict | None = None,
        image: Tensor | None = None,
        parts: str = "",
        first_step: int = 1,
        last_step: int = 10000,
        opacity: float = 0.6,
        mask_threshold: float = 0.0,
    ) -> io.NodeOutput:
        from .attention_sheet import saved_maps
        from .attention_view import view_attention

        samples = None if latent is None else latent["samples"]
        view = view_attention(record, samples, image, parts, first_step, last_step, opacity, mask_threshold)
        shown = {**ui.PreviewImage(view.overviews, cls=cls).as_dict(), "text": (view.text,)}
        shown["bestiary_attention"] = [saved_maps(record.find(samples), image, cls)]
        return io.NodeOutput(view.frames, view.overviews, view.masks, view.text, ui=shown)


class BestiaryPartRegions(io.ComfyNode):
    """Patches a MODEL so that a part stays inside a mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryPartRegions",
            display_name="Part Regions",
            category="Bestiary/attention",
            hidden=[io.Hidden.unique_id],
            description=(
                "Keeps the tokens of one part inside a mask: elsewhere the picture does not listen to them. "
                "Chain several for several parts."
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model that will be sampled. It stays as it is; a patched copy comes out."
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="White where the part may be. Any size; it is stretched over the picture. One for all, or one each.",
                ),
                io.String.Input(
                    "part",
                    default="head",
                    tooltip="Part of the prompt, such as head, or head:cardinal for that kind alone. It must be in a prompt.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="1 keeps the part inside altogether, 0.5 halves its weight outside, 0 changes nothing.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="When it begins, as a share of the sampling.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="When it ends, as a share of the sampling. Early steps settle where things are.",
                ),
                io.Int.Input(
                    "feather",
                    default=16,
                    min=0,
                    max=512,
                    optional=True,
                    tooltip="Width of the soft edge, in pixels of the mask. 0 leaves the edge hard.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "patched_model", display_name="MODEL", tooltip="For any sampler, or for the next Part Regions."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Model,
        mask: Tensor,
        part: str,
        strength: float = 1.0,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        feather: int = 16,
    ) -> io.NodeOutput:
        from .model_patching import confine_part
        from .part_regions import make_region

        region = make_region(part, mask, strength, start_percent, end_percent, feather, block_of(cls))
        return io.NodeOutput(confine_part(model, region))


NODES: list[type[io.ComfyNode]] = [BestiaryAttentionMaps, BestiaryShowAttention, BestiaryPartRegions]
