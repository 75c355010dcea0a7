"""DreamBooth training: `bestiary train dreambooth`. Paper: arXiv 2208.12242."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ...concepts.denoiser.denoiser import ProgressCallback
from ...concepts.errors import BestiaryError
from ..exchange.export_dreambooth import export_adapter
from ..learning.dreambooth.dreambooth_settings import TrainDreamBoothSettings
from ..learning.dreambooth.dreambooth_setup import DreamBoothTraining, identifier_start, lay_out, set_up_dreambooth
from ..learning.pictures.latent_cache import LatentCache
from ..learning.run.processes import Parallel
from ..learning.spectrum.spectrum_images import ConceptPictures, find_pictures, read_masks
from ..model.if_denoiser import IFDenoiser
from ..model.sampling import SamplingDenoiser
from .class_pictures import MakingTime, class_pictures, make_missing, time_one
from .dreambooth_if import PIXELS, findings_of, is_if, load_stage, notes_of
from .train import Trained, train
from .training_setup import Task, TrainingSetup, load_base


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
    masks: np.ndarray | None = None
    """(N, h, w) 0..1 of what is learned of the thing, read once the model is known."""
    making: MakingTime | None = None
    """Where nothing is trained and pictures of the class are missing: how long they will take."""

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
            return load_base(self.settings)
        cache = self.settings.images.cache or self.cache_folder
        return load_stage(self.settings, len(self.pictures.class_names), cache / "texts")

    def picture_encoder(self) -> str:
        """What pictures are encoded with; DeepFloyd IF draws in pixels."""
        return PIXELS if self.of_if else super().picture_encoder()

    def check(self, denoiser: SamplingDenoiser) -> None:
        """Prompts must fit the text encoder; masks must be there; missing pictures of the class are made."""
        settings, images = self.settings, self.settings.images
        lay_out(settings, denoiser)
        identifier_start(denoiser, settings.method.vectors, settings.method.initial_words)
        edge = images.cached_size(denoiser.backbone) // denoiser.backbone.latent_factor
        self.masks = read_masks(images.masks, self.pictures.instance, edge)
        folder = self.pictures.class_folder
        if folder is None:
            return
        prompt, count, size = (
            settings.captions.class_prompt,
            images.class_count,
            images.training_size(denoiser.backbone),
        )
        if self.only_examined:
            self.making = time_one(denoiser, prompt, folder, count, size=size)
            self.pictures.class_names = class_pictures(folder)[:count]
        else:
            self.pictures.class_names = make_missing(denoiser, prompt, folder, count, size=size)

    def set_up(self, denoiser: SamplingDenoiser, cache: LatentCache, parallel: Parallel) -> DreamBoothTraining:
        """Adapters, perhaps an identifier, and batches of the thing and its class."""
        count = len(self.pictures.instance.names)
        given = (self.settings, denoiser, self.pictures.names, count, cache, self.masks, parallel)
        if not isinstance(denoiser, IFDenoiser):
            return set_up_dreambooth(*given)
        notes = notes_of(denoiser, self.settings)
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


def train_dreambooth(settings: TrainDreamBoothSettings, *, on_progress: ProgressCallback | None = None) -> Trained:
    """Learn one thing from a few pictures in a new run folder.

    Raises:
        BestiaryError: pictures, settings and base model do not fit together, or the loss is not finite.
        TrainingStopped: Ctrl-C; the state is saved.
    """
    return train(DreamBoothTask(settings), on_progress=on_progress)
