"""Bestiary: learn the parts of things from photographs and recombine them."""

WEB_DIRECTORY = "./web"
__version__ = "0.1.0"


async def comfy_entrypoint() -> object:
    """What ComfyUI calls when it loads the pack; imports nothing of ComfyUI before that."""
    from .nodes.registration import BestiaryExtension

    return BestiaryExtension()
