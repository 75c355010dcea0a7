"""A denoiser over MODEL, CLIP and VAE as ComfyUI loaded them: no second copy of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...concepts.denoiser.denoiser import Denoiser
from ...concepts.denoiser.process import FlowProcess
from .comfy_autoencoder import ComfyImages
from .comfy_network import ComfyNetwork
from .comfy_text import ComfyTextSide, text_encoders
from .comfy_transformer import ComfyTransformer
from .denoiser_record import detect_backbone, process_of, transformer_record
from .trainable_weights import make_trainable
from .training_faults import host_in_training
from .transformer_layers import family_of
from .unet_layers import read_unet_layers


class ComfyDenoiser(Denoiser):
    """A latent diffusion model over ComfyUI's objects."""

    network: ComfyNetwork | ComfyTransformer
    text: ComfyTextSide

    def __init__(self, model: Any, clip: Any, vae: Any | None = None) -> None:
        """`model` ModelPatcher, `clip` CLIP and `vae` VAE; the MODEL's own patches (LoRA and so on) stay in force.

        Raises:
            BestiaryError: the MODEL or CLIP is of another kind than Stable Diffusion 1.5, 2, XL, 3, Flux.1 and the demo models, or
                they do not belong together.
        """
        # another kind of MODEL is refused before anything else is asked of it
        if family_of(model.model.diffusion_model) is None:
            read_unet_layers(model.model.diffusion_model, model.model.model_config.unet_config)
        # a clone: what we hang on it never reaches the graph's own MODEL
        self._patcher, self._clip = model.clone(), clip
        # process and backbone as this model has them, patches of other nodes included
        process, encoders = process_of(model), text_encoders(clip)
        widths = {name: encoder.width for name, encoder in encoders.items()}
        network: ComfyNetwork | ComfyTransformer
        if isinstance(process, FlowProcess):
            backbone = transformer_record(model, clip, widths)
            network = ComfyTransformer(self._patcher, backbone, process)
        else:
            backbone = detect_backbone(model, widths)
            network = ComfyNetwork(self._patcher, backbone, process)
        text = ComfyTextSide(backbone, encoders, self._load_text)
        super().__init__(backbone, text, ComfyImages(self._patcher, vae, backbone), process, network)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Everything a training needs, as long as it lasts: room, all weights loaded, gradients, hooks on the modules.

        Raises:
            BestiaryError: weights are quantised, or two trainings run on one denoiser.
        """
        self.network.check_idle()
        # ComfyUI runs nodes in inference mode, in which nothing can be learned
        with torch.inference_mode(False), torch.enable_grad(), host_in_training():
            self.make_room()
            with self.network.in_training():
                yield

    def make_room(self) -> None:
        """Ask ComfyUI to unload what else is on the device, and to load all weights; needed again after previews."""
        import comfy.model_management

        # ComfyUI unloads other models until this much is free: all of them, as its own training does
        comfy.model_management.load_models_gpu(
            [self._patcher, self._clip.patcher], memory_required=1e20, force_full_load=True
        )
        make_trainable(self._patcher.model, "MODEL")
        make_trainable(self._clip.cond_stage_model, "CLIP")

    def _load_text(self) -> None:
        import comfy.model_management

        if not self.network.is_training:
            comfy.model_management.load_models_gpu([self._clip.patcher])
