"""The embedded miniature model and drawn pictures, as graph blocks."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..host.comfy_version import schema

LARGEST_COUNT = 10000


class BestiaryDemoModel(io.ComfyNode):
    """MODEL, CLIP and VAE that need no download."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryDemoModel",
            display_name="Demo Model (Bestiary)",
            category="Bestiary/demo",
            description="The miniature model that comes with Bestiary: draws creatures of 128x128 pixels in seconds on "
            "a CPU and needs no download. It works with every core node; use 128x128 latents.",
            search_aliases=["bestiary base model", "tiny checkpoint", "load checkpoint"],
            inputs=[],
            outputs=[
                io.Model.Output(
                    "model", display_name="MODEL", tooltip="The network, for a sampler or for nodes that patch it."
                ),
                io.Clip.Output(
                    "clip", display_name="CLIP", tooltip="Its text encoder, for Load Part Dictionary or a text node."
                ),
                io.Vae.Output("vae", display_name="VAE", tooltip="Its autoencoder, for VAE Decode."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from .demo_model import load_demo_model

        return io.NodeOutput(*load_demo_model())


class BestiaryDemoPictures(io.ComfyNode):
    """Pictures to discover parts in and to train on, that need no download either."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryDemoPictures",
            display_name="Demo Pictures (Bestiary)",
            category="Bestiary/demo",
            description="Draws creatures of species that the miniature model never saw, 128x128 pixels, in place of a "
            "folder of your own pictures: for discovering parts, for training, for trying things out.",
            search_aliases=["bestiary creatures", "example images", "sample data"],
            inputs=[
                io.Int.Input(
                    "count", default=24, min=1, max=LARGEST_COUNT, tooltip="How many; they go round 14 species."
                ),
                io.Int.Input("seed", default=0, min=0, max=2**31 - 1, tooltip="The same seed draws the same pictures."),
            ],
            outputs=[
                io.Image.Output(
                    "images", display_name="images", is_output_list=True, tooltip="The drawings, one by one."
                ),
                io.String.Output(
                    "captions",
                    display_name="captions",
                    is_output_list=True,
                    tooltip="What each picture shows, in the words of the miniature model.",
                ),
            ],
        )

    @classmethod
    def execute(cls, count: int, seed: int) -> io.NodeOutput:
        from ...demo.creatures import held_out_set

        drawings = list(held_out_set(count, seed))
        images = [torch.from_numpy(drawing.image.copy())[None].float() / 255 for drawing in drawings]  # (1, H, W, 3)
        return io.NodeOutput(images, [drawing.caption for drawing in drawings])


NODES: list[type[io.ComfyNode]] = [BestiaryDemoModel, BestiaryDemoPictures]
