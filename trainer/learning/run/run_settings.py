"""Settings common to all trainings: pictures, model, adapters, optimiser and run folder, with defaults, units and ranges."""

import math
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ....concepts.denoiser.backbone import Backbone
from ....concepts.denoiser.denoiser import Denoiser
from ....concepts.pictures.picture_size import read_size, size_text
from .fit import LoopSettings

GRAPH = "graph"
"""`base.path` of a training in ComfyUI, whose model comes from a socket."""
LARGEST_SIDE = 2048
"""Most pixels of a side of training pictures."""
LONGEST_NAME = 200
"""Maximum bytes of a file name without its suffix; leaves room for appended numbers and temporary suffixes."""
DtypeName = Literal["auto", "fp32", "bf16", "fp16"]


class Section(BaseModel):
    """One table of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PictureSettings(Section):
    """Cropping and encoding of the pictures, common to all trainings."""

    size: int | tuple[int, int] | None = None
    """Edge of the training square, or width and height such as "256x128", in pixels, 64 to 2048 in steps of 8; unset uses the
    base model's native size."""
    margin: float = Field(default=0.0, ge=0, le=1)
    """Margin for random crops: share by which cached pictures are larger than the training square, 0 to 1."""
    flip: bool = False
    """Also train on mirrored pictures."""
    cache: Path | None = None
    """Folder of the cached latents, which later runs reuse."""
    workers: int = Field(default=0, ge=0, le=64)
    """Processes that decode pictures while the cache is built, 0 to 64; 0 decodes in the training process."""
    encode_batch: int = Field(default=8, ge=1, le=256)
    """Pictures per batch of the autoencoder while the cache is built, 1 to 256."""

    @field_validator("size", mode="before")
    @classmethod
    def _read_size(cls, value: object) -> object:
        return None if value is None else read_size(value, LARGEST_SIDE)

    def training_size(self, backbone: Backbone) -> int:
        """Edge in pixels of the training square, or of the square with about as many pixels where pictures have another shape."""
        if isinstance(self.size, tuple):
            return max(8, round(math.sqrt(self.size[0] * self.size[1]) / 8) * 8)
        return self.size or backbone.image_size

    def training_shape(self, backbone: Backbone) -> tuple[int, int]:
        """Height and width in pixels of what is trained on."""
        if isinstance(self.size, tuple):
            return self.size[1], self.size[0]
        return self.training_size(backbone), self.training_size(backbone)

    def cached_size(self, backbone: Backbone) -> int:
        """Edge in pixels of the encoded square; the margin is a whole number of latent cells, so that crops are exact."""
        return self.with_margin(self.training_size(backbone), backbone.latent_factor)

    def with_margin(self, edge: int, factor: int) -> int:
        """An edge in pixels with its margin, a whole number of latent cells of `factor` pixels."""
        return edge + round(edge * self.margin / factor) * factor


class BaseSettings(Section):
    """The diffusion model to adapt."""

    path: str = "demo"
    """Folder of a diffusers-format SD1.5, SD2 or SDXL model, or "demo" for the embedded one."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, less than half the memory."""


class LoraSettings(Section):
    """Low-rank adapters on the denoiser's attention layers."""

    rank: int = Field(default=4, ge=0, le=256)
    """Rank of the adapters, 0 (no adapters, only tokens are trained) to 256."""
    alpha: float | None = Field(default=None, gt=0)
    """Scale of the update times the rank, above 0; unset equals the rank (scale 1)."""
    self_attention: bool = True
    """Adapt the self-attention layers too."""


class OptimizerSettings(Section):
    """Optimiser settings; each training adds its learning rates."""

    steps: int = Field(default=1000, ge=1)
    """Optimiser steps, at least 1."""
    batch_size: int = Field(default=2, ge=1, le=1024)
    """Pictures per process and micro-step, 1 to 1024."""
    accumulation: int = Field(default=4, ge=1, le=1024)
    """Micro-steps per optimiser step, 1 to 1024."""
    weight_decay: float = Field(default=1e-2, ge=0, le=1)
    """AdamW weight decay, for parameters with weight decay, 0 to 1."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW betas, each from 0 to below 1."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a cosine down to a hundredth."""
    warmup: int = Field(default=0, ge=0)
    """Warm-up steps over which the learning rate rises from zero, 0 or more."""
    clip: float = Field(default=1.0, gt=0)
    """Maximum norm of the gradient, above 0."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the exponential moving average of the weights, which is exported, 0 (off) to below 1."""

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"each beta must be from 0 to below 1, got {betas[0]} and {betas[1]}")
        return betas


class RunSettings(Section):
    """Run folder, device, seed, and intervals of log, states and previews."""

    out: Path = Path("runs/parts")
    """Run folder; if it exists a number is appended, so that no run is overwritten."""
    name: str = "parts"
    """Name of the dictionary file without its suffix: a file name, not a path."""
    device: str = "auto"
    """Device name of torch, such as cpu, cuda or cuda:1, or "auto"."""
    dtype: DtypeName = "auto"
    """Floating-point type of the frozen model; trained weights are always fp32."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Random seed, 0 to 2147483647."""
    save_every: int = Field(default=200, ge=1)
    """Steps between two saved states, at least 1; a crash loses at most these steps."""
    keep_states: int = Field(default=2, ge=1, le=100)
    """Number of saved states to keep, 1 to 100."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two lines of log.jsonl, at least 1."""
    estimate_memory: bool = True
    """Estimate the memory before the first step; takes some seconds."""
    preview_every: int = Field(default=200, ge=0)
    """Steps between two preview sheets, 0 for none."""
    preview_count: int = Field(default=4, ge=1, le=32)
    """Pictures on a preview sheet, 1 to 32."""
    preview_steps: int = Field(default=20, ge=1, le=1000)
    """Sampling steps of a preview, 1 to 1000."""
    preview_guidance: float = Field(default=5.0, ge=1, le=30)
    """Classifier-free guidance scale of a preview, 1 (no guidance) to 30."""
    tensorboard: bool = True
    """Also write curves for tensorboard, if it is installed."""

    @field_validator("name")
    @classmethod
    def _name_stays_in_the_run(cls, name: str) -> str:
        # security: a downloaded recipe or run must not write a file outside the run's folder
        strange = sorted({letter for letter in name if letter in "/\\:" or ord(letter) < 32})
        if strange or name.strip() in ("", ".", "..") or len(name.encode(errors="replace")) > LONGEST_NAME:
            said = f"it contains {strange[0]!r}" if strange else "it is empty, only dots or too long"
            raise ValueError(
                f"{said}: it is the name of a file in the run's folder; use a plain name such as 'my parts' of at most "
                f"{LONGEST_NAME} bytes, and set the folder with run.out"
            )
        return name


class TrainingSettings(Section):
    """Sections common to the recipes of all trainings; each training adds its own."""

    any_shape: ClassVar[bool] = False
    """Whether pictures may have other shapes than squares."""
    images: PictureSettings = PictureSettings()
    """The pictures."""
    base: BaseSettings = BaseSettings()
    """The diffusion model."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """The optimiser."""
    run: RunSettings = RunSettings()
    """The run folder."""

    def faults(self) -> list[str]:
        """Contradictions between sections; each training adds its own."""
        warmup, steps, size = self.optimizer.warmup, self.optimizer.steps, self.images.size
        faults = [f"optimizer.warmup {warmup} must be below optimizer.steps {steps}"] if warmup >= steps else []
        if isinstance(size, tuple) and not self.any_shape:
            faults.append(f"images.size {size_text(size)}: this training cuts squares; give one edge in pixels")
        return faults

    @model_validator(mode="after")
    def _agrees(self) -> "TrainingSettings":
        # report all contradictions together, so that a recipe can be corrected in one edit
        if faults := self.faults():
            raise ValueError("; ".join(faults))
        return self


def loop_settings(optimizer: OptimizerSettings, run: RunSettings, denoiser: Denoiser) -> LoopSettings:
    """Settings of the training loop."""
    # loss scaling is needed only for fp16 on CUDA: bf16 has the exponent range of fp32
    return LoopSettings(
        steps=optimizer.steps,
        accumulation=optimizer.accumulation,
        schedule=optimizer.schedule,
        warmup=optimizer.warmup,
        clip=optimizer.clip,
        betas=optimizer.betas,
        ema=optimizer.ema,
        log_every=run.log_every,
        save_every=run.save_every,
        keep_states=run.keep_states,
        preview_every=run.preview_every,
        tensorboard=run.tensorboard,
        half_precision=denoiser.dtype == torch.float16 and denoiser.device.type == "cuda",
    )
