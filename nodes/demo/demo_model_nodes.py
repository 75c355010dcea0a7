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
            description=(
                "The miniature model included in Bestiary: generates creatures of 128x128 pixels in seconds on a "
                "CPU, without any download. It works with all core nodes; use 128x128 latents."
            ),
            search_aliases=["bestiary base model", "tiny checkpoint", "load checkpoint"],
            inputs=[],
            outputs=[
                io.Model.Output(
                    "model", display_name="MODEL", tooltip="The denoiser, for a sampler or for nodes that patch it."
                ),
                io.Clip.Output(
                    "clip",
                    display_name="CLIP",
                    tooltip="Its text encoder, for Load Part Dictionary or a text encode node.",
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
            description=(
                "Draws pictures of creatures, 128x128 pixels, to try part discovery and training without "
                "pictures of your own. The miniature model was not trained on these species."
            ),
            search_aliases=["bestiary creatures", "example images", "sample data"],
            inputs=[
                io.Int.Input(
                    "count",
                    default=24,
                    min=1,
                    max=LARGEST_COUNT,
                    tooltip="Number of pictures; they cycle through 14 species.",
                ),
                io.Int.Input("seed", default=0, min=0, max=2**31 - 1, tooltip="The same seed gives the same pictures."),
                io.Int.Input(
                    "first",
                    default=0,
                    min=0,
                    max=13,
                    optional=True,
                    tooltip="Number of the species of the first picture; the others follow in order.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "images", display_name="images", is_output_list=True, tooltip="The drawings, one by one."
                ),
                io.String.Output(
                    "captions",
                    display_name="captions",
                    is_output_list=True,
                    tooltip="One caption per picture, in the vocabulary of the miniature model.",
                ),
                io.Mask.Output(
                    "masks",
                    display_name="masks",
                    is_output_list=True,
                    tooltip="White where the creature is, one per picture.",
                ),
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
