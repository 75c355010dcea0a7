"""What paints the place of a scene anew: a model folder by our own loop, an inpainting model by diffusers, or a running ComfyUI."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...concepts.errors import BestiaryError
from .comfy_queue import ComfyQueue, checked_workflow, filled_workflow
from .scene_settings import RepaintSettings

if TYPE_CHECKING:
    from ..model.sampling import SamplingDenoiser

Plane = NDArray[np.uint8]

INPAINTING_CHANNELS = 9
"""Input channels of a UNet that takes a mask and the masked picture beside the latents."""


class Painter(Protocol):
    """Paints masked places."""

    @property
    def name(self) -> str:
        """As the set records it: what painted, with the settings that decide."""
        ...

    def paint(self, picture: Plane, mask: Plane, prompt: str, seed: int) -> Plane:
        """The picture `(H, W, 3)` painted anew where the mask `(H, W)` is 255, of the same size."""
        ...


def open_painter(asked: RepaintSettings) -> Painter:
    """The painter that settings name; models load with the first picture.

    Raises:
        BestiaryError: no model, address or workflow where one is needed, or a workflow without the two pictures.
    """
    if asked.mode == "comfy":
        return ComfyPainter(asked)
    # the folder's configs say what it is before any weight is read
    folder = _inpainting_folder(asked.base)
    return ModelPainter(asked) if folder is None else InpaintingPainter(asked, folder)


class ModelPainter:
    """Any Stable Diffusion of ours, the embedded model included."""

    def __init__(self, asked: RepaintSettings) -> None:
        """`asked`: model, steps, strength, guidance and prompts."""
        self._asked = asked

    @property
    def name(self) -> str:
        """The model and its settings."""
        return _named(f"model {self._asked.base}", self._asked)

    @cached_property
    def _denoiser(self) -> SamplingDenoiser:
        from ..model.backbones import load_denoiser

        denoiser = load_denoiser(self._asked.base, device=self._asked.device, dtype=self._asked.dtype)
        if denoiser.process.prediction == "flow":
            raise BestiaryError(
                f"{self._asked.base} is a {denoiser.backbone.name} model, which does not repaint scenes: choose Stable Diffusion 1.5, 2 or XL, or "
                "'demo'"
            )
        return denoiser

    def paint(self, picture: Plane, mask: Plane, prompt: str, seed: int) -> Plane:
        """The picture `(H, W, 3)` painted anew where the mask `(H, W)` is 255."""
        import torch

        from ..composing.picture_making import encode_resolved
        from ..model.repainting import repaint_images

        asked, denoiser = self._asked, self._denoiser
        positive, negative = (encode_resolved(denoiser, [_plain_prompt(text)]) for text in (prompt, asked.negative))
        images = torch.from_numpy(picture.copy()).permute(2, 0, 1).unsqueeze(0) / 255  # (1, 3, H, W)
        masks = torch.from_numpy(mask.copy()).unsqueeze(0) / 255  # (1, H, W)
        painted = repaint_images(
            denoiser,
            positive,
            negative,
            images,
            masks,
            seeds=[seed],
            steps=asked.steps,
            strength=asked.strength,
            guidance=asked.guidance,
        )
        return (painted[0].permute(1, 2, 0) * 255).round().byte().numpy()


class InpaintingPainter:
    """A model whose network takes the mask itself, in diffusers' own pipeline."""

    def __init__(self, asked: RepaintSettings, folder: Path) -> None:
        """`folder`: in diffusers' layout."""
        self._asked, self._folder = asked, folder

    @property
    def name(self) -> str:
        """The model and its settings."""
        return _named(f"inpainting model {self._asked.base}", self._asked)

    @cached_property
    def _pipeline(self) -> Any:
        from diffusers import AutoPipelineForInpainting

        from ..model.backbones import choose_device, choose_dtype

        place = choose_device(self._asked.device)
        try:
            pipeline = AutoPipelineForInpainting.from_pretrained(
                self._folder, torch_dtype=choose_dtype(self._asked.dtype, place), local_files_only=True
            )
        except (OSError, ValueError, RuntimeError) as fault:
            raise BestiaryError(
                f"{self._folder} could not be loaded: {fault}. Download the model folder again"
            ) from fault
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(place)

    def paint(self, picture: Plane, mask: Plane, prompt: str, seed: int) -> Plane:
        """The picture `(H, W, 3)` painted anew where the mask `(H, W)` is 255."""
        import torch
        from PIL import Image

        asked = self._asked
        height, width = mask.shape
        painted = self._pipeline(
            prompt=prompt,
            negative_prompt=asked.negative,
            image=Image.fromarray(picture),
            mask_image=Image.fromarray(mask),
            height=height,
            width=width,
            num_inference_steps=asked.steps,
            strength=asked.strength,
            guidance_scale=asked.guidance,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        return np.asarray(painted.convert("RGB"))


class ComfyPainter:
    """A running ComfyUI with a workflow of the user's."""

    def __init__(self, asked: RepaintSettings) -> None:
        """Reads the workflow; the server is asked with the first picture.

        Raises:
            BestiaryError: no address or no workflow, or the workflow lacks one of the two pictures.
        """
        if not asked.url or asked.workflow is None:
            raise BestiaryError(
                "painting with ComfyUI needs its address and a workflow: give --url http://127.0.0.1:8188 and --workflow FILE, "
                "saved with Export (API), whose two Load Image nodes are titled canvas and mask"
            )
        self._asked, self._queue = asked, ComfyQueue(asked.url)
        self._workflow: Mapping[str, Any] = checked_workflow(asked.workflow)

    @property
    def name(self) -> str:
        """The workflow; two with the same content are the same painter."""
        content = hashlib.sha256(json.dumps(self._workflow, sort_keys=True).encode()).hexdigest()[:12]
        return f"comfy {content}"

    def paint(self, picture: Plane, mask: Plane, prompt: str, seed: int) -> Plane:
        """The picture `(H, W, 3)` painted anew where the mask `(H, W)` is 255."""
        canvas = self._queue.upload("canvas", picture)
        # the same file serves the image output and, by its alpha, the mask output of Load Image
        both = np.dstack([mask, mask, mask, 255 - mask])
        filled = filled_workflow(self._workflow, canvas, self._queue.upload("mask", both), prompt, seed)
        return self._queue.run(filled, (mask.shape[0], mask.shape[1]))


def _named(model: str, asked: RepaintSettings) -> str:
    return f"{model}, strength {asked.strength:g}, {asked.steps} steps, guidance {asked.guidance:g}"


def _inpainting_folder(base: str) -> Path | None:
    """The folder of a base model whose network takes nine channels; None for every other."""
    from ..model.backbones import find_model

    folder = find_model(base)
    config = folder / "unet" / "config.json"
    try:
        channels = json.loads(config.read_text("utf-8")).get("in_channels")
    except (OSError, ValueError, AttributeError):
        # what is wrong with the folder is said when it is loaded
        return None
    return folder if channels == INPAINTING_CHANNELS else None


def _plain_prompt(text: str) -> Any:
    """A prompt without part tokens, as composing reads it."""
    from ...concepts.part_prompt.part_prompt import parse_part_prompt, resolve_prompt

    return resolve_prompt(parse_part_prompt(text), {})
