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
                "Records the cross-attention of each part token in the prompt while a sampler runs, without "
                "changing the picture. Connect the record to Show Attention."
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to sample with. It is not modified; the output is a patched copy."
                ),
                io.Combo.Input(
                    "layers",
                    options=list(get_args(LayerChoice)),
                    default="auto",
                    optional=True,
                    tooltip=(
                        "Cross-attention layers to record, given by their resolution: full, half, quarter or eighth of "
                        "the latent. auto: the resolution at which parts are trained (16x16 for SD 1.5 at 512 pixels). "
                        "all: every layer."
                    ),
                ),
                io.Boolean.Input(
                    "include_negative",
                    default=False,
                    optional=True,
                    tooltip="Also record the parts of the negative prompt.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "patched_model", display_name="MODEL", tooltip="For any sampler; sampling with it fills the record."
                ),
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
                "Shows the cross-attention of each part token as a heat map over the picture, and outputs it as "
                "masks. Connect the latent or the decoded picture of the sampler, so that this node runs after "
                "it."
            ),
            inputs=[
                AttentionSocket.Input("record", tooltip="The output attention of Attention Maps."),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="Latent output of the sampler. Selects the sampling run if several samplers used the model.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The decoded picture, as background of the heat maps. Without it the background is dark.",
                ),
                io.String.Input(
                    "parts",
                    default="",
                    optional=True,
                    tooltip="Parts to show, separated by commas, such as head, wing:cardinal. Leave empty to show all.",
                ),
                io.Int.Input(
                    "first_step",
                    default=1,
                    min=1,
                    max=10000,
                    optional=True,
                    tooltip="First sampling step to average, counted from 1.",
                ),
                io.Int.Input(
                    "last_step",
                    default=10000,
                    min=1,
                    max=10000,
                    optional=True,
                    tooltip="Last sampling step to average; a value above the number of steps means the last step.",
                ),
                io.Float.Input(
                    "opacity",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="Opacity of the heat map over the picture: 0 invisible, 1 opaque.",
                ),
                socket(
                    io.Float.Input,
                    "mask_threshold",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip=(
                        "0 gives soft masks. Otherwise the mask is 1 where the attention reaches this fraction of its "
                        "range."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output("heat_maps", display_name="heat maps", tooltip="One heat map per part and picture."),
                io.Image.Output(
                    "overview", display_name="overview", tooltip="One sheet per picture with all its heat maps."
                ),
                io.Mask.Output(
                    "masks", display_name="masks", tooltip="One mask per heat map, in the size of the picture."
                ),
                io.String.Output(
                    "description", display_name="text", tooltip="Strength and centre of the attention of each part."
                ),
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
                "Restricts the tokens of one part to a mask: outside the mask, the picture does not attend to "
                "them. Chain one node per part."
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to sample with. It is not modified; the output is a patched copy."
                ),
                io.Mask.Input(
                    "mask",
                    tooltip=(
                        "White where the part may appear. Any size; it is scaled to the picture. One mask for the batch, "
                        "or one per picture."
                    ),
                ),
                io.String.Input(
                    "part",
                    default="head",
                    tooltip="A part that the prompt contains, such as head, or head:cardinal for that kind only.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip=(
                        "1 removes the part outside the mask completely, 0.5 halves its attention there, 0 changes "
                        "nothing."
                    ),
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Start of the range in which the mask is applied, as a fraction of the sampling.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip=(
                        "End of the range in which the mask is applied, as a fraction of the sampling. Early steps "
                        "decide positions."
                    ),
                ),
                io.Int.Input(
                    "feather",
                    default=16,
                    min=0,
                    max=512,
                    optional=True,
                    tooltip="Width of the soft edge, in pixels of the mask. 0 gives a hard edge.",
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
