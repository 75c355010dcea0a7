"""Loads a diffusers folder of Stable Diffusion 3, 3.5, Flux.1 or the miniature of that class into a denoiser."""

import logging
import pickle
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, FluxTransformer2DModel, SD3Transformer2DModel
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ...concepts.errors import BestiaryError
from ..learning.denoiser.model_folder import read_config
from ..learning.denoiser.transformer_folder import T5, T5Place, TransformerFolder, read_transformer_folder
from .component_loading import load_component, load_tokenizer, placed, quiet_loading
from .flux_denoiser import FluxDenoiser
from .sd3_denoiser import SD3Denoiser
from .t5_text import load_t5
from .t5_text import load_tokenizer as load_t5_tokenizer
from .text_conditioning import TextEncoders, Tokenizer
from .transformer_network import TransformerDenoiser, TransformerParts

logger = logging.getLogger("bestiary")

FAMILIES: dict[str, tuple[type[TransformerDenoiser], type[nn.Module]]] = {
    "sd3": (SD3Denoiser, SD3Transformer2DModel),
    "bestiary-demo-dit": (SD3Denoiser, SD3Transformer2DModel),
    "flux": (FluxDenoiser, FluxTransformer2DModel),
}
"""Backbone -> denoiser, and diffusers' class of its transformer."""


def load_transformer(
    path: Path, device: torch.device, dtype: torch.dtype, t5: T5Place | None = None
) -> TransformerDenoiser:
    """Load a diffusers folder with a transformer, an autoencoder and text encoders.

    Args:
        path: the folder.
        device, dtype: where and in what it computes; CLIP stays fp32 on a CPU, and T5, which overflows in fp16, becomes bf16.
        t5: where T5 is, if not in the folder.

    Raises:
        BestiaryError: the folder is incomplete, mixed or of another family, or a file in it cannot be read.
    """
    folder = read_transformer_folder(path, t5)
    try:
        with quiet_loading():
            parts, kind = _load_parts(folder, device, dtype)
    except BestiaryError:
        raise
    except pickle.UnpicklingError as fault:
        # the fault's own text explains how to switch the protection off, so it is not passed on
        raise BestiaryError(
            f"{path} was not loaded: a .bin file in it is broken or asks for more than tensors. Such a file can run programs; get the model in "
            "safetensors format"
        ) from fault
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as fault:
        raise BestiaryError(f"{path} could not be loaded: {fault}. Download the model folder again") from fault
    if folder.missing:
        logger.warning(
            "%s has no text encoder %s: what it would say is zero, and learned vectors enter through %s alone",
            path, " and ".join(folder.missing), ", ".join(folder.text),
        )  # fmt: skip
    logger.info(
        "loaded %s from %s on %s in %s, flow shift %.4g",
        folder.backbone.name,
        path,
        device,
        dtype,
        folder.process.shift,
    )
    return kind(folder.backbone, parts)


def _load_parts(
    folder: TransformerFolder, device: torch.device, dtype: torch.dtype
) -> tuple[TransformerParts, type[TransformerDenoiser]]:
    kind, network = FAMILIES[folder.backbone.name]
    layout = torch.contiguous_format
    transformer = placed(load_component(network, folder.path / "transformer", dtype), device, layout)
    small = read_config(folder.autoencoder / "config.json").get("_class_name") == "AutoencoderTiny"
    vae = placed(load_component(AutoencoderTiny if small else AutoencoderKL, folder.autoencoder, dtype), device, layout)
    text = _load_text(folder, device, dtype)
    return TransformerParts(transformer, vae, text, folder.process, folder.scheduler), kind


def _load_text(folder: TransformerFolder, device: torch.device, dtype: torch.dtype) -> TextEncoders:
    """The text encoders that are there, on the device."""
    models: dict[str, nn.Module] = {}
    tokenizers: dict[str, Tokenizer] = {}
    for spec in folder.backbone.text_encoders:
        if spec.name not in folder.text:
            continue
        source = folder.text[spec.name]
        model: Any
        if spec.name == T5:
            model = load_t5(source, spec.width, torch.bfloat16 if dtype == torch.float16 else dtype)
            tokenizers[spec.name] = load_t5_tokenizer(folder.tokenizers[spec.name])
        else:
            known = CLIPTextModelWithProjection if spec.pooled and spec.projected else CLIPTextModel
            model = load_component(known, source, torch.float32 if device.type == "cpu" else dtype)
            tokenizers[spec.name] = load_tokenizer(folder.tokenizers[spec.name])
        models[spec.name] = model.to(device)
    return TextEncoders(folder.backbone, tokenizers, models)
