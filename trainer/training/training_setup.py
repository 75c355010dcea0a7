"""From settings to everything a part training needs: pictures, kinds, model, cache, objective; cheap faults come first."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...concepts.denoiser.denoiser import Denoiser, ProgressCallback
from ...concepts.errors import BestiaryError
from ..learning.discovery.discovery_folder import Discovery
from ..learning.parts.concept_images import ConceptImages
from ..learning.parts.objective_setup import (
    build_batches,
    build_objective,
    check_layers,
    parameter_groups,
)
from ..learning.parts.part_objective import PartObjective
from ..learning.parts.settings import TrainPartsSettings
from ..learning.parts.training_kinds import TrainingKinds, class_kinds, discovered_kinds, read_classes, whole_kinds
from ..learning.pictures.latent_cache import CacheSpec, LatentCache, open_cache, picture_stamps
from ..learning.run.fit import Parallel, SingleProcess
from ..learning.run.training_state import ParameterGroup
from ..model.backbones import demo_model_path, load_denoiser

logger = logging.getLogger("bestiary")


@dataclass(frozen=True)
class TrainingPictures:
    """The pictures of a training, those without any part left out."""

    folder: Path
    names: tuple[str, ...]
    kinds: TrainingKinds
    left_out: int
    """Pictures of the discovery that show no part."""

    @property
    def paths(self) -> list[Path]:
        """The picture files."""
        return [self.folder / name for name in self.names]


@dataclass(frozen=True)
class TrainingSetup:
    """Everything between the settings and the first step."""

    settings: TrainPartsSettings
    pictures: TrainingPictures
    denoiser: Denoiser
    cache: LatentCache
    spec: CacheSpec
    objective: PartObjective
    batches: ConceptImages
    groups: tuple[ParameterGroup, ...]

    @property
    def image_size(self) -> int:
        """Edge of the training square in pixels."""
        return self.settings.images.training_size(self.denoiser.backbone)


def prepare(
    settings: TrainPartsSettings, *, parallel: Parallel | None = None, on_progress: ProgressCallback | None = None
) -> TrainingSetup:
    """Load, cache and build.

    Raises:
        BestiaryError: one clear message about the first thing that does not fit.
    """
    parallel = parallel or SingleProcess()
    # what can be told without the model comes first
    pictures = load_pictures(settings)
    denoiser = load_denoiser(settings.base.path, device=settings.run.device, dtype=settings.run.dtype)
    check_layers(settings, denoiser)
    # the long work: encoding what no earlier run has encoded
    spec = cache_spec(settings, pictures, denoiser)
    cache = _open_cache(settings, pictures, denoiser, spec, parallel, on_progress)
    free_autoencoder(denoiser, keep_decoder=settings.run.preview_every > 0 and parallel.rank == 0)
    torch.manual_seed(settings.run.seed)  # adapters draw from torch's own generator
    batches = build_batches(settings, pictures.names, pictures.kinds, cache, denoiser, parallel)
    objective = build_objective(settings, pictures.kinds, denoiser, batches)
    return TrainingSetup(
        settings, pictures, denoiser, cache, spec, objective, batches, parameter_groups(settings, objective, denoiser)
    )


def load_pictures(settings: TrainPartsSettings) -> TrainingPictures:
    """Pictures and kinds of a discovery, as `method` wants them.

    Raises:
        BestiaryError: no discovery, missing classes, or no picture with parts.
    """
    discovery = Discovery.load(settings.discovery.folder, settings.images.folder)
    # names are relative, so that a moved folder gives the same cache and the same messages
    names = [path.relative_to(discovery.images_folder).as_posix() for path in discovery.image_paths]
    labels = settings.images.labels
    classes = read_classes(labels, names) if labels is not None else None
    kinds = discovered_kinds(discovery.codebook, discovery.maps)
    if settings.method.kind == "textual_inversion":
        given = classes if settings.method.ids == "class" else None
        kinds = whole_kinds(kinds, discovery.codebook, given, settings.run.seed)
    elif settings.method.ids == "class":
        kinds = class_kinds(kinds, classes)
    if not settings.method.background:
        kinds = kinds.without_background()
    # codes are (N, M): pictures without any part have nothing to caption
    rows = np.flatnonzero((kinds.codes >= 0).any(1))
    if not len(rows):
        raise BestiaryError(
            f"no picture of {settings.discovery.folder} shows a part: look at its index.html, then discover again "
            "with other settings or merge fewer parts away"
        )
    if len(rows) < len(names):
        logger.info("%d of %d pictures show no part and are left out", len(names) - len(rows), len(names))
    kept = tuple(names[row] for row in rows)
    return TrainingPictures(discovery.images_folder, kept, kinds.subset(rows), len(names) - len(rows))


def cache_spec(settings: TrainPartsSettings, pictures: TrainingPictures, denoiser: Denoiser) -> CacheSpec:
    """What the latent cache of a training holds; the margin for crops is whole latent cells."""
    size = settings.images.cached_size(denoiser.backbone)
    return CacheSpec(
        model=fingerprint_autoencoder(settings.base.path),
        image_size=size,
        latent_size=size // denoiser.backbone.latent_factor,
        channels=denoiser.backbone.latent_channels,
        flip=settings.images.flip,
        pictures=picture_stamps(pictures.folder, pictures.names),
        precision=autoencoder_precision(denoiser),
    )


def autoencoder_precision(denoiser: Denoiser) -> str:
    """What the autoencoder computes in, as a latent cache notes it, such as "float32"."""
    return str(denoiser.autoencoder_dtype).removeprefix("torch.")


def fingerprint_autoencoder(path: str) -> str:
    """Sixteen hex digits that change when the autoencoder's files do (names, sizes, configuration)."""
    folder = (demo_model_path() if path == "demo" else Path(path)) / "vae"
    files = sorted((entry.name, entry.stat().st_size) for entry in folder.iterdir() if entry.is_file())
    config = (folder / "config.json").read_bytes()
    weights = [entry.stat().st_mtime_ns for entry in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256(json.dumps([files, weights]).encode() + config).hexdigest()[:16]


def _open_cache(
    settings: TrainPartsSettings,
    pictures: TrainingPictures,
    denoiser: Denoiser,
    spec: CacheSpec,
    parallel: Parallel,
    on_progress: ProgressCallback | None,
) -> LatentCache:
    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        return denoiser.encode_images(images)  # (B, C, h, w) each

    # the encoder is at hand already; it runs only for pictures that are not in the cache
    return open_cache(
        settings.images.cache or settings.discovery.folder / "latents",
        spec,
        pictures.paths,
        lambda: encode,
        batch_size=settings.images.encode_batch,
        workers=settings.images.workers,
        parallel=parallel,
        on_progress=on_progress,
    )


def free_autoencoder(denoiser: Denoiser, *, keep_decoder: bool) -> None:
    """Drop what encodes pictures `(B, 3, H, W)` from memory, and what decodes them unless previews need it."""
    if not keep_decoder:
        denoiser.drop_autoencoder()
        return
    # latents are cached: only previews decode, nothing encodes any more
    autoencoder: nn.Module = denoiser.vae
    autoencoder.encoder = None
    autoencoder.quant_conv = None
