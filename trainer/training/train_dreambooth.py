"""DreamBooth training: `bestiary train dreambooth`. Paper: arXiv 2208.12242."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ...concepts.denoiser.backbone import Backbone
from ...concepts.denoiser.denoiser import ProgressCallback
from ...concepts.errors import BestiaryError
from ..exchange.export_dreambooth import export_adapter
from ..learning.dreambooth.dreambooth_images import PictureBucket
from ..learning.dreambooth.dreambooth_settings import TrainDreamBoothSettings
from ..learning.dreambooth.dreambooth_setup import DreamBoothTraining, identifier_start, lay_out, set_up_dreambooth
from ..learning.pictures.aspect_buckets import BUCKET_CELLS, AspectBucket, aspect_buckets
from ..learning.pictures.image_files import picture_size
from ..learning.pictures.latent_cache import CacheSpec, LatentCache
from ..learning.run.processes import Parallel
from ..learning.spectrum.spectrum_images import ConceptPictures, find_pictures, masks_of_shapes
from ..model.if_denoiser import IFDenoiser
from ..model.sampling import SamplingDenoiser
from .class_pictures import MakingTime, class_pictures, make_missing, time_one
from .dreambooth_if import PIXELS, findings_of, is_if, load_stage, notes_of, with_identifier
from .train import Trained, train
from .training_setup import CachePart, Task, TrainingSetup, load_base


@dataclass
class DreamBoothPictures:
    """Pictures of the thing, and of its class; those of the class may be made once the model is there."""

    instance: ConceptPictures
    class_folder: Path | None
    class_names: list[str]

    @property
    def folder(self) -> Path:
        """That of the thing's pictures."""
        return self.instance.folder

    @property
    def names(self) -> tuple[str, ...]:
        """Of the thing's pictures, then of the class's, relative to the folder."""
        if self.class_folder is None:
            return self.instance.names
        place = Path(os.path.relpath(self.class_folder.absolute(), self.folder.absolute()))
        return (*self.instance.names, *((place / name).as_posix() for name in self.class_names))

    @property
    def paths(self) -> list[Path]:
        """The picture files."""
        return [self.folder / name for name in self.names]


class DreamBoothTask(Task[TrainDreamBoothSettings, DreamBoothPictures]):
    """A LoRA of one thing."""

    kind = "dreambooth"
    masks: list[np.ndarray] | None = None
    """(h, w) 0..1 of every picture, what is learned of the thing, read once the model is known."""
    buckets: tuple[AspectBucket, ...] = ()
    """Shapes of the thing's pictures; none where they are cut to squares."""
    making: MakingTime | None = None
    """Where nothing is trained and pictures of the class are missing: how long they will take."""

    def __init__(self, settings: TrainDreamBoothSettings) -> None:
        """Take the settings, with a word in place of an identifier that is chosen for the user."""
        super().__init__(with_identifier(settings))

    def read_pictures(self) -> DreamBoothPictures:
        """Readable pictures of the thing, and those of its class that are there."""
        images = self.settings.images
        instance = find_pictures(images.instance, images.masks)
        if self.settings.method.prior != "pictures":
            return DreamBoothPictures(instance, None, [])
        folder = self.class_folder
        if folder.resolve().is_relative_to(instance.folder.resolve()):
            raise BestiaryError(
                f"images.class_images {folder} lies inside images.instance {instance.folder}: pictures of the class would be "
                "learned as the thing; choose another folder"
            )
        names = class_pictures(folder)
        if images.class_images is not None and folder.exists() and not folder.is_dir():
            raise BestiaryError(f"images.class_images {folder} is a file: give a folder")
        return DreamBoothPictures(instance, folder, names[: images.class_count])

    @property
    def class_folder(self) -> Path:
        """The one given, or one beside the run folder that belongs to this class prompt and base model."""
        given, settings = self.settings.images.class_images, self.settings
        if given is not None:
            return given
        made_of = f"{settings.captions.class_prompt}\n{settings.base.path}\n{settings.images.size}"
        return Path(settings.run.out).absolute().parent / f"class_{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"

    @property
    def cache_folder(self) -> Path:
        """Beside the run folder."""
        return Path(self.settings.run.out).absolute().parent / "latents"

    @cached_property
    def of_if(self) -> bool:
        """Whether the base model is a stage of DeepFloyd IF."""
        return is_if(self.settings)

    def load_denoiser(self) -> SamplingDenoiser:
        """The base model; of DeepFloyd IF, with its texts encoded."""
        if not self.of_if:
            denoiser = load_base(self.settings)
            if denoiser.process.prediction == "flow":
                raise BestiaryError(
                    f"base.path is a {denoiser.backbone.name} model, which `train dreambooth` does not adapt: choose Stable Diffusion 1.5, 2, XL or "
                    "DeepFloyd IF, or learn it with `train parts` or `train spectrum`",
                    option="base.path",
                )
            return denoiser
        cache = self.settings.images.cache or self.cache_folder
        return load_stage(self.settings, len(self.pictures.class_names), cache / "texts")

    def picture_encoder(self) -> str:
        """What pictures are encoded with; DeepFloyd IF draws in pixels."""
        return PIXELS if self.of_if else super().picture_encoder()

    def check(self, denoiser: SamplingDenoiser) -> None:
        """Prompts must fit the text encoder; masks must be there."""
        settings, images = self.settings, self.settings.images
        lay_out(settings, denoiser)
        identifier_start(denoiser, settings.method.vectors, settings.method.initial_words)
        self.buckets = self._buckets(denoiser.backbone)
        self.masks = masks_of_shapes(images.masks, self.pictures.instance, self._cached_cells(denoiser.backbone))

    def make_pictures(self, denoiser: SamplingDenoiser, parallel: Parallel) -> None:
        """The missing pictures of the class, each process its share."""
        images, folder, prompt = self.settings.images, self.pictures.class_folder, self.settings.captions.class_prompt
        if folder is None:
            return
        count, size = images.class_count, images.training_size(denoiser.backbone)
        if self.only_examined:
            self.making = time_one(denoiser, prompt, folder, count, size=size)
        else:
            make_missing(denoiser, prompt, folder, count, size=size, parallel=parallel)
        self.pictures.class_names = class_pictures(folder)[:count]

    def _buckets(self, backbone: Backbone) -> tuple[AspectBucket, ...]:
        images = self.settings.images
        height, width = images.training_shape(backbone)
        if not images.buckets:
            every = tuple(range(len(self.pictures.instance.names)))
            return () if height == width else (AspectBucket(height, width, every),)
        sizes = [picture_size(path) for path in self.pictures.instance.paths]
        return aspect_buckets(sizes, images.training_size(backbone), BUCKET_CELLS * backbone.latent_factor)

    def _cached_cells(self, backbone: Backbone) -> list[tuple[int, int]]:
        """Height and width in latent cells of what is cached of every picture of the thing."""
        images, factor, count = self.settings.images, backbone.latent_factor, len(self.pictures.instance.names)
        square = images.cached_size(backbone) // factor
        cells = [(square, square)] * count
        for bucket in self.buckets:
            height, width = (images.with_margin(edge, factor) // factor for edge in (bucket.height, bucket.width))
            for row in bucket.rows:
                cells[row] = (height, width)
        return cells

    def cache_parts(self, spec: CacheSpec) -> tuple[CachePart, ...]:
        """One part for every shape, with all pictures of the class cut to it."""
        if not self.buckets:
            return super().cache_parts(spec)
        factor, count = spec.image_size // spec.latent_size, len(self.pictures.instance.names)
        of_class, parts = tuple(range(count, len(spec.pictures))), []
        for bucket in self.buckets:
            rows = (*bucket.rows, *of_class)
            height, width = (self.settings.images.with_margin(edge, factor) for edge in (bucket.height, bucket.width))
            shape = None if height == width == spec.image_size else (height, width)
            parts.append(
                CachePart(replace(spec, pictures=tuple(spec.pictures[row] for row in rows), pixels=shape), rows)
            )
        return tuple(parts)

    def set_up(
        self, denoiser: SamplingDenoiser, caches: Sequence[LatentCache], parallel: Parallel
    ) -> DreamBoothTraining:
        """Adapters, perhaps an identifier, and batches of the thing and its class."""
        count, masks, factor = len(self.pictures.instance.names), self.masks, denoiser.backbone.latent_factor
        size = self.settings.images.training_size(denoiser.backbone)
        buckets = self.buckets or (AspectBucket(size, size, tuple(range(count))),)
        cached = [
            PictureBucket(
                bucket.rows,
                cache,
                (bucket.height // factor, bucket.width // factor),
                None if masks is None else np.stack([masks[row] for row in bucket.rows]),
            )
            for bucket, cache in zip(buckets, caches, strict=True)
        ]
        given = (self.settings, denoiser, self.pictures.names, count, cached, None, parallel)
        notes: dict[str, object] = {"data": _content_of(self.pictures.paths)}
        if not isinstance(denoiser, IFDenoiser):
            return set_up_dreambooth(*given, notes=notes)
        notes |= notes_of(denoiser, self.settings)
        return set_up_dreambooth(*given, level_alphas=denoiser.level_alphas, notes=notes)

    def findings(self, setup: TrainingSetup) -> Iterator[str]:
        """Pictures, prompts, sizes and work."""
        pictures, settings = self.pictures, self.settings
        instance, kept = pictures.instance, len(pictures.class_names)
        yield f"pictures: {len(instance.names)} in {instance.folder}, {len(instance.skipped)} files left out"
        preserved = {
            "pictures": f"{kept} pictures in {pictures.class_folder}",
            "model": "the untrained model's own predictions",
            "off": "not preserved",
        }
        yield f"class: {settings.captions.class_prompt!r}, {preserved[settings.method.prior]}"
        if self.making is not None:
            yield f"class: {self.making}"
        identifier = f", vectors of the identifier: {settings.method.vectors}" if settings.method.vectors else ""
        yield f"prompt: {settings.captions.instance_prompt!r}; LoRA of rank {settings.lora.rank}{identifier}"
        if isinstance(setup.denoiser, IFDenoiser):
            yield from findings_of(setup.denoiser, settings)
        if self.buckets:
            shapes = ", ".join(f"{len(one.rows)} at {one.width} x {one.height}" for one in self.buckets)
            yield f"sizes: pictures of the thing are trained in {len(self.buckets)} shapes ({shapes} px), those of the class in each"
        else:
            yield f"sizes: trained at {setup.image_size} px, cached at {setup.spec.image_size} px"
        steps, size = settings.optimizer.steps, setup.batches.step_size
        yield f"work: {steps} steps of {size} pictures, {steps * size / len(instance.names):.1f} passes over the thing's pictures"

    def export(self, path: Path, folder: Path) -> list[Path]:
        """The LoRA for diffusers, and a guide."""
        return export_adapter(path, folder)

    def located(self) -> TrainDreamBoothSettings:
        """Also with the folders of latents and of the class, which lie beside the run."""
        settings = super().located()
        images = {"cache": settings.images.cache or self.cache_folder}
        if settings.method.prior == "pictures":
            images["class_images"] = self.class_folder.absolute()
        return settings.model_copy(update={"images": settings.images.model_copy(update=images)})


def _content_of(pictures: Sequence[Path]) -> str:
    """Sixteen hex digits that change with the content of the picture files."""
    digest = hashlib.sha256()
    for path in pictures:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def train_dreambooth(settings: TrainDreamBoothSettings, *, on_progress: ProgressCallback | None = None) -> Trained:
    """Learn one thing from a few pictures in a new run folder.

    Raises:
        BestiaryError: pictures, settings and base model do not fit together, or the loss is not finite.
        TrainingStopped: Ctrl-C; the state is saved.
    """
    return train(DreamBoothTask(settings), on_progress=on_progress)
