"""Loads a model folder into a denoiser: the table of loaders, and the one for Stable Diffusion 1.5, 2, XL and the demo model."""

import logging
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ...concepts.denoiser.denoiser import Denoiser
from ...concepts.denoiser.process import DiscreteProcess
from ...concepts.errors import BestiaryError
from ...concepts.files.pack import ROOT
from ..learning.denoiser.if_folder import is_if_folder
from ..learning.denoiser.model_folder import ModelFolder, named_backbone, read_model_folder
from ..learning.denoiser.transformer_folder import T5Place, is_transformer_folder
from .component_loading import load_component, load_tokenizer, placed, quiet_loading
from .diffusers_denoiser import DenoiserParts, DiffusersDenoiser
from .hardware import cpu_has_fast_bf16
from .sampling import SamplingDenoiser
from .text_conditioning import TextEncoders
from .transformer_loading import load_transformer

logger = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEMO, DEMO_DIT = "demo", "demo-dit"
EMBEDDED = {DEMO: "base_model", DEMO_DIT: "base_model_dit"}
"""Name of an embedded model -> its folder below `demo/`."""
EMBEDDED_BACKBONES = {"bestiary-demo": DEMO, "bestiary-demo-dit": DEMO_DIT}
"""Backbone of an embedded model -> its name."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


Loader = Callable[[Path, torch.device, torch.dtype], Denoiser]
"""Model folder, device and dtype -> the model."""


def demo_model_path(name: str = DEMO) -> Path:
    """Folder of an embedded miniature model: "demo", a UNet, or "demo-dit", a transformer."""
    return ROOT / "demo" / EMBEDDED[name]


def load_denoiser(
    path: Path | str, *, device: str = "auto", dtype: str = "auto", t5: T5Place | None = None
) -> SamplingDenoiser:
    """Load a model folder; "demo" and "demo-dit" name the embedded models.

    Args:
        path: folder with model_index.json, "demo", "demo-dit", or "owner/name" of a model in the Hugging Face cache.
        device: "auto" (CUDA, else Apple's GPU, else CPU), "cpu", "cuda", "cuda:1", "mps".
        dtype: "auto" (see `choose_dtype`), "fp32", "bf16" or "fp16". CLIP text encoders stay fp32 on a CPU.
        t5: where the T5 encoder of Stable Diffusion 3 or Flux is, if not in the folder.

    Raises:
        BestiaryError: the folder is missing, incomplete, mixed or of another family; device or dtype does not exist; `t5` for a model
            without T5.
    """
    folder = find_model(str(path))
    if is_if_folder(folder):
        raise BestiaryError(
            f"{folder} is a stage of DeepFloyd IF, which `bestiary train dreambooth` adapts and ComfyUI samples (Load DeepFloyd IF): give a "
            "Stable Diffusion folder here"
        )
    place = choose_device(device)
    # folders that name their backbone are loaded by its line in the table; others are identified by their configs
    usual = load_transformer if is_transformer_folder(folder) else load_stable_diffusion
    loader = LOADERS.get(named_backbone(folder) or "", usual)
    if t5 is not None and t5 != T5Place():
        if loader is not load_transformer:
            raise BestiaryError(
                f"base.text_encoder names a T5 encoder, but {folder} holds no model that reads one (Stable Diffusion 3, Flux.1): leave it out",
                option="base.text_encoder",
            )
        return load_transformer(folder, place, choose_dtype(dtype, place), t5)
    # what only commands ask for (a sampler config, dropping the autoencoder) is checked by no protocol
    return cast(SamplingDenoiser, loader(folder, place, choose_dtype(dtype, place)))


def load_stable_diffusion(path: Path, device: torch.device, dtype: torch.dtype) -> DiffusersDenoiser:
    """Load a diffusers folder of a UNet with cross-attention, an autoencoder and CLIP text encoders.

    Raises:
        BestiaryError: the folder is missing, incomplete, mixed or of another family.
    """
    # the configs say what the folder holds before any weight is read
    folder = read_model_folder(path)
    try:
        with quiet_loading():
            parts = _load_parts(folder, device, dtype)
    except BestiaryError:
        raise
    except pickle.UnpicklingError as fault:
        # the fault's own text explains how to switch the protection off, so it is not passed on
        raise BestiaryError(
            f"{folder.path} was not loaded: a .bin file in it is broken or asks for more than tensors. Such a file can run "
            "programs; get the model in safetensors format"
        ) from fault
    except (OSError, RuntimeError, ValueError, SafetensorError) as fault:
        raise BestiaryError(f"{folder.path} could not be loaded: {fault}. Download the model folder again") from fault
    logger.info("loaded %s from %s on %s in %s", folder.backbone.name, folder.path, device, dtype)
    return DiffusersDenoiser(folder.backbone, parts)


LOADERS: dict[str, Loader] = {
    **dict.fromkeys(("bestiary-demo", "sd15", "sd2", "sdxl"), load_stable_diffusion),
    **dict.fromkeys(("sd3", "flux", "bestiary-demo-dit"), load_transformer),
}
"""Backbone -> what loads its folder; a new backbone adds its line here."""


def find_model(name: str) -> Path:
    """Folder of a model: "demo", "demo-dit", a path, or "owner/name" if the Hugging Face cache holds it; nothing is downloaded.

    Raises:
        BestiaryError: `name` is not a path here and looks like a hub model that is not in the cache, or the embedded transformer has not been
            trained.
    """
    if name in EMBEDDED:
        folder = demo_model_path(name)
        if name == DEMO_DIT and not folder.is_dir():
            raise BestiaryError(
                f"the embedded transformer {name} is not part of this installation: {folder} does not exist. Train it once, which takes hours on "
                f"a CPU: bestiary demo train-base --shape dit --out {folder}; or give the folder of a model, or 'demo'"
            )
        return folder
    # a path goes before a name of the hub
    if Path(name).exists() or not HUB_NAME.fullmatch(name):
        return Path(name)
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as fault:
        raise BestiaryError(
            f"base model {name!r} is not a folder here, and no model of that name is in the Hugging Face cache: give a "
            f"folder or 'demo', or fetch it once with: hf download {name}"
        ) from fault


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" takes the fastest there is.

    Raises:
        BestiaryError: the device does not exist here; the message lists what does.
    """
    # from the slowest to the fastest, each put before the ones found so far
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available[:0] = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise BestiaryError(f"device {name!r} is not available here: choose auto or one of {', '.join(available)}")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name; "auto" is bf16 where the device multiplies it fast, else fp16 on a GPU and fp32 on a CPU.

    Raises:
        BestiaryError: no such dtype, or fp16 on a CPU, which computes it slowly and in part not at all.
    """
    if name == "auto":
        return _auto_dtype(device)
    if name not in DTYPES:
        raise BestiaryError(f"unknown dtype {name!r}: choose auto, {', '.join(DTYPES)}")
    if name == "fp16" and device.type == "cpu":
        raise BestiaryError("dtype fp16 needs a GPU: choose auto, fp32 or bf16 on the CPU")
    return DTYPES[name]


def _auto_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        return torch.bfloat16 if cpu_has_fast_bf16() else torch.float32
    return torch.float32


def _load_parts(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> DenoiserParts:
    """All modules of a model folder on their device, in the memory layout that is fastest there."""
    unet = load_component(UNet2DConditionModel, folder.path / "unet", dtype)
    # some autoencoders overflow in fp16 and say so in their config
    upcast = dtype == torch.float16 and bool(folder.configs["vae"].get("force_upcast", False))
    vae_class = AutoencoderTiny if folder.configs["vae"].get("_class_name") == "AutoencoderTiny" else AutoencoderKL
    vae = load_component(vae_class, folder.path / "vae", torch.float32 if upcast else dtype)
    text = _load_text(folder, torch.float32 if device.type == "cpu" else dtype)
    for model in text.models.values():
        model.to(device)
    # measured on a CPU in bf16: group norms of channels_last tensors take 10 times as long as of contiguous ones, but
    # convolutions alone (AutoencoderTiny) a third of the time
    slow_bf16 = device.type == "cpu" and dtype == torch.bfloat16
    layout = torch.contiguous_format if slow_bf16 else torch.channels_last
    vae_layout = torch.channels_last if isinstance(vae, AutoencoderTiny) else layout
    return DenoiserParts(
        unet=placed(unet, device, layout),
        vae=placed(vae, device, vae_layout),
        text=text,
        process=discrete_process(folder.configs["scheduler"], device),
        scheduler_config=folder.configs["scheduler"],
        memory_format=layout,
        vae_memory_format=vae_layout,
        float32_backward=slow_bf16,
    )


def discrete_process(config: Mapping[str, Any], device: torch.device | str = "cpu") -> DiscreteProcess:
    """The forward process a scheduler_config.json states, its `(T,)` table on the device that will read it.

    Raises:
        BestiaryError: the model predicts something else than noise or velocity.
    """
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise BestiaryError(f"this model predicts {prediction!r}; only epsilon and v_prediction are supported")
    # the scheduler of diffusers turns betas of any spelling into one table (T,)
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    scheduler = cast(DDPMScheduler, DDPMScheduler.from_config(known))  # a pair only where it is asked for
    return DiscreteProcess(scheduler.alphas_cumprod.float().to(device), prediction)


def _load_text(folder: ModelFolder, dtype: torch.dtype) -> TextEncoders:
    """Text encoders with their tokenizers; conditionings are `(B, L, E)`."""
    models, tokenizers = {}, {}
    for spec, component in zip(folder.backbone.text_encoders, folder.text_components, strict=True):
        kind = CLIPTextModelWithProjection if spec.pooled and spec.projected else CLIPTextModel
        models[spec.name] = load_component(kind, folder.path / component, dtype)
        tokenizers[spec.name] = load_tokenizer(folder.path / component.replace("text_encoder", "tokenizer"))
    return TextEncoders(folder.backbone, tokenizers, models)
