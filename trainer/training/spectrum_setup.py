"""From settings to everything a spectrum training on the command line needs; cheap faults come first."""

import logging
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...concepts.denoiser.denoiser import Denoiser, ProgressCallback
from ...concepts.errors import BestiaryError
from ..learning.pictures.latent_cache import CacheSpec, LatentCache, open_cache, picture_stamps
from ..learning.spectrum.spectrum_images import ConceptPictures, find_pictures, read_masks
from ..learning.spectrum.spectrum_objective_setup import SpectrumTraining, set_up_spectrum, word_start
from ..learning.spectrum.spectrum_settings import TrainSpectrumSettings
from ..model.backbones import load_denoiser
from .training_setup import autoencoder_precision, fingerprint_autoencoder, free_autoencoder

logger = logging.getLogger("bestiary")


@dataclass(frozen=True)
class SpectrumSetup(SpectrumTraining):
    """Everything between the settings and the first step."""

    pictures: ConceptPictures
    spec: CacheSpec


def prepare_spectrum(
    settings: TrainSpectrumSettings, *, keep_decoder: bool | None = None, on_progress: ProgressCallback | None = None
) -> SpectrumSetup:
    """Load, cache and build.

    Raises:
        BestiaryError: one clear message about the first thing that does not fit.
    """
    # what can be told without the model comes first
    pictures = find_pictures(settings.images.source, settings.images.masks)
    denoiser = load_denoiser(settings.base.path, device=settings.run.device, dtype=settings.run.dtype)
    # before the pictures are encoded
    word_start(denoiser, settings.method.initial_words, settings.method.vectors)
    spec = _cache_spec(settings, pictures, denoiser)
    masks = read_masks(settings.images.masks, pictures, spec.latent_size)
    cache = _open_cache(settings, pictures, denoiser, spec, on_progress)
    wanted = settings.run.preview_every > 0 if keep_decoder is None else keep_decoder
    free_autoencoder(denoiser, keep_decoder=wanted)
    training = set_up_spectrum(settings, denoiser, pictures.names, cache, masks)
    return SpectrumSetup(**vars(training), pictures=pictures, spec=spec)


def _cache_spec(settings: TrainSpectrumSettings, pictures: ConceptPictures, denoiser: Denoiser) -> CacheSpec:
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


def _open_cache(
    settings: TrainSpectrumSettings,
    pictures: ConceptPictures,
    denoiser: Denoiser,
    spec: CacheSpec,
    on_progress: ProgressCallback | None,
) -> LatentCache:
    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        return denoiser.encode_images(images)  # (B, C, h, w) each

    return open_cache(
        settings.images.cache or Path(settings.run.out).absolute().parent / "latents",
        spec,
        pictures.paths,
        lambda: encode,
        batch_size=settings.images.encode_batch,
        workers=settings.images.workers,
        on_progress=on_progress,
    )


def check_one_process(size: int) -> None:
    """Make sure that one process trains.

    Raises:
        BestiaryError: several were started; stages without a picture in one of them would stop the others.
    """
    if size > 1:
        raise BestiaryError(
            f"{size} processes were started, but a spectrum is learned by one: leave `accelerate launch` out "
            "(a few hundred steps on one GPU are enough)"
        )
