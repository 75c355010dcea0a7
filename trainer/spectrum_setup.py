"""From settings to everything a spectrum training needs: pictures, model, cache, objective; cheap faults come first."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..concepts.denoiser import Denoiser, ProgressCallback
from ..concepts.errors import BestiaryError
from ..concepts.spectrum.prompt_spectrum import PromptSpectrum
from ..concepts.spectrum.stage_bounds import StageBounds
from ..concepts.spectrum.stage_table import ProspectNetwork, StageTable
from .backbones import load_denoiser
from .latent_cache import CacheSpec, LatentCache, open_cache, picture_stamps
from .spectrum_images import ConceptPictures, SpectrumImages, SpectrumPlan, find_pictures, read_masks
from .spectrum_objective import SpectrumObjective, pieces_of
from .spectrum_settings import TrainSpectrumSettings
from .token_start import COMMON_WORDS, word_spread
from .training_setup import fingerprint_autoencoder, free_autoencoder
from .training_state import ParameterGroup

logger = logging.getLogger("bestiary")


@dataclass(frozen=True)
class SpectrumSetup:
    """Everything between the settings and the first step."""

    settings: TrainSpectrumSettings
    pictures: ConceptPictures
    denoiser: Denoiser
    spec: CacheSpec
    bounds: StageBounds
    start: Tensor
    """`(V, D)`: the words the vectors start from."""
    objective: SpectrumObjective
    batches: SpectrumImages
    groups: tuple[ParameterGroup, ...]

    @property
    def image_size(self) -> int:
        """Edge of the training square in pixels."""
        return self.settings.images.size or self.denoiser.backbone.image_size


def prepare_spectrum(
    settings: TrainSpectrumSettings, *, keep_decoder: bool | None = None, on_progress: ProgressCallback | None = None
) -> SpectrumSetup:
    """Load, cache and build.

    Raises:
        BestiaryError: one clear message about the first thing that does not fit.
    """
    # what can be told without the model comes first
    pictures = find_pictures(settings.images.source)
    denoiser = load_denoiser(settings.base.path, device=settings.run.device, dtype=settings.run.dtype)
    bounds = settings.method.bounds(len(denoiser.schedule.alphas_cumprod))
    start = word_start(denoiser, settings.method.initial_words, settings.method.vectors)  # (V, D)
    spec = _cache_spec(settings, pictures, denoiser)
    masks = read_masks(settings.images.masks, pictures, spec.latent_size)
    cache = _open_cache(settings, pictures, denoiser, spec, on_progress)
    wanted = settings.run.preview_every > 0 if keep_decoder is None else keep_decoder
    free_autoencoder(denoiser, keep_decoder=wanted)
    torch.manual_seed(settings.run.seed)  # the network draws from torch's own generator
    objective = _build_objective(settings, denoiser, bounds, start)
    plan = SpectrumPlan(
        batch_size=settings.optimizer.batch_size,
        accumulation=settings.optimizer.accumulation,
        latent_size=(settings.images.size or denoiser.backbone.image_size) // denoiser.backbone.latent_factor,
        bounds=bounds,
        prompts=tuple(
            denoiser.tokenize(pieces_of(text, settings.method.vectors), chunks=1)
            for text in settings.captions.templates
        ),
        seed=settings.run.seed,
        latent_factor=denoiser.backbone.latent_factor,
    )
    batches = SpectrumImages(pictures.names, cache, plan, masks, denoiser.device)
    groups = _parameter_groups(settings, objective, denoiser)
    return SpectrumSetup(settings, pictures, denoiser, spec, bounds, start, objective, batches, groups)


def word_start(denoiser: Denoiser, words: str, vectors: int) -> Tensor:
    """What `vectors` vectors start from, `(V, D)` float32 on the CPU: the mean of the words' embeddings, whole words only.

    The mean is given the words' usual norm, because a mean of many words is far shorter than any word.

    Raises:
        BestiaryError: the words give no token.
    """
    rows = denoiser.word_vectors(words or COMMON_WORDS).float().cpu()  # (n, D)
    mean = rows.mean(0, keepdim=True)
    # each text encoder has norms of its own
    scaled = []
    for part, own in zip(
        denoiser.backbone.split_vector(mean).values(), denoiser.backbone.split_vector(rows).values(), strict=True
    ):
        scaled.append(part * own.norm(dim=-1).mean() / part.norm().clamp_min(1e-12))
    start = mean if len(rows) == 1 else torch.cat(scaled, dim=-1)  # (1, D)
    return start.repeat(vectors, 1)


def _build_objective(
    settings: TrainSpectrumSettings, denoiser: Denoiser, bounds: StageBounds, start: Tensor
) -> SpectrumObjective:
    method = settings.method
    if settings.base.checkpointing:
        denoiser.set_gradient_checkpointing(True)
    if method.parameterisation == "reference":
        table: StageTable | ProspectNetwork = ProspectNetwork(start[:1], bounds.stages)
    else:
        table = StageTable(start, bounds.stages, norm=method.norm)
        generator = torch.Generator().manual_seed(settings.run.seed)
        table.perturb(method.initial_noise * word_spread(denoiser), generator)
    return SpectrumObjective(
        denoiser,
        table.to(denoiser.device).train(),
        stages=bounds.stages,
        min_snr=method.min_snr,
    )


def _parameter_groups(
    settings: TrainSpectrumSettings, objective: SpectrumObjective, denoiser: Denoiser
) -> tuple[ParameterGroup, ...]:
    optimizer, parameters = settings.optimizer, dict(objective.table.named_parameters())
    if settings.method.parameterisation == "reference":
        return (ParameterGroup("network", parameters, optimizer.network_lr, optimizer.weight_decay),)
    # embeddings differ tenfold in size between backbones
    return (ParameterGroup("vectors", parameters, optimizer.vector_lr * word_spread(denoiser)),)


def _cache_spec(settings: TrainSpectrumSettings, pictures: ConceptPictures, denoiser: Denoiser) -> CacheSpec:
    """What the latent cache holds; the margin for crops is whole latent cells."""
    factor = denoiser.backbone.latent_factor
    size = settings.images.size or denoiser.backbone.image_size
    size += round(size * settings.images.margin / factor) * factor
    return CacheSpec(
        model=fingerprint_autoencoder(settings.base.path),
        image_size=size,
        latent_size=size // factor,
        channels=denoiser.backbone.latent_channels,
        flip=settings.images.flip,
        pictures=picture_stamps(pictures.folder, pictures.names),
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


@torch.no_grad()
def build_spectrum(setup: SpectrumSetup, steps: int) -> PromptSpectrum:
    """The spectrum of the objective's present weights.

    Raises:
        BestiaryError: the weights are not finite.
    """
    settings = setup.settings
    return PromptSpectrum.from_matrix(
        setup.denoiser.backbone,
        setup.objective.table.matrix(),
        setup.bounds,
        neutral=setup.start,
        initial_words=settings.method.initial_words,
        provenance=_provenance(setup, steps),
    )


def _provenance(setup: SpectrumSetup, steps: int) -> dict[str, object]:
    settings = setup.settings
    return {
        "made_by": "bestiary train spectrum",
        "base": settings.base.path,
        "parameterisation": settings.method.parameterisation,
        "norm": settings.method.norm,
        "steps": steps,
        "pictures": list(setup.pictures.names[:50]),
        "image_size": setup.image_size,
        "batch": setup.batches.plan.step_size,
        "templates": list(settings.captions.templates[:20]),
        "learning_rate": setup.groups[0].learning_rate,
        "seed": settings.run.seed,
    }


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
