"""Interface of a training: input of the loop, result, and previews.

The command line and the graph run every training through `Training`; each objective is one subclass.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from PIL import Image
from torch import Tensor, nn

from ....concepts.denoiser.denoiser import Conditioning, Denoiser
from ....concepts.spectrum.staged_conditioning import StagedConditioning
from .fit import Batch, Batches, ParameterGroup
from .run_settings import TrainingSettings

Concept = TypeVar("Concept")
"""Result of a training: a part dictionary, a spectrum."""


class Sample(Protocol):
    """The sampler of the host."""

    def __call__(
        self,
        conditioning: Conditioning | StagedConditioning,
        seeds: Sequence[int],
        /,
        *,
        shape: tuple[int, int] | None = None,
    ) -> Tensor:
        """Pictures `(n, 3, H, W)` in 0..1 for a conditioning of n and a seed for each; None is the training's own height and width."""
        ...


SHEET_ENDINGS = ("", "-attention")
"""Suffixes in the file names of a preview's sheets."""


class TrainingBatches(Batches, Protocol):
    """Batches of named pictures."""

    names: Sequence[str]

    @property
    def step_size(self) -> int:
        """Pictures per optimiser step over all processes."""
        ...


@dataclass(frozen=True)
class Origin:
    """Sources of a training's pictures and model, for the provenance in its file and for previews."""

    made_by: str
    """Name of the program."""
    base: str
    """The base model."""
    autoencoder: str
    """Fingerprint of the autoencoder."""
    square: Callable[[int], Image.Image]
    """Number of a picture -> what is trained of it."""
    thumbnail_square: Callable[[int], Image.Image]
    """Number of a picture -> the square to cut thumbnails from."""


@dataclass(frozen=True)
class Training(ABC, Generic[Concept]):
    """Input of the training loop, and conversion of the trained weights to a concept."""

    settings: TrainingSettings
    denoiser: Denoiser
    objective: nn.Module
    batches: TrainingBatches
    groups: tuple[ParameterGroup, ...]

    @property
    def image_size(self) -> int:
        """Edge of the training square in pixels, or of one with about as many pixels."""
        return self.settings.images.training_size(self.denoiser.backbone)

    def shape_of(self, row: int) -> tuple[int, int]:
        """Height and width in pixels in which picture `row` is trained on: the same for all, unless a training says otherwise."""
        return self.settings.images.training_shape(self.denoiser.backbone)

    def largest_batch(self) -> Batch:
        """A batch of the most pixels: the first, unless a training says otherwise."""
        return self.batches.draw(0, 0)

    @abstractmethod
    def curve_labels(self) -> dict[str, tuple[str, ...]]:
        """Labels of the entries, for every curve with several entries."""

    @abstractmethod
    def learned(self, steps: int, origin: Origin) -> Concept:
        """The concept from the current weights, after `steps` steps."""

    @abstractmethod
    def size_of(self, concept: Concept) -> str:
        """Size of a concept in words, such as "6 tokens"."""

    @abstractmethod
    def save(self, concept: Concept, path: Path) -> None:
        """Write the concept, and read it back as a check."""

    @abstractmethod
    def sheets(self, origin: Origin, sample: Sample) -> tuple[Image.Image, ...]:
        """The preview for the current weights: a sheet of pictures, and optionally one of heat maps."""
