"""What a diffusers folder of DeepFloyd IF holds, read from its configs alone, before any weight is loaded.

IF draws in pixels: stage I makes 64 x 64 pictures from text (3 channels in), stage II enlarges them to 256 x 256 (6 channels
in: the noised picture and the enlarged one of stage I). Both read 77 states of a T5 encoder and predict the noise and, in
three more channels, a variance. Layout as diffusers' IFPipeline and IFSuperResolutionPipeline save it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ....concepts.denoiser.backbone import Backbone, TextEncoderSpec
from ....concepts.errors import BestiaryError
from ....concepts.files.wrong_download import wrong_download

IFStage = Literal["I", "II"]
COLOURS = 3
"""Channels of a picture."""
STAGES: dict[int, IFStage] = {COLOURS: "I", 2 * COLOURS: "II"}
"""Channels that the UNet takes -> stage."""
TEXT_LENGTH = 77
"""T5 states of every prompt: longer prompts are cut, as IF was trained."""
NORMALISATION = "lower-strip"
"""What files say of how prompts are normalised."""
LICENCE_NOTE = (
    "DeepFloyd IF is under the DeepFloyd IF licence: its weights may be used for non-commercial research only, and so may "
    "adapters trained on them"
)


@dataclass(frozen=True)
class IFFolder:
    """One stage of DeepFloyd IF on disk."""

    path: Path
    stage: IFStage
    image_size: int
    """Edge in pixels of the pictures that the stage was trained on, 64 or 256."""
    text_width: int
    """Channels of the T5 states that the UNet reads, 4096."""
    schedule: dict[str, object]
    """The scheduler's config, from which its betas are made."""
    thresholding: tuple[float, float] | None
    """Dynamic thresholding of predicted pictures: the quantile, and the largest value it may have; None is without."""
    level_schedule: dict[str, object] | None
    """Stage II: the config of the scheduler that noises the low picture; None in stage I."""
    text_encoder: Path | None
    """Folder of the T5 encoder; None where the folder was saved without it."""

    @property
    def backbone(self) -> Backbone:
        """The stage as the methods see it: pixels, and one run of T5 states."""
        text = TextEncoderSpec("t5xxl", self.text_width, "final", TEXT_LENGTH, runs="single", min_tokens=TEXT_LENGTH)
        return Backbone(f"if-{self.stage.lower()}", (text,), self.image_size, COLOURS, self.image_size, latent_factor=1)


def normalised(text: str) -> str:
    """The one normalisation of prompts, in training and in sampling: lower case, no blanks at the ends.

    diffusers' `clean_caption` is not used: without bs4 it does nothing, so that pictures would differ between machines, and
    it removes identifiers such as `<head:42>`.
    """
    return text.lower().strip()


def is_if_folder(path: Path) -> bool:
    """Whether a folder looks like a stage of DeepFloyd IF: for menus, without a word about what is missing."""
    try:
        return _is_if_unet(_read_json(path / "unet" / "config.json"))
    except BestiaryError:
        return False


def read_if_folder(path: Path) -> IFFolder:
    """Read the configs of one stage.

    Raises:
        BestiaryError: the folder or a config is missing or broken, or it holds another model, or stage III.
    """
    if not path.is_dir():
        raise BestiaryError(f"the DeepFloyd IF folder {path} does not exist: give a folder that holds unet/config.json")
    unet = _read_json(path / "unet" / "config.json")
    if not _is_if_unet(unet):
        raise BestiaryError(
            f"{path} is not a stage of DeepFloyd IF: its denoiser is a {unet.get('_class_name', 'model of unknown class')} "
            f"with {unet.get('in_channels', '?')} input channels"
            f"{_if_latent(unet)}. Choose stage I (such as IF-I-M-v1.0) or stage II (such as IF-II-M-v1.0)"
        )
    stage = STAGES[_whole(unet, "in_channels", path)]
    _check_weights(path / "unet")
    level_schedule = None
    if stage == "II":
        level_schedule = _read_json(path / "image_noising_scheduler" / "scheduler_config.json")
    schedule = _read_json(path / "scheduler" / "scheduler_config.json")
    text_encoder = path / "text_encoder"
    return IFFolder(
        path=path,
        stage=stage,
        image_size=_whole(unet, "sample_size", path),
        text_width=_whole(unet, "encoder_hid_dim", path),
        schedule=schedule,
        thresholding=_thresholding(schedule),
        level_schedule=level_schedule,
        text_encoder=text_encoder if (text_encoder / "config.json").is_file() else None,
    )


def _thresholding(schedule: dict[str, object]) -> tuple[float, float] | None:
    """Quantile and largest value; diffusers' own defaults stand in for what a config leaves out."""
    if not schedule.get("thresholding"):
        return None
    found = []
    for name, default in (("dynamic_thresholding_ratio", 0.995), ("sample_max_value", 1.0)):
        value = schedule.get(name, default)
        if not isinstance(value, int | float):
            raise BestiaryError(
                f"scheduler_config.json: {name} is {value!r}, a number is needed; download the folder again"
            )
        found.append(float(value))
    return found[0], found[1]


def _is_if_unet(config: dict[str, object]) -> bool:
    """IF's UNets read T5 states through a projection of their own and predict a variance besides the noise."""
    return (
        config.get("_class_name", "UNet2DConditionModel") == "UNet2DConditionModel"
        and config.get("in_channels") in STAGES
        and config.get("out_channels") == 2 * COLOURS
        and config.get("addition_embed_type") == "text"
        and isinstance(config.get("encoder_hid_dim"), int)
    )


def _if_latent(config: dict[str, object]) -> str:
    latent = config.get("in_channels") in (4, 8, 9) and config.get("cross_attention_dim") is not None
    return " (a latent model: Stable Diffusion is loaded by ComfyUI's own loaders)" if latent else ""


def _whole(config: dict[str, object], name: str, path: Path) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BestiaryError(
            f"{path / 'unet' / 'config.json'}: {name} is {value!r}, a positive whole number is needed; "
            "download the model folder again"
        )
    return value


def _check_weights(folder: Path) -> None:
    found = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".bin")]
    if not found:
        raise BestiaryError(f"{folder} holds no weights (.safetensors or .bin): download the model folder completely")
    for path in found:
        with path.open("rb") as stream:
            fault = wrong_download(stream.read(512))
        if fault is not None:
            raise BestiaryError(f"{path} {fault}")


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise BestiaryError(
            f"{path} is missing: the folder is not a diffusers folder of DeepFloyd IF, or was downloaded in part"
        ) from None
    except (OSError, ValueError, RecursionError) as fault:
        raise BestiaryError(f"{path} is not readable JSON ({fault}): download the model folder again") from fault
    if not isinstance(content, dict):
        raise BestiaryError(f"{path} holds a {type(content).__name__}, not settings: download the model folder again")
    return content
