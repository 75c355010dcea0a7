"""The transformer of the embedded models as ComfyUI's MODEL, from diffusers' SD3Transformer2DModel.

ComfyUI has this network for Stable Diffusion 3, but its checkpoint detection wants 16 channels and as many blocks as heads. Imported only
where the model is loaded, since it imports ComfyUI's model code.
"""

from __future__ import annotations

from typing import ClassVar, TypedDict

import comfy.latent_formats
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.supported_models_base
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

HEAD_WIDTH = 64
"""Channels of an attention head in ComfyUI's network, which derives widths from it."""


class TransformerSettings(TypedDict):
    """Used entries of diffusers' config.json of an SD3Transformer2DModel."""

    sample_size: int
    patch_size: int
    in_channels: int
    out_channels: int
    num_layers: int
    num_attention_heads: int
    joint_attention_dim: int
    pooled_projection_dim: int
    pos_embed_max_size: int


class DemoTransformerConfig(comfy.supported_models_base.BASE):
    """ComfyUI's configuration of the transformer."""

    # the defaults are entries of a UNet
    unet_extra_config: ClassVar[dict[str, object]] = {}
    memory_usage_factor = 1.2

    def inpaint_model(self) -> bool:
        """False: more than four input channels are taken for inpainting, but here all eight are the latent."""
        return False

    def get_model(
        self, state_dict: dict[str, Tensor], prefix: str = "", device: torch.device | None = None
    ) -> comfy.model_base.SD3:
        """Stable Diffusion 3 with these sizes."""
        return comfy.model_base.SD3(self, device=device)


def transformer_config(config: TransformerSettings) -> dict[str, object]:
    """ComfyUI's configuration from diffusers' config.json, for heads 64 wide and norms of queries and keys."""
    heads = config["num_attention_heads"]
    sizes = {"in_features": config["joint_attention_dim"], "out_features": HEAD_WIDTH * heads}
    return {
        "input_size": None,
        "patch_size": config["patch_size"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        # ComfyUI calls heads the depth
        "depth": heads,
        "num_blocks": config["num_layers"],
        "adm_in_channels": config["pooled_projection_dim"],
        "context_embedder_config": {"target": "torch.nn.Linear", "params": sizes},
        "num_patches": config["pos_embed_max_size"] ** 2,
        "pos_embed_max_size": config["pos_embed_max_size"],
        "pos_embed_scaling_factor": None,
        "qk_norm": "rms",
    }


def transformer_model(
    config: TransformerSettings,
    tensors: dict[str, Tensor],
    latent_format: comfy.latent_formats.LatentFormat,
    shift: float,
) -> ModelPatcher:
    """MODEL of weights by diffusers' names, which are taken out of `tensors`; what is left there has no place in it."""
    settings = DemoTransformerConfig(transformer_config(config))
    settings.latent_format = latent_format
    settings.sampling_settings = {"shift": shift}
    settings.set_inference_dtype(torch.float32, None)
    weights = {"pos_embed": tensors.pop("pos_embed.pos_embed")}  # (1, patches, width)
    _swap_for_conversion(tensors, config["num_attention_heads"], config["num_layers"])
    weights |= comfy.model_detection.convert_diffusers_mmdit(tensors)
    model = settings.get_model(weights, "")
    model.load_model_weights(weights, "")
    manager = comfy.model_management
    return ModelPatcher(model, load_device=manager.get_torch_device(), offload_device=manager.unet_offload_device())


def _swap_for_conversion(tensors: dict[str, Tensor], heads: int, blocks: int) -> None:
    """Scale and shift of the last block's text stand the other way round in diffusers.

    ComfyUI's conversion swaps them in the block that it believes to be the last, counting as many blocks as heads.
    """
    if heads == blocks:
        return
    for block in {heads - 1, blocks - 1} & set(range(blocks)):
        for end in ("weight", "bias"):
            name = f"transformer_blocks.{block}.norm1_context.linear.{end}"
            tensors[name] = torch.cat(tensors[name].chunk(2)[::-1])
