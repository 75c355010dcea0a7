"""Settings of a training run: what a recipe may say, with defaults, units and ranges."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..run.recipe_file import read_recipe

GRAPH = "graph"
"""`base.path` of a training in ComfyUI, whose model came through a socket."""
LONGEST_NAME = 200
"""Bytes of a file's name without its ending, with room for numbers and temporary names."""
DtypeName = Literal["auto", "fp32", "bf16", "fp16"]


class Section(BaseModel):
    """One table of a recipe; keys that do not exist are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ImageSettings(Section):
    """Which pictures are learned from, and how they are cut."""

    folder: Path | None = None
    """Folder of the pictures; unset takes the folder that was discovered."""
    size: int | None = Field(None, ge=64, le=2048, multiple_of=8)
    """Edge of the training square in pixels, 64 to 2048 in steps of 8; unset takes the base model's native size."""
    margin: float = Field(0.0, ge=0, le=1)
    """Room for random crops: pictures are cached this share larger than the training square, 0 to 1."""
    flip: bool = False
    """Also learn from mirrored pictures; off, because left and right wings may be different parts."""
    labels: Path | None = None
    """CSV with columns `path` and `class` that names the class of every picture, for `method.ids = "class"`."""
    cache: Path | None = None
    """Folder of the cached latents, in which later runs find them again; unset makes one beside the discovery."""
    workers: int = Field(0, ge=0, le=64)
    """Processes that decode pictures while the cache is built, 0 to 64; 0 decodes in the training process."""
    encode_batch: int = Field(8, ge=1, le=256)
    """Pictures the autoencoder encodes at once while the cache is built, 1 to 256."""


class DiscoverySection(Section):
    """Where the part maps come from."""

    folder: Path = Path("discovery")
    """Result folder of `bestiary discover`."""


class BaseSettings(Section):
    """The diffusion model to adapt."""

    path: str = "demo"
    """Folder of a diffusers-format SD1.5, SD2 or SDXL model, or "demo" for the embedded one."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, less than half the memory."""


class MethodSettings(Section):
    """What is learned."""

    kind: Literal["parts", "textual_inversion"] = "parts"
    """"parts" learns a token per part and kind, "textual_inversion" one token per whole-picture kind (a baseline)."""
    ids: Literal["discovered", "class"] = "discovered"
    """Kinds found by discovery, or the class of the picture for every part of it (the background keeps its kinds)."""
    background: bool = True
    """Give the background a token of its own and a channel in the attention loss."""
    projector_depth: int = Field(1, ge=0, le=3)
    """Linear layers between the token table and the text encoder, 0 to 3."""
    positional: bool = True
    """Add a learned vector per part to its tokens before the projector."""
    initial_words: str = ""
    """Words whose embeddings the tokens start around, such as "bird animal"; empty starts around common words."""
    part_words: str = ""
    """Words that parts may be, such as "head wing tail"; each part starts at the one that already looks at its region."""
    initial_spread: float = Field(0.5, ge=0, le=4)
    """Spread of the first tokens in units of the standard deviation of word embeddings, 0 to 4."""
    min_snr: float = Field(5.0, ge=0)
    """Gamma of the min-SNR loss weights, above 0; 0 weighs all timesteps alike."""
    region_weight: float = Field(0.0, ge=0, le=1)
    """Share by which the noise loss leaves out what no part of the caption covers, 0 (off) to 1."""
    timesteps: Literal["uniform", "stratified"] = "stratified"
    """Draw timesteps independently, or spread evenly over every optimiser step (less noise in the gradient)."""


class LoraSettings(Section):
    """Low-rank adapters on the denoiser's attention layers."""

    rank: int = Field(4, ge=0, le=256)
    """Rank of the adapters, 0 (none: only tokens are learned) to 256."""
    alpha: float | None = Field(None, gt=0)
    """Scale of the update times the rank, above 0; unset equals the rank (scale 1)."""
    self_attention: bool = True
    """Adapt the self-attention layers too."""


class CaptionSettings(Section):
    """The sentences that the tokens are learned in."""

    templates: float = Field(0.5, ge=0, le=1)
    """Share of captions set into a sentence such as "a photo of a ...", 0 to 1; the others are tokens only."""
    noun: str = ""
    """Word that follows the part tokens, such as "bird"; empty adds none."""
    shuffle: bool = True
    """Put the part tokens in a new order each time."""
    drop_tokens: float = Field(0.0, ge=0, le=1)
    """Share of captions that keep only the first half of their part tokens, 0 to 1."""
    unconditional: float = Field(0.0, ge=0, le=0.5)
    """Share of captions left empty, so that guidance keeps its reference, 0 to 0.5."""


class AttentionLossSettings(Section):
    """The loss that ties every token to the region of its part."""

    weight: float = Field(0.01, ge=0, le=100)
    """Factor of the attention loss in the sum, 0 (off) to 100."""
    form: Literal["bce", "softmax"] = "bce"
    """Binary cross-entropy over maps normalised across parts (published), or softmax cross-entropy."""
    layers: tuple[str, ...] = ()
    """Names of the cross-attention layers to read; none takes those on the method's grid (16 x 16 natively)."""
    downsampling: tuple[int, ...] = ()
    """Instead of names: read every layer at these downsamplings relative to the latent, such as 2 and 4."""
    columns: Literal["lse", "one_hot"] = "lse"
    """How attention columns are computed beside fused attention: two exact forms of different speed."""

    @model_validator(mode="after")
    def _one_choice_of_layers(self) -> "AttentionLossSettings":
        if self.layers and self.downsampling:
            raise ValueError("give either layers or downsampling, not both")
        return self


class OptimizerSettings(Section):
    """How it is learned."""

    steps: int = Field(1000, ge=1)
    """Optimiser steps, at least 1."""
    batch_size: int = Field(2, ge=1, le=1024)
    """Pictures per process and micro-step, 1 to 1024."""
    accumulation: int = Field(4, ge=1, le=1024)
    """Micro-steps per optimiser step, 1 to 1024."""
    token_lr: float = Field(1e-3, ge=0, le=1)
    """Learning rate of the token table and the part vectors, 0 to 1, in units of the spread of word embeddings."""
    projector_lr: float = Field(1e-4, ge=0, le=1)
    """Learning rate of the projector's matrices, 0 to 1."""
    lora_lr: float = Field(1e-4, ge=0, le=1)
    """Learning rate of the adapters, 0 to 1."""
    weight_decay: float = Field(1e-2, ge=0, le=1)
    """AdamW weight decay of the adapters, 0 to 1; tokens and projector have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's two averaging factors, each from 0 to below 1."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: as it is, or falling to a hundredth along a cosine."""
    warmup: int = Field(0, ge=0)
    """Steps over which the learning rate rises from zero, 0 or more."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient, above 0."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Factor of the running average of the learned weights that is exported, 0 (off) to below 1."""

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"each beta must be from 0 to below 1, got {betas[0]} and {betas[1]}")
        return betas


class RunSettings(Section):
    """Where the run lives and how often it writes."""

    out: Path = Path("runs/parts")
    """Run folder; when it exists a number is added, so that no run is overwritten."""
    name: str = "parts"
    """Name of the dictionary file, without its ending: a file name, never a path."""
    device: str = "auto"
    """Device by torch's name such as cpu, cuda or cuda:1, or "auto"."""
    dtype: DtypeName = "auto"
    """Arithmetic of the frozen model; learned weights always stay in fp32."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of everything drawn at random, 0 to 2147483647."""
    save_every: int = Field(200, ge=1)
    """Steps between two saved states, at least 1: what a crash can cost."""
    keep_states: int = Field(2, ge=1, le=100)
    """Saved states that are kept, 1 to 100."""
    log_every: int = Field(10, ge=1)
    """Steps between two lines of log.jsonl, at least 1."""
    estimate_memory: bool = True
    """Estimate the memory before the first step; takes some seconds."""
    preview_every: int = Field(200, ge=0)
    """Steps between two preview sheets, 0 for none."""
    preview_count: int = Field(4, ge=1, le=32)
    """Pictures on a preview sheet, 1 to 32."""
    preview_steps: int = Field(20, ge=1, le=1000)
    """Sampling steps of a preview, 1 to 1000."""
    preview_guidance: float = Field(5.0, ge=1, le=30)
    """Classifier-free guidance of a preview, 1 (none) to 30."""
    tensorboard: bool = True
    """Also write curves for tensorboard where it is installed."""

    @field_validator("name")
    @classmethod
    def _name_stays_in_the_run(cls, name: str) -> str:
        # a recipe or a run from elsewhere must not name a file outside of the run's folder
        strange = sorted({letter for letter in name if letter in "/\\:" or ord(letter) < 32})
        if strange or name.strip() in ("", ".", "..") or len(name.encode(errors="replace")) > LONGEST_NAME:
            said = f"it holds {strange[0]!r}" if strange else "it is empty, dots alone or too long"
            raise ValueError(
                f"{said}: it names a file in the run's folder, so take a plain name such as 'my parts', of {LONGEST_NAME} bytes "
                "at most; run.out says where the folder lies"
            )
        return name


class TrainPartsSettings(Section):
    """All settings of `bestiary train parts`."""

    images: ImageSettings = ImageSettings()
    """The pictures."""
    discovery: DiscoverySection = DiscoverySection()
    """The part maps."""
    base: BaseSettings = BaseSettings()
    """The diffusion model."""
    method: MethodSettings = MethodSettings()
    """What is learned."""
    lora: LoraSettings = LoraSettings()
    """The adapters."""
    captions: CaptionSettings = CaptionSettings()
    """The sentences."""
    attention_loss: AttentionLossSettings = AttentionLossSettings()
    """The loss on attention maps."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """The optimiser."""
    run: RunSettings = RunSettings()
    """The run folder."""

    @model_validator(mode="after")
    def _combinations(self) -> "TrainPartsSettings":
        # all contradictions at once, so that a recipe is mended in one go
        faults = []
        if self.method.ids == "class" and self.images.labels is None:
            faults.append('method.ids = "class" needs images.labels, a CSV file with the columns path and class')
        if self.optimizer.warmup >= self.optimizer.steps:
            faults.append(
                f"optimizer.warmup {self.optimizer.warmup} must be below optimizer.steps {self.optimizer.steps}"
            )
        if not (self.optimizer.token_lr or self.optimizer.lora_lr):
            faults.append("optimizer.token_lr and optimizer.lora_lr are both 0: nothing would be learned")
        if faults:
            raise ValueError("; ".join(faults))
        return self


def load_recipe(
    path: Path | str | None, overrides: Mapping[str, Any] | None = None, *, of_run: bool = False
) -> TrainPartsSettings:
    """Settings of a training run from a recipe (a TOML file, a shipped recipe's name, or None) and dotted flags.

    `of_run`: the file is that of a run folder, whose folders `resume.check_resumable` looks at.

    Raises:
        BestiaryError: file missing or no TOML; misspelt keys and values out of range, all of them in one message.
    """
    return read_recipe(path, overrides, model=TrainPartsSettings, of_run=of_run)
