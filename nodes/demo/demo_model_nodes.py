"""Nodes that provide the embedded miniature model and drawn pictures."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..host.comfy_version import schema

LARGEST_COUNT = 10000


class BestiaryDemoModel(io.ComfyNode):
    """Loads MODEL, CLIP and VAE of the embedded model, without a download."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryDemoModel",
            category="Bestiary/demo",
            search_aliases=["bestiary base model", "tiny checkpoint", "load checkpoint"],
            inputs=[io.Combo.Input("shape", options=["unet", "dit"], default="unet", optional=True)],
            outputs=[
                io.Model.Output("model"),
                io.Clip.Output("clip"),
                io.Vae.Output("vae"),
            ],
        )

    @classmethod
    def execute(cls, shape: str = "unet") -> io.NodeOutput:
        from .demo_model import FOLDERS, load_demo_model

        return io.NodeOutput(*load_demo_model(FOLDERS[shape]))


class BestiaryDemoPictures(io.ComfyNode):
    """Draws pictures for discovery and training, without a download."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryDemoPictures",
            category="Bestiary/demo",
            search_aliases=["bestiary creatures", "example images", "sample data"],
            inputs=[
                io.Int.Input("count", default=24, min=1, max=LARGEST_COUNT),
                io.Int.Input("seed", default=0, min=0, max=2**31 - 1),
                io.Int.Input("first", default=0, min=0, max=13, optional=True),
            ],
            outputs=[
                io.Image.Output("images", is_output_list=True),
                io.String.Output("captions", is_output_list=True),
                io.Mask.Output("masks", is_output_list=True),
            ],
        )

    @classmethod
    def execute(cls, count: int, seed: int, first: int = 0) -> io.NodeOutput:
        from ...demo.creatures import held_out_set

        drawings = list(held_out_set(count, seed, first))
        images = [torch.from_numpy(drawing.image.copy())[None].float() / 255 for drawing in drawings]  # (1, H, W, 3)
        masks = [torch.from_numpy(drawing.labels > 0)[None].float() for drawing in drawings]  # (1, H, W)
        return io.NodeOutput(images, [drawing.caption for drawing in drawings], masks)


NODES: list[type[io.ComfyNode]] = [BestiaryDemoModel, BestiaryDemoPictures]
