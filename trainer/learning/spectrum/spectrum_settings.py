"""Settings of `bestiary train spectrum`: what a recipe may say, with defaults, units and ranges."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ....concepts.spectrum.stage_bounds import MOST_STAGES, StageBounds
from ..run.recipe_file import read_recipe
from ..run.run_settings import OptimizerSettings, PictureSettings, RunSettings, Section, TrainingSettings


class SpectrumImageSettings(PictureSettings):
    """Which pictures are learned from, and how they are cut."""

    source: Path = Path("pictures")
    """One picture, or a folder of pictures."""
    masks: Path | None = None
    """Folder of masks (white or opaque is learned from), to leave surroundings out of the loss: `a/b.jpg.png`, `a/b_mask.png`
    or, where it is unambiguous, `a/b.png` for the picture `a/b.jpg`."""
    flip: bool = False
    """Also learn from mirrored pictures; off, because that teaches a mirrored layout."""
    cache: Path | None = None
    """Folder of the cached latents; unset makes one beside the run folder."""


class SpectrumMethodSettings(Section):
    """What is learned."""

    parameterisation: Literal["direct", "reference"] = "direct"
    """"direct" learns the vectors themselves, "reference" the 31 million weights of ProSpect's network (to compare)."""
    stages: int = Field(default=10, ge=1, le=MOST_STAGES)
    """Stages of equal width, 1 to 250; 1 is plain textual inversion."""
    boundaries: tuple[float, ...] = ()
    """Instead of equal stages: where stages begin, as rising shares of the way, such as 0.1 and 0.5 for three stages."""
    vectors: int = Field(default=1, ge=1, le=32)
    """Vectors per stage, 1 to 32."""
    initial_words: str = ""
    """Words the vectors start from, and strength 0 means later, such as "teddy"; unset takes common words."""
    initial_noise: float = Field(default=0.2, ge=0, le=4)
    """Spread of the first vectors around them, in units of the spread of word embeddings, 0 to 4."""
    norm: Literal["keep", "clamp", "free"] = "keep"
    """Direct vectors keep the norm of the words they start from, may only shrink below it, or do as they like."""
    min_snr: float = Field(default=0.0, ge=0)
    """Gamma of the min-SNR loss weights; 0 weighs all timesteps alike, as published."""
    insertion: Literal["input", "output"] = "input"
    """Where vectors enter a prompt: before the text encoders, or in the place of what these say, which needs them once per sentence."""

    @field_validator("boundaries")
    @classmethod
    def _boundaries_rise(cls, boundaries: tuple[float, ...]) -> tuple[float, ...]:
        if boundaries:
            StageBounds.from_fractions(boundaries)
        return boundaries

    @model_validator(mode="after")
    def _reference_is_as_published(self) -> "SpectrumMethodSettings":
        if self.parameterisation == "reference" and self.vectors > 1:
            raise ValueError(f'the parameterisation "reference" has one vector per stage, not {self.vectors}')
        return self

    def bounds(self, num_timesteps: int) -> StageBounds:
        """The stages over a model's timesteps."""
        if self.boundaries:
            return StageBounds.from_fractions(self.boundaries, num_timesteps)
        return StageBounds.equal(self.stages, num_timesteps)


class SpectrumCaptionSettings(Section):
    """The sentences that the vectors are learned in."""

    templates: tuple[str, ...] = ("a photo of a {}",)
    """Sentences, one drawn for every picture; `{}` is where the vectors go."""

    @field_validator("templates")
    @classmethod
    def _one_place_each(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        strange = [text for text in templates if text.count("{}") != 1]
        if strange or not templates:
            shown = repr(strange[0]) if strange else "none at all"
            raise ValueError(f"each template needs {{}} exactly once, where the vectors go; got {shown}")
        return templates


class SpectrumOptimizerSettings(OptimizerSettings):
    """How it is learned."""

    steps: int = Field(default=600, ge=1)
    """Optimiser steps, at least 1."""
    accumulation: int = Field(default=1, ge=1, le=1024)
    """Micro-steps per optimiser step, 1 to 1024."""
    vector_lr: float = Field(default=0.3, ge=0, le=10)
    """Learning rate of direct vectors, 0 to 10, in units of the spread of word embeddings (0.3 is about 5e-3 for SD1.5)."""
    network_lr: float = Field(default=1e-4, ge=0, le=1)
    """Learning rate of the reference network's weights, 0 to 1."""
    weight_decay: float = Field(default=1e-2, ge=0, le=1)
    """AdamW weight decay of the reference network, 0 to 1; direct vectors have none."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate after the warm-up: as it is, or falling to a hundredth along a cosine."""


class SpectrumRunSettings(RunSettings):
    """Where the run lives and how often it writes."""

    out: Path = Path("runs/spectrum")
    """Run folder; when it exists a number is added, so that no run is overwritten."""
    name: str = Field(default="spectrum", pattern=r"^[\w][\w .-]{0,80}$")
    """Name of the spectrum file, without its ending; prompts call it by this name."""


class TrainSpectrumSettings(TrainingSettings):
    """All settings of `bestiary train spectrum`."""

    kind: Literal["spectrum"] = "spectrum"
    """Tells `bestiary resume` what a run trains."""
    images: SpectrumImageSettings = SpectrumImageSettings()
    """The pictures."""
    method: SpectrumMethodSettings = SpectrumMethodSettings()
    """What is learned."""
    captions: SpectrumCaptionSettings = SpectrumCaptionSettings()
    """The sentences."""
    optimizer: SpectrumOptimizerSettings = SpectrumOptimizerSettings()
    """The optimiser."""
    run: SpectrumRunSettings = SpectrumRunSettings()
    """The run folder."""

    def faults(self) -> list[str]:
        """Contradictions between sections."""
        faults = super().faults()
        rate = "vector_lr" if self.method.parameterisation == "direct" else "network_lr"
        if not getattr(self.optimizer, rate):
            faults.append(f"optimizer.{rate} is 0: nothing would be learned")
        return faults


def load_spectrum_recipe(
    path: Path | str | None, overrides: Mapping[str, Any] | None = None, *, of_run: bool = False
) -> TrainSpectrumSettings:
    """Settings from a recipe (a TOML file, a shipped recipe's name, or None) and dotted flags.

    `of_run`: the file is that of a run folder, whose folders `resume.check_resumable` looks at.

    Raises:
        BestiaryError: file missing or no TOML; misspelt keys and values out of range, all of them in one message.
    """
    return read_recipe(path, overrides, model=TrainSpectrumSettings, of_run=of_run)
