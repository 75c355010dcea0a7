"""What a diffusers folder of a diffusion transformer holds (Stable Diffusion 3, 3.5, Flux.1, the miniature), read before any weight is loaded.

Layout as diffusers' StableDiffusion3Pipeline and FluxPipeline save it. Of SD3 single text encoders may be left out, as its users do to save memory;
what they would say is then zero, as in ComfyUI.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....concepts.denoiser.backbone import BACKBONES, Backbone, TextEncoderSpec
from ....concepts.denoiser.process import FlowProcess
from ....concepts.errors import BestiaryError
from ....concepts.files.pack import ROOT
from .model_folder import Config, check_has_weights, named_backbone, read_config
from .t5_weights import TABLE, t5_files, t5_header

CLASSES = {"SD3Transformer2DModel": "sd3", "FluxTransformer2DModel": "flux"}
"""Class of the transformer -> backbone."""
COMPONENTS = {
    "sd3": {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"},
    "flux": {"clip_l": "text_encoder", "t5xxl": "text_encoder_2"},
    "bestiary-demo-dit": {"clip_l": "text_encoder"},
}
"""Backbone -> text encoder -> its folder."""
MAY_LACK = ("sd3",)
"""Backbones of which single text encoders may be missing."""
T5 = "t5xxl"
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
STATIC_MU = 1.15
"""Flux's shift grows with the picture in diffusers; ComfyUI keeps that of 1024 px, and so do we."""


@dataclass(frozen=True)
class T5Place:
    """Where a T5 encoder and its tokenizer are, if not in the model's folder."""

    encoder: Path | None = None
    """Folder, or one safetensors file in ComfyUI's format."""
    tokenizer: Path | None = None


@dataclass(frozen=True)
class TransformerFolder:
    """Configs of one folder and the backbone they describe."""

    path: Path
    backbone: Backbone
    process: FlowProcess
    scheduler: Config
    autoencoder: Path
    """Folder of the autoencoder."""
    text: Mapping[str, Path]
    """Text encoder -> its folder, or T5's file; those that are missing are left out."""
    tokenizers: Mapping[str, Path]
    """Text encoder -> folder of its tokenizer."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Text encoders whose states are zero."""
        return tuple(spec.name for spec in self.backbone.text_encoders if spec.name not in self.text)


def component_folder(path: Path, component: str) -> Path:
    """Folder of a component; the miniature shares autoencoder and tokenizer with the embedded UNet, in whose folder they lie."""
    own, shared = path / component, ROOT / "demo" / "base_model" / component
    is_miniature = not own.is_dir() and is_transformer_folder(path) and named_backbone(path) == "bestiary-demo-dit"
    return shared if is_miniature and shared.is_dir() else own


def is_transformer_folder(path: Path) -> bool:
    """Whether a folder holds a transformer in place of a UNet, of whatever class."""
    return (path / "transformer" / "config.json").is_file()


def read_transformer_folder(path: Path, t5: T5Place | None = None) -> TransformerFolder:
    """Read the configs of a folder and check that its parts belong to one model.

    Args:
        path: diffusers folder.
        t5: where T5 is, if not in the folder.

    Raises:
        BestiaryError: another class of model, a missing text encoder, parts of different models, or a process that is no flow.
    """
    index = read_config(path / "model_index.json")
    transformer = read_config(path / "transformer" / "config.json")
    name = _backbone_name(path, transformer)
    autoencoder = component_folder(path, "vae")
    vae = read_config(autoencoder / "config.json")
    for folder in (path / "transformer", autoencoder):
        check_has_weights(folder)
    text, tokenizers = _text_places(path, name, index, t5 or T5Place())
    scheduler = read_config(path / "scheduler" / "scheduler_config.json")
    backbone = _backbone_of(path, name, text, transformer, vae)
    _check_fit(path, backbone, transformer)
    return TransformerFolder(path, backbone, _process(path, scheduler), scheduler, autoencoder, text, tokenizers)


def _backbone_name(path: Path, transformer: Config) -> str:
    kind = transformer.get("_class_name")
    if kind not in CLASSES:
        raise BestiaryError(
            f"{path}: the transformer is a {kind}, which is not supported: choose a Stable Diffusion 3 or 3.5 folder "
            "(SD3Transformer2DModel), a Flux.1 folder (FluxTransformer2DModel), or a Stable Diffusion 1.5, 2 or XL folder"
        )
    return named_backbone(path) or CLASSES[kind]


def _text_places(path: Path, name: str, index: Config, t5: T5Place) -> tuple[dict[str, Path], dict[str, Path]]:
    """Text encoders that are there, and their tokenizers."""
    places: dict[str, Path] = {}
    tokenizers: dict[str, Path] = {}
    if T5 not in COMPONENTS[name] and t5.encoder is not None:
        raise BestiaryError(f"base.text_encoder: {name} reads no T5 encoder; leave it out", option="base.text_encoder")
    for encoder, component in COMPONENTS[name].items():
        own = path / component
        given = t5.encoder if encoder == T5 else None
        if given is None and not (own / "config.json").is_file():
            _check_may_lack(path, name, encoder, component, index)
            continue
        if given is None:
            check_has_weights(own)
        places[encoder] = given or own
        chosen = t5.tokenizer if encoder == T5 else None
        tokenizers[encoder] = chosen or component_folder(path, component.replace("text_encoder", "tokenizer"))
        if not tokenizers[encoder].is_dir():
            raise BestiaryError(
                f"{path} is incomplete: the tokenizer folder {tokenizers[encoder].name} of {encoder} is missing; download it, or for T5 set "
                "base.tokenizer to a folder with its tokenizer.json"
            )
    if not places:
        raise BestiaryError(f"{path} holds no text encoder at all: download {', '.join(COMPONENTS[name].values())}")
    return places, tokenizers


def _check_may_lack(path: Path, name: str, encoder: str, component: str, index: Config) -> None:
    listed = index.get(component)
    # a pipeline that was saved without it lists [null, null]
    left_out = not listed or (isinstance(listed, list) and not any(listed))
    if name in MAY_LACK and left_out:
        return
    other = ", or set base.text_encoder to a T5 v1.1 XXL file such as t5xxl_fp16.safetensors" if encoder == T5 else ""
    without = f'; to go without it, write "{component}": [null, null] into model_index.json' if name in MAY_LACK else ""
    raise BestiaryError(
        f"{path} is incomplete: the text encoder {component} ({encoder}) is missing; download it{other}{without}",
        option="base.text_encoder",
    )


def _backbone_of(path: Path, name: str, text: Mapping[str, Path], transformer: Config, vae: Config) -> Backbone:
    """The record with widths and sizes as the configs state them."""
    record = BACKBONES[name]
    joint, pooled = (_whole(path, transformer, field) for field in ("joint_attention_dim", "pooled_projection_dim"))
    specs: dict[str, TextEncoderSpec] = {}
    for spec in record.text_encoders:
        if spec.name == T5:
            width, longest = (_t5_width(text[T5]) if T5 in text else joint), spec.max_tokens
        elif spec.name in text:
            config = read_config(text[spec.name] / "config.json")
            width, longest = _whole(text[spec.name], config, "hidden_size"), config.get("max_position_embeddings", 77)
        else:
            width, longest = spec.width, spec.max_tokens
        specs[spec.name] = replace(spec, width=width, max_tokens=longest)
    # what a missing encoder would give is known by what the others leave
    absent = [name for name, spec in specs.items() if spec.pooled and name not in text]
    if len(absent) == 1:
        rest = sum(spec.width for name, spec in specs.items() if spec.pooled and name in text)
        specs[absent[0]] = replace(specs[absent[0]], width=pooled - rest)
    factor = 2 ** (len(vae.get("block_out_channels") or [0] * 4) - 1)
    # Flux' latents enter as patches of 2 x 2 that its config counts as channels
    patch = 2 if name == "flux" else transformer.get("patch_size") or 1
    return replace(
        record,
        text_encoders=tuple(specs.values()),
        image_size=_native_size(transformer, record, factor),
        latent_channels=_whole(path, vae, "latent_channels"),
        latent_factor=factor,
        attention_divisor=factor * patch,
        patch=patch,
    )


def _native_size(transformer: Config, record: Backbone, factor: int) -> int:
    size = transformer.get("sample_size")
    return int(size) * factor if isinstance(size, int) else record.image_size


def _t5_width(source: Path) -> int:
    if source.is_dir() and (source / "config.json").is_file():
        return _whole(source, read_config(source / "config.json"), "d_model")
    for path in t5_files(source):
        shapes = t5_header(path)
        if TABLE in shapes:
            return shapes[TABLE].shape[1]
    raise BestiaryError(
        f"{source} is not a T5 encoder: it has no {TABLE}; choose a file such as t5xxl_fp16.safetensors",
        option="base.text_encoder",
    )


def _check_fit(path: Path, backbone: Backbone, transformer: Config) -> None:
    """The parts of a folder must come from one model."""
    joint, pooled = transformer["joint_attention_dim"], transformer["pooled_projection_dim"]
    widths = {spec.name: spec.width for spec in backbone.text_encoders}
    if T5 in widths and widths[T5] != joint:
        raise BestiaryError(
            f"{path}: the transformer reads text {joint} wide, this T5 encoder gives states {widths[T5]} wide: choose a T5 v1.1 XXL encoder "
            "(4096 wide), or download one model completely",
            option="base.text_encoder",
        )
    given = sum(spec.width for spec in backbone.text_encoders if spec.pooled)
    if backbone.context_width != joint or given != pooled:
        raise BestiaryError(
            f"{path}: the transformer reads text {joint} wide and pooled text {pooled} wide, but the text encoders give "
            f"{backbone.context_width} and {given}: the folder mixes parts of different models; download one model completely"
        )
    wanted = transformer.get("in_channels")
    channels = backbone.latent_channels * (4 if backbone.name == "flux" else 1)
    if wanted != channels:
        raise BestiaryError(
            f"{path}: the transformer takes {wanted} channels but the autoencoder gives {channels}: inpainting and other special models are "
            "not supported, and parts of different models do not mix"
        )


def _process(path: Path, config: Config) -> FlowProcess:
    """The flow of a scheduler_config.json.

    Raises:
        BestiaryError: the scheduler is of another class, or its shift is not positive.
    """
    kind, predicts = config.get("_class_name", SCHEDULER), config.get("prediction_type", "flow_prediction")
    if kind != SCHEDULER or predicts != "flow_prediction":
        raise BestiaryError(
            f"{path}: its scheduler is a {kind} that predicts {predicts!r}, but this transformer was trained along a flow: take "
            f"scheduler_config.json ({SCHEDULER}) from the model's own folder"
        )
    if config.get("use_dynamic_shifting"):
        return replace(FlowProcess.exponential(float(config.get("max_shift") or STATIC_MU)), draw="logit_normal")
    shift = config.get("shift", 1.0)
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not shift > 0:
        raise BestiaryError(
            f"{path / 'scheduler' / 'scheduler_config.json'}: shift is {shift!r}, a number above 0 is needed (3 for SD3, 1 for Flux schnell); "
            "download the file again"
        )
    return FlowProcess(float(shift), draw="logit_normal")


def _whole(path: Path, config: Mapping[str, Any], field: str) -> int:
    value = config.get(field)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BestiaryError(
            f"{path}: {field} of a config.json is {value!r}, a positive whole number is needed; download the model folder again"
        )
    return value
