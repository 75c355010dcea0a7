"""The embedded miniature model, as graph blocks."""

from __future__ import annotations

from comfy_api.latest import io

from .comfy_version import schema


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
                io.Model.Output("model", display_name="MODEL"),
                io.Clip.Output("clip", display_name="CLIP"),
                io.Vae.Output("vae", display_name="VAE"),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from .demo_model import load_demo_model

        return io.NodeOutput(*load_demo_model())


NODES: list[type[io.ComfyNode]] = [BestiaryDemoModel]
