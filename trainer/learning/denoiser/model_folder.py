"""What kind of diffusion model a diffusers folder holds, read from its configs alone, before any weight is loaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....concepts.denoiser.backbone import BACKBONES, Backbone, TextEncoderSpec, get_backbone
from ....concepts.errors import BestiaryError
from ....concepts.files.wrong_download import wrong_download

CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
WEIGHT_SUFFIXES = (".safetensors", ".bin")
SD2_WIDTH = 1024
NEEDED_FIELDS = {
    "unet": ("in_channels", "cross_attention_dim"),
    "vae": ("latent_channels", "block_out_channels"),
    "text_encoder": ("hidden_size",),
    "text_encoder_2": ("hidden_size",),
}
"""Component -> fields its config must have before the model can be identified."""

Config = Mapping[str, Any]
"""Content of a config.json; what its fields hold depends on the version of diffusers or transformers that wrote it."""


@dataclass(frozen=True)
class ModelFolder:
    """Configs of one diffusers folder and the backbone they describe."""

    path: Path
    backbone: Backbone
    configs: Mapping[str, Config]
    """Component (unet, vae, text_encoder, text_encoder_2, scheduler) -> its config."""

    @property
    def text_components(self) -> tuple[str, ...]:
        """Names of the text encoder folders, in the order of the backbone's encoders."""
        return tuple(name for name in ("text_encoder", "text_encoder_2") if name in self.configs)


def read_model_folder(path: Path) -> ModelFolder:
    """Read the configs of a diffusers folder and recognise SD1.5, SD2, SDXL or the demo model.

    Raises:
        BestiaryError: the folder is missing, is not a diffusers folder, mixes components of different models, or lacks
            weights; the message says what was found and what to do.
    """
    # from the folder to its configs, then whether these belong together
    _check_is_folder(path)
    read_config(path / "model_index.json")
    configs = {name: read_config(path / name / "config.json") for name in ("unet", "vae", "text_encoder")}
    configs["scheduler"] = read_config(path / "scheduler" / "scheduler_config.json")
    if (path / "text_encoder_2" / "config.json").is_file():
        configs["text_encoder_2"] = read_config(path / "text_encoder_2" / "config.json")
    for component in ("unet", "vae", *(name for name in configs if name.startswith("text_encoder"))):
        check_has_weights(path / component)
    _check_fields(path, configs)
    _check_fit(path, configs)
    name = _backbone_name(path, configs)
    return ModelFolder(path, _backbone_of(name, configs), configs)


def _check_is_folder(path: Path) -> None:
    if path.is_file() and path.suffix in CHECKPOINT_SUFFIXES:
        pipeline = "StableDiffusionXLPipeline or StableDiffusionPipeline"
        raise BestiaryError(
            f"{path} is a single checkpoint file; a diffusers folder is needed. Convert it once with diffusers ({pipeline}): "
            f"StableDiffusionPipeline.from_single_file({str(path)!r}).save_pretrained({str(path.with_suffix(''))!r}), "
            "then give the new folder"
        )
    if path.suffix == ".gguf":
        raise BestiaryError(
            f"{path} is a GGUF file, whose weights are quantised for sampling: give a diffusers folder with the fp16, bf16 or fp32 weights of "
            "this model"
        )
    # each of the three mistakes has a remedy of its own
    if not path.is_dir():
        raise BestiaryError(f"base model folder {path} does not exist: give a diffusers folder, or 'demo'")
    if not (path / "model_index.json").is_file():
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise BestiaryError(
            f"{path} is not a diffusers folder: it has no model_index.json (found: {found}). Give the folder that holds "
            "model_index.json, unet, vae, text_encoder, tokenizer and scheduler, or 'demo'"
        )


def read_config(path: Path) -> dict[str, Any]:
    """The content of a config file.

    Raises:
        BestiaryError: it is missing, not the file that should lie there, or broken.
    """
    if not path.is_file():
        raise BestiaryError(
            f"{path.parent.parent if path.name != 'model_index.json' else path.parent} is incomplete: {path.parent.name}/"
            f"{path.name} is missing; download the whole model folder again"
        )
    # a download that was cut off often leaves half a file
    _refuse_wrong_download(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise BestiaryError(f"{path} is not readable JSON ({fault}): download the model folder again") from fault
    if not isinstance(content, dict):
        raise BestiaryError(f"{path} holds a {type(content).__name__}, not settings: download the model folder again")
    return content


def _refuse_wrong_download(path: Path) -> None:
    """Raises BestiaryError where a pointer of Git LFS, a web page or nothing lies in the place of a file."""
    try:
        with path.open("rb") as stream:
            wrong = wrong_download(stream.read(512))
    except OSError as fault:
        raise BestiaryError(f"could not read {path}: {fault.strerror or fault}") from fault
    if wrong is not None:
        raise BestiaryError(f"{path} {wrong}")


def check_has_weights(folder: Path) -> None:
    """Raise BestiaryError unless a component's folder holds weights, none of them a pointer or a web page."""
    for entry in sorted(folder.iterdir()):
        if entry.suffix in WEIGHT_SUFFIXES and entry.is_file() and entry.stat().st_size:
            _refuse_wrong_download(entry)
    if any(entry.suffix in WEIGHT_SUFFIXES and entry.stat().st_size > 0 for entry in folder.iterdir()):
        return
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
    raise BestiaryError(
        f"{folder} holds no weights (.safetensors or .bin; found: {found}): download the model folder completely"
    )


def _check_fields(path: Path, configs: Mapping[str, Config]) -> None:
    lacking = [
        f"{name}/config.json lacks {field}"
        for name, fields in NEEDED_FIELDS.items()
        for field in fields
        if name in configs and field not in configs[name]
    ]
    kind = str(configs["unet"].get("_class_name", "UNet2DConditionModel"))
    if lacking and kind == "UNet2DConditionModel":  # other families are named by _check_fit
        raise BestiaryError(
            f"{path} is not a Stable Diffusion model: {'; '.join(lacking)}; download the model folder again"
        )


def _check_fit(path: Path, configs: Mapping[str, Config]) -> None:
    """The parts of a folder must come from one model."""
    unet, vae = configs["unet"], configs["vae"]
    if unet.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
        raise BestiaryError(
            f"{path}: the denoiser is a {unet['_class_name']}, which is not supported; "
            "choose a Stable Diffusion 1.5, 2 or XL model"
        )
    # the checks of one model: channels of latents, then widths of text
    if unet["in_channels"] != vae["latent_channels"]:
        raise BestiaryError(
            f"{path}: the denoiser takes {unet['in_channels']} channels but the autoencoder gives {vae['latent_channels']}: "
            "inpainting and other special models are not supported, and parts of different models do not mix"
        )
    # several text encoders are read side by side, so their widths add up
    widths = [configs[name]["hidden_size"] for name in configs if name.startswith("text_encoder")]
    if unet["cross_attention_dim"] != sum(widths):
        raise BestiaryError(
            f"{path}: the denoiser expects text {unet['cross_attention_dim']} wide, but the text encoders give "
            f"{' + '.join(map(str, widths))}: the folder mixes parts of different models; download one model completely"
        )


def named_backbone(path: Path) -> str | None:
    """The backbone that a folder names in its bestiary.json; None where there is none.

    Raises:
        BestiaryError: the file is not readable, or no backbone has this name.
    """
    named = path / "bestiary.json"
    return get_backbone(str(read_config(named).get("backbone"))).name if named.is_file() else None


def _backbone_name(path: Path, configs: Mapping[str, Config]) -> str:
    # our own folders name themselves; others are identified by their configs
    if named := named_backbone(path):
        return named
    if "text_encoder_2" in configs:
        return "sdxl"
    if configs["vae"]["latent_channels"] == BACKBONES["bestiary-demo"].latent_channels:
        return "bestiary-demo"
    text = configs["text_encoder"]
    # OpenCLIP's ViT-H, the encoder of SD2, has a plain gelu; OpenAI's ViT-L a quick one
    return "sd2" if text["hidden_size"] == SD2_WIDTH or text.get("hidden_act") == "gelu" else "sd15"


def _backbone_of(name: str, configs: Mapping[str, Config]) -> Backbone:
    """The record of the backbone with widths and sizes as the configs state them."""
    record = BACKBONES[name]
    specs: list[TextEncoderSpec] = []
    for spec, component in zip(record.text_encoders, ("text_encoder", "text_encoder_2"), strict=False):
        text = configs[component]
        specs.append(replace(spec, width=text["hidden_size"], max_tokens=text.get("max_position_embeddings", 77)))
    # every level of the autoencoder but the first halves the picture
    factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    return replace(
        record,
        text_encoders=tuple(specs),
        image_size=int(configs["unet"].get("sample_size") or record.image_size // factor) * factor,
        latent_channels=configs["vae"]["latent_channels"],
        latent_factor=factor,
    )
