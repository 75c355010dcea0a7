"""From settings to everything a training on the command line needs; cheap faults come first.

`Task` is what a training does its own way here, one small class for each thing that can be learned.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

from PIL import Image
from torch import Tensor, nn

from ...concepts.denoiser.denoiser import ProgressCallback
from ...concepts.errors import BestiaryError
from ...concepts.pictures.square_fit import fit_shape
from ..learning.denoiser.transformer_folder import T5Place, component_folder
from ..learning.pictures.image_files import read_image
from ..learning.pictures.latent_cache import CacheSpec, LatentCache, cache_spec, open_cache
from ..learning.run.fit import ParameterGroup
from ..learning.run.processes import Parallel, SingleProcess
from ..learning.run.run_settings import Section, TrainingSettings
from ..learning.run.training import Origin, Training, TrainingBatches
from ..model.autoencoder import Autoencoder
from ..model.backbones import EMBEDDED, find_model, load_denoiser
from ..model.component_loading import refuse_quantised
from ..model.sampling import SamplingDenoiser


class TrainingPictures(Protocol):
    """The picture files of a training."""

    @property
    def folder(self) -> Path:
        """Where they lie."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Relative to the folder."""
        ...

    @property
    def paths(self) -> list[Path]:
        """The files, in the order of the names."""
        ...


Settings = TypeVar("Settings", bound=TrainingSettings)
Pictures = TypeVar("Pictures", bound=TrainingPictures)


@dataclass(frozen=True)
class CachePart:
    """Pictures that are cached in one shape."""

    spec: CacheSpec
    rows: tuple[int, ...]
    """Their numbers among all pictures."""


class Task(ABC, Generic[Settings, Pictures]):
    """What a training on the command line does its own way; the way itself is in train.py."""

    kind: ClassVar[str]
    """What `bestiary train` and run folders call it."""
    sheets: ClassVar[int] = 1
    """Sheets of a preview."""
    run_folder: Path | None = None
    """Folder of the run, once there is one."""
    only_examined = False
    """Whether no training follows: long work before its first step is then timed instead of done."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def pictures(self) -> Pictures:
        """What is learned from, read once.

        Raises:
            BestiaryError: there are no pictures, or they lack what this training needs.
        """
        return self.read_pictures()

    @abstractmethod
    def read_pictures(self) -> Pictures:
        """Find the pictures and what belongs to them."""

    @property
    @abstractmethod
    def cache_folder(self) -> Path:
        """Where latents are cached if the settings do not say."""

    @abstractmethod
    def load_denoiser(self) -> SamplingDenoiser:
        """The base model; see `load_base`."""

    def picture_encoder(self) -> str:
        """What pictures are encoded with: a fingerprint that caches and files name."""
        return fingerprint_autoencoder(self.settings.base.path)

    @abstractmethod
    def check(self, denoiser: SamplingDenoiser) -> None:
        """Raise BestiaryError for what does not fit this model, before pictures are encoded."""

    def make_pictures(self, denoiser: SamplingDenoiser, parallel: Parallel) -> None:
        """Make pictures that the training needs and that are not there: none, unless a task says otherwise."""

    def cache_parts(self, spec: CacheSpec) -> tuple[CachePart, ...]:
        """How the pictures of `spec` are cached: all of them as squares, unless a task says otherwise."""
        return (CachePart(spec, tuple(range(len(spec.pictures)))),)

    @abstractmethod
    def set_up(self, denoiser: SamplingDenoiser, caches: Sequence[LatentCache], parallel: Parallel) -> Training:
        """The training from its first step on, with a cache for each of `cache_parts`."""

    @abstractmethod
    def findings(self, setup: "TrainingSetup") -> Iterator[str]:
        """What the doctor says of pictures, sizes and work."""

    @abstractmethod
    def export(self, path: Path, folder: Path) -> list[Path]:
        """Write what other programs read of the file `path`."""

    def check_processes(self, count: int) -> None:  # noqa: B027 - any number trains, unless a task says otherwise
        """Raise BestiaryError where so many processes cannot learn together."""

    def located(self) -> Settings:
        """The settings with folders that mean the same from any working directory, in which the run may be resumed."""
        changed: dict[str, Section] = {}
        for name, section in self.settings:
            if isinstance(section, Section) and name != "run":
                paths = {key: value.absolute() for key, value in section if isinstance(value, Path)}
                changed[name] = section.model_copy(update=paths)
        base = self.settings.base
        if base.path not in EMBEDDED and Path(base.path).exists():  # a name of the hub is the same everywhere
            changed["base"] = changed.get("base", base).model_copy(update={"path": str(Path(base.path).absolute())})
        return self.settings.model_copy(update=changed)

    def thumbnail_square(self, row: int) -> Image.Image:
        """The square of picture `row` that thumbnails are cut from."""
        raise NotImplementedError(f"{self.kind} has no thumbnails")


@dataclass(frozen=True)
class TrainingSetup:
    """Everything between the settings and the first step."""

    task: Task
    denoiser: SamplingDenoiser
    spec: CacheSpec
    """Of the pictures as squares."""
    caches: tuple[LatentCache, ...]
    training: Training

    @property
    def cache(self) -> LatentCache:
        """The first cache, and the only one of most trainings."""
        return self.caches[0]

    @property
    def settings(self) -> TrainingSettings:
        """The settings."""
        return self.task.settings

    @property
    def pictures(self) -> TrainingPictures:
        """The pictures."""
        return self.task.pictures

    @property
    def objective(self) -> nn.Module:
        """Owns every learned parameter."""
        return self.training.objective

    @property
    def batches(self) -> TrainingBatches:
        """What is drawn in each step."""
        return self.training.batches

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """Parameters by learning rate."""
        return self.training.groups

    @property
    def image_size(self) -> int:
        """Edge of the training square in pixels."""
        return self.training.image_size

    @property
    def origin(self) -> Origin:
        """What the finished file says of the training."""
        made_by, base = f"bestiary train {self.task.kind}", self.settings.base.path
        return Origin(made_by, base, self.spec.model, self.square, self.task.thumbnail_square)

    def square(self, row: int) -> Image.Image:
        """What is trained of a picture."""
        height, width = self.training.shape_of(row)
        return fit_shape(read_image(self.pictures.paths[row], max(height, width)), height, width)


def load_base(settings: TrainingSettings) -> SamplingDenoiser:
    """The base model of a training: a folder of Stable Diffusion or Flux, or an embedded model.

    Raises:
        BestiaryError: the model is quantised; see `backbones.load_denoiser` for the rest.
    """
    base, run = settings.base, settings.run
    for network in ("unet", "transformer"):
        refuse_quantised(find_model(base.path) / network)
    t5 = T5Place(base.text_encoder, base.tokenizer)
    return load_denoiser(base.path, device=run.device, dtype=run.dtype, t5=t5)


def prepare(
    task: Task,
    *,
    parallel: Parallel | None = None,
    keep_decoder: bool | None = None,
    on_progress: ProgressCallback | None = None,
) -> TrainingSetup:
    """Load, cache and build.

    Args:
        keep_decoder: None keeps what decodes pictures in memory where previews need it.

    Raises:
        BestiaryError: one clear message about the first thing that does not fit.
    """
    settings, parallel = task.settings, parallel or SingleProcess()
    # faults that need no model come first
    pictures = task.pictures
    denoiser = task.load_denoiser()
    _check_size(settings, denoiser)
    task.check(denoiser)
    # the long work: making and encoding what no earlier run has made
    task.make_pictures(denoiser, parallel)
    images = settings.images
    spec = cache_spec(
        images,
        denoiser.backbone,
        pictures.folder,
        pictures.names,
        model=task.picture_encoder(),
        precision=str(denoiser.autoencoder_dtype).removeprefix("torch."),
    )

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = denoiser.images.to_cache(images).unbind(1)
        return mean, log_variance  # (B, C, h, w) each

    caches = tuple(
        open_cache(
            images.cache or task.cache_folder,
            part.spec,
            [pictures.paths[row] for row in part.rows],
            lambda: encode,
            batch_size=images.encode_batch,
            workers=images.workers,
            parallel=parallel,
            on_progress=on_progress,
        )
        for part in task.cache_parts(spec)
    )
    wanted = settings.run.preview_every > 0 and parallel.rank == 0 if keep_decoder is None else keep_decoder
    free_autoencoder(denoiser, keep_decoder=wanted)
    return TrainingSetup(task, denoiser, spec, caches, task.set_up(denoiser, caches, parallel))


def _check_size(settings: TrainingSettings, denoiser: SamplingDenoiser) -> None:
    """Raise BestiaryError for training squares that this model cannot cut into its patches."""
    size, step = settings.images.training_size(denoiser.backbone), denoiser.backbone.pixel_step
    if size % step:
        raise BestiaryError(
            f"images.size = {size}: {denoiser.backbone.name} reads pictures whose edges are multiples of {step} pixels; choose "
            f"{size - size % step} or {size - size % step + step}",
            option="images.size",
        )


def fingerprint_autoencoder(path: str) -> str:
    """Sixteen hex digits that change when the autoencoder's files do (names, sizes, configuration)."""
    folder = component_folder(find_model(path), "vae")
    files = sorted((entry.name, entry.stat().st_size) for entry in folder.iterdir() if entry.is_file())
    config = (folder / "config.json").read_bytes()
    weights = [entry.stat().st_mtime_ns for entry in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256(json.dumps([files, weights]).encode() + config).hexdigest()[:16]


def free_autoencoder(denoiser: SamplingDenoiser, *, keep_decoder: bool) -> None:
    """Drop what encodes pictures `(B, 3, H, W)` from memory, and what decodes them unless previews need it."""
    if not keep_decoder:
        denoiser.drop_autoencoder()
        return
    # latents are cached: only previews decode, nothing encodes any more; pixels have no such parts
    if not isinstance(denoiser.images, Autoencoder):
        return
    for part in ("encoder", "quant_conv"):
        setattr(denoiser.images.vae, part, None)
