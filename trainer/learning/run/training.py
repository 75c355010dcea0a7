"""One training from its first step on, whatever it learns: what the loop runs over, what it leaves, what its previews show.

The command line and the graph drive every training through `Training`; an objective is one subclass of it.
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
from .fit import Batches, ParameterGroup
from .run_settings import TrainingSettings

Concept = TypeVar("Concept")
"""What is learned: a part dictionary, a spectrum."""
Sample = Callable[[Conditioning | StagedConditioning, Sequence[int]], Tensor]
"""Conditioning of n pictures and a seed for each -> pictures `(n, 3, S, S)` in 0..1, by the host's own sampler."""


SHEET_ENDINGS = ("", "-attention")
"""What the file names of a preview's sheets end with."""


class TrainingBatches(Batches, Protocol):
    """Batches of pictures that have names."""

    names: Sequence[str]

    @property
    def step_size(self) -> int:
        """Pictures per optimiser step over all processes."""
        ...


@dataclass(frozen=True)
class Origin:
    """Where a training's pictures and model come from: for what its file says of them, and for its previews."""

    made_by: str
    """The program."""
    base: str
    """The model that is learned on."""
    autoencoder: str
    """Fingerprint of what encoded the pictures."""
    square: Callable[[int], Image.Image]
    """Number of a picture -> its training square."""
    thumbnail_square: Callable[[int], Image.Image]
    """Number of a picture -> the square that thumbnails are cut from."""


@dataclass(frozen=True)
class Training(ABC, Generic[Concept]):
    """Everything the loop needs, and what is made of the weights it learns."""

    settings: TrainingSettings
    denoiser: Denoiser
    objective: nn.Module
    batches: TrainingBatches
    groups: tuple[ParameterGroup, ...]

    @property
    def image_size(self) -> int:
        """Edge of the training square in pixels."""
        return self.settings.images.training_size(self.denoiser.backbone)

    @abstractmethod
    def curve_labels(self) -> dict[str, tuple[str, ...]]:
        """By curve with several entries, what these belong to."""

    @abstractmethod
    def learned(self, steps: int, origin: Origin) -> Concept:
        """What the present weights say, after so many steps."""

    @abstractmethod
    def size_of(self, concept: Concept) -> str:
        """How much was learned, such as "6 tokens"."""

    @abstractmethod
    def save(self, concept: Concept, path: Path) -> None:
        """Write what was learned, and read it back before its path is given out."""

    @abstractmethod
    def sheets(self, origin: Origin, sample: Sample) -> tuple[Image.Image, ...]:
        """The preview for the present weights: a sheet of pictures, then perhaps one of heat maps."""
