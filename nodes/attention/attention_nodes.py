"""Nodes that record, show and confine the attention of part tokens."""

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
    """Id of the running node, to which messages are sent later; None outside a graph."""
    return getattr(node.hidden, "unique_id", None)


class BestiaryAttentionMaps(io.ComfyNode):
    """Patches a MODEL so that its samplings record the attention of part tokens and words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryAttentionMaps",
            category="Bestiary/attention",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input("layers", options=list(get_args(LayerChoice)), default="auto", optional=True),
                io.Boolean.Input("include_negative", default=False, optional=True),
                io.String.Input("words", default="", optional=True),
            ],
            outputs=[
                io.Model.Output("patched_model"),
                AttentionSocket.Output("attention"),
            ],
        )

    @classmethod
    def execute(
        cls, model: Model, layers: LayerChoice = "auto", include_negative: bool = False, words: str = ""
    ) -> io.NodeOutput:
        from ...concepts.part_prompt.prompt_words import words_of_list
        from .attention_record import AttentionRecord
        from .model_patching import record_attention

        record = AttentionRecord(layers, include_negative, block_of(cls), words_of_list(words))
        return io.NodeOutput(record_attention(model, record), record)


class BestiaryShowAttention(io.ComfyNode):
    """Draws a record as heat maps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryShowAttention",
            category="Bestiary/attention",
            inputs=[
                AttentionSocket.Input("record"),
                io.Latent.Input("latent", optional=True),
                io.Image.Input("image", optional=True),
                io.String.Input("parts", default="", optional=True),
                io.Int.Input("first_step", default=1, min=1, max=10000, optional=True),
                io.Int.Input("last_step", default=10000, min=1, max=10000, optional=True),
                io.Float.Input("opacity", default=0.6, min=0.0, max=1.0, step=0.05, optional=True),
                socket(io.Float.Input, "mask_threshold", default=0.0, min=0.0, max=1.0, step=0.05, optional=True),
            ],
            outputs=[
                io.Image.Output("heat_maps"),
                io.Image.Output("overview"),
                io.Mask.Output("masks"),
                io.String.Output("description"),
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
            category="Bestiary/attention",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model"),
                io.Mask.Input("mask"),
                io.String.Input("part", default="head"),
                io.Float.Input("strength", default=1.0, min=0.0, max=1.0, step=0.05, optional=True),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, optional=True),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01, optional=True),
                io.Int.Input("feather", default=16, min=0, max=512, optional=True),
            ],
            outputs=[io.Model.Output("patched_model")],
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
