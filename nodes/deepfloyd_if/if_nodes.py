"""DeepFloyd IF as graph blocks: a loader for one stage, and the conditioning of stage II."""

from __future__ import annotations

import logging
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ...concepts.errors import BestiaryError
from ...concepts.name_search import choices_text, shown_name
from ..host.comfy_version import schema

log = logging.getLogger(__name__)

CATEGORY = "Bestiary/deepfloyd if"
NO_FOLDER = "(no DeepFloyd IF below models/diffusers)"
FROM_FOLDER, NO_TEXT = "from the model's folder", "none"
LARGEST_EDGE = 4096
_state = {"noted": False}
"""Whether the licence was named since ComfyUI started."""


def if_folders() -> list[str]:
    """Folders of DeepFloyd IF below models/diffusers, by name."""
    return sorted(_known_folders())


def _known_folders() -> dict[str, Path]:
    """Name -> folder; of two with one name the first counts."""
    roots = [Path(place) for place in folder_paths.get_folder_paths("diffusers")]
    with_unet = [path for root in roots if root.is_dir() for path in sorted(root.iterdir()) if (path / "unet").is_dir()]
    if not with_unet:
        return {}
    from ...trainer.learning.denoiser.if_folder import is_if_folder

    return {path.name: path for path in reversed(with_unet) if is_if_folder(path)}


def _folder(name: str, path: str) -> Path:
    """The folder that a name of the menu or a path means; the path wins.

    Raises:
        BestiaryError: no folder has this name.
    """
    if path.strip():
        return Path(path.strip()).expanduser()
    known = _known_folders()
    if name in known:
        return known[name]
    listed = choices_text(name, sorted(known)) or "none"
    raise BestiaryError(
        f"no DeepFloyd IF folder {shown_name(name)} below models/diffusers; there is: {listed}. "
        "Put a diffusers folder such as IF-I-M-v1.0 there, or give its path"
    )


def _text_files() -> list[str]:
    return folder_paths.get_filename_list("text_encoders")


class BestiaryLoadIF(io.ComfyNode):
    """One stage as MODEL, CLIP and VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryLoadIF",
            category=CATEGORY,
            search_aliases=["deepfloyd", "if-i-xl", "pixel diffusion", "load diffusers model"],
            inputs=[
                io.Combo.Input("folder", options=if_folders() or [NO_FOLDER]),
                io.Combo.Input("text_encoder", options=[FROM_FOLDER, *_text_files(), NO_TEXT], default=FROM_FOLDER),
                io.Boolean.Input("dynamic_thresholding", default=True, optional=True),
                io.String.Input("path", default="", optional=True),
            ],
            outputs=[
                io.Model.Output("model"),
                io.Clip.Output("clip"),
                io.Vae.Output("vae"),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None, path: str | None = "") -> bool | str:
        from ...trainer.learning.denoiser.if_folder import read_if_folder

        # what is linked is known when the graph runs; the menu's value counts only where no path is given
        if path is None or (folder is None and not path):
            return True
        try:
            read_if_folder(_folder(folder or "", path))
        except BestiaryError as fault:
            return str(fault)
        return True

    @classmethod
    def execute(
        cls, folder: str, text_encoder: str, dynamic_thresholding: bool = True, path: str = ""
    ) -> io.NodeOutput:
        import comfy.sd

        from ...trainer.learning.denoiser.if_folder import LICENCE_NOTE, read_if_folder
        from .if_model import load_model
        from .if_text import load_text

        found = read_if_folder(_folder(folder, path))
        if not _state["noted"]:
            log.warning("%s", LICENCE_NOTE)
            _state["noted"] = True
        # the text first: on a machine with little memory it can leave before the UNet comes
        clip = None
        if text_encoder != NO_TEXT:
            source = found.text_encoder
            if text_encoder != FROM_FOLDER:
                source = Path(folder_paths.get_full_path_or_raise("text_encoders", text_encoder))
            if source is None:
                raise BestiaryError(
                    f"{found.path} holds no text_encoder: choose a T5 file in models/text_encoders, such as "
                    "t5xxl_fp16.safetensors, or none for stage II"
                )
            clip = load_text(source, found.text_width)
        # ComfyUI's own autoencoder for models that draw in pixels
        vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
        return io.NodeOutput(load_model(found, dynamic_thresholding), clip, vae)


class BestiaryIFUpscale(io.ComfyNode):
    """What stage II must know besides the text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryIFUpscale",
            category=CATEGORY,
            search_aliases=["deepfloyd stage 2", "super resolution", "upscale"],
            inputs=[
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Image.Input("image"),
                io.Int.Input("noise_level", default=250, min=0, max=999, optional=True),
                io.Int.Input("scale", default=4, min=1, max=8, optional=True),
            ],
            outputs=[
                io.Conditioning.Output("positive_out"),
                io.Conditioning.Output("negative_out"),
                io.Latent.Output("latent"),
            ],
        )

    @classmethod
    def execute(
        cls, positive: list, negative: list, image: torch.Tensor, noise_level: int = 250, scale: int = 4
    ) -> io.NodeOutput:
        import comfy.model_management
        import node_helpers

        from .if_model import LOW_PICTURE, NOISE_LEVEL

        low = image[..., :3].movedim(-1, 1) * 2 - 1  # (B, 3, h, w) in -1..1
        height, width = low.shape[2] * scale, low.shape[3] * scale
        if max(height, width) > LARGEST_EDGE:
            raise BestiaryError(
                f"a picture of {low.shape[3]} x {low.shape[2]} pixels times {scale} is {width} x {height}: at most "
                f"{LARGEST_EDGE} pixels an edge. Scale the picture down to 64 x 64 first, or choose a smaller scale"
            )
        values = {LOW_PICTURE: low, NOISE_LEVEL: noise_level}
        conditionings = [node_helpers.conditioning_set_values(one, values) for one in (positive, negative)]
        empty = torch.zeros(len(low), 3, height, width, device=comfy.model_management.intermediate_device())
        return io.NodeOutput(*conditionings, {"samples": empty})


NODES: list[type[io.ComfyNode]] = [BestiaryLoadIF, BestiaryIFUpscale]
