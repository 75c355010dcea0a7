"""Settings of a part training: what a recipe may say, with defaults, units and ranges."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ....concepts.pictures.picture_size import read_size
from ..run.recipe_file import read_recipe
from ..run.run_settings import LARGEST_SIDE, LoraSettings, OptimizerSettings, PictureSettings, Section, TrainingSettings


class ImageSettings(PictureSettings):
    """Which pictures are learned from, and how they are cut."""

    folder: Path | None = None
    """Folder of the pictures; unset takes the folder that was discovered."""
    flip: bool = False
    """Also learn from mirrored pictures; off, because left and right wings may be different parts."""
    labels: Path | None = None
    """CSV with columns `path` and `class` that names the class of every picture, for `method.ids = "class"`."""
    cache: Path | None = None
    """Folder of the cached latents, in which later runs find them again; unset makes one beside the discovery."""
    buckets: bool = False
    """Cut every picture to the nearest of several shapes of about the square's area instead of to the square."""
    scenes: Path | None = None
    """Set of scenes (`bestiary scenes build`, with the same discovery) that is learned from too; unset learns from single pictures."""
    scene_share: float = Field(default=0.5, gt=0, le=1)
    """Share of batches that hold scenes, above 0 to 1; 1 learns from scenes alone."""
    scene_size: int | tuple[int, int] | None = None
    """Edge, or width and height such as "256x128", of scenes in pixels; unset keeps their shape, with a shorter edge as long as that
    of single pictures."""

    @field_validator("scene_size", mode="before")
    @classmethod
    def _read_scene_size(cls, value: object) -> object:
        return None if value is None else read_size(value, LARGEST_SIDE)


class DiscoverySection(Section):
    """Where the part maps come from."""

    folder: Path = Path("discovery")
    """Result folder of `bestiary discover`."""


class MethodSettings(Section):
    """What is learned."""

    kind: Literal["parts", "textual_inversion"] = "parts"
    """"parts" learns a token per part and kind, "textual_inversion" one token per whole-picture kind (a baseline)."""
    ids: Literal["discovered", "class"] = "discovered"
    """Kinds found by discovery, or the class of the picture for every part of it (the background keeps its kinds)."""
    background: bool = True
    """Give the background a token of its own and a channel in the attention loss."""
    projector_depth: int = Field(default=1, ge=0, le=3)
    """Linear layers between the token table and the text encoder, 0 to 3."""
    positional: bool = True
    """Add a learned vector per part to its tokens before the projector."""
    initial_words: str = ""
    """Words whose embeddings the tokens start around, such as "bird animal"; empty starts around common words."""
    part_words: str = ""
    """Words that parts may be, such as "head wing tail"; each part starts at the one that already looks at its region."""
    initial_spread: float = Field(default=0.5, ge=0, le=4)
    """Spread of the first tokens in units of the standard deviation of word embeddings, 0 to 4."""
    min_snr: float = Field(default=5.0, ge=0)
    """Gamma of the min-SNR loss weights, above 0; 0 weighs all timesteps alike."""
    region_weight: float = Field(default=0.0, ge=0, le=1)
    """Share by which the noise loss leaves out what no part of the caption covers, 0 (off) to 1."""
    timesteps: Literal["uniform", "stratified"] = "stratified"
    """Draw timesteps independently, or spread evenly over every optimiser step (less noise in the gradient)."""


class CaptionSettings(Section):
    """The sentences that the tokens are learned in."""

    templates: float = Field(default=0.5, ge=0, le=1)
    """Share of captions set into a sentence such as "a photo of a ...", 0 to 1; the others are tokens only."""
    noun: str = ""
    """Word that follows the part tokens, such as "bird"; empty adds none."""
    shuffle: bool = True
    """Put the part tokens in a new order each time."""
    drop_tokens: float = Field(default=0.0, ge=0, le=1)
    """Share of captions that keep only the first half of their part tokens, 0 to 1."""
    unconditional: float = Field(default=0.0, ge=0, le=0.5)
    """Share of captions left empty, so that guidance keeps its reference, 0 to 0.5."""


class AttentionLossSettings(Section):
    """The loss that ties every token to the region of its part."""

    weight: float = Field(default=0.01, ge=0, le=100)
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


class PartOptimizerSettings(OptimizerSettings):
    """How it is learned."""

    token_lr: float = Field(default=1e-3, ge=0, le=1)
    """Learning rate of the token table and the part vectors, 0 to 1, in units of the spread of word embeddings."""
    projector_lr: float = Field(default=1e-4, ge=0, le=1)
    """Learning rate of the projector's matrices, 0 to 1."""
    lora_lr: float = Field(default=1e-4, ge=0, le=1)
    """Learning rate of the adapters, 0 to 1."""
    weight_decay: float = Field(default=1e-2, ge=0, le=1)
    """AdamW weight decay of the adapters, 0 to 1; tokens and projector have none."""


class TrainPartsSettings(TrainingSettings):
    """All settings of `bestiary train parts`."""

    any_shape: ClassVar[bool] = True
    images: ImageSettings = ImageSettings()
    """The pictures."""
    discovery: DiscoverySection = DiscoverySection()
    """The part maps."""
    method: MethodSettings = MethodSettings()
    """What is learned."""
    lora: LoraSettings = LoraSettings()
    """The adapters."""
    captions: CaptionSettings = CaptionSettings()
    """The sentences."""
    attention_loss: AttentionLossSettings = AttentionLossSettings()
    """The loss on attention maps."""
    optimizer: PartOptimizerSettings = PartOptimizerSettings()
    """The optimiser."""

    def faults(self) -> list[str]:
        """Contradictions between sections."""
        faults = []
        if self.method.ids == "class" and self.images.labels is None:
            faults.append('method.ids = "class" needs images.labels, a CSV file with the columns path and class')
        faults += super().faults()
        if not (self.optimizer.token_lr or self.optimizer.lora_lr):
            faults.append("optimizer.token_lr and optimizer.lora_lr are both 0: nothing would be learned")
        return faults


def load_recipe(
    path: Path | str | None, overrides: Mapping[str, Any] | None = None, *, of_run: bool = False
) -> TrainPartsSettings:
    """Settings of a training run from a recipe (a TOML file, a shipped recipe's name, or None) and dotted flags.

    `of_run`: the file is that of a run folder, whose folders `resume.check_resumable` looks at.

    Raises:
        BestiaryError: file missing or no TOML; misspelt keys and values out of range, all of them in one message.
    """
    return read_recipe(path, overrides, model=TrainPartsSettings, of_run=of_run)
