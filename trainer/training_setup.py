"""From settings to everything a part training needs: pictures, kinds, model, cache, objective; cheap faults come first."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..concepts.denoiser import Denoiser, LoraSpec, ProgressCallback, PromptPiece, PromptTokens
from ..concepts.errors import BestiaryError
from ..concepts.parts.part_captions import CaptionStyle
from ..concepts.parts.token_projector import TokenProjector
from .backbones import demo_model_path, load_denoiser
from .concept_images import BatchPlan, ConceptImages
from .discovery_folder import Discovery
from .fit import Parallel, SingleProcess
from .latent_cache import CacheSpec, LatentCache, open_cache, picture_stamps
from .part_objective import AttentionLoss, PartObjective
from .settings import TrainPartsSettings
from .token_start import choose_words, common_start, fit_of_words, word_spread
from .training_kinds import TrainingKinds, class_kinds, discovered_kinds, read_classes, whole_kinds
from .training_state import ParameterGroup

logger = logging.getLogger("bestiary")
PROBED_PICTURES = 16
"""Pictures in which the attention of candidate words is looked at."""


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
        return training_size(self.settings, self.denoiser)


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
    spec = cache_spec(settings, pictures, denoiser)
    cache = _open_cache(settings, pictures, denoiser, spec, parallel, on_progress)
    _free_autoencoder(denoiser, keep_decoder=settings.run.preview_every > 0 and parallel.rank == 0)
    torch.manual_seed(settings.run.seed)  # adapters draw from torch's own generator
    batches = build_batches(settings, pictures, cache, denoiser, parallel)
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


def training_size(settings: TrainPartsSettings, denoiser: Denoiser) -> int:
    """Edge of the training square in pixels."""
    return settings.images.size or denoiser.backbone.image_size


def check_layers(settings: TrainPartsSettings, denoiser: Denoiser) -> None:
    """Make sure that the attention layers asked for exist.

    Raises:
        BestiaryError: unknown names or downsamplings; the message lists what the model has.
    """
    known = denoiser.cross_attention_layers()
    unknown = [name for name in settings.attention_loss.layers if name not in known]
    if unknown:
        raise BestiaryError(
            f"attention_loss.layers: {', '.join(unknown)} do not exist in this model; it has {', '.join(known)}"
        )
    factors = sorted(set(known.values()))
    strange = [factor for factor in settings.attention_loss.downsampling if factor not in factors]
    if strange:
        raise BestiaryError(f"attention_loss.downsampling: {strange} do not occur in this model; it has {factors}")


def cache_spec(settings: TrainPartsSettings, pictures: TrainingPictures, denoiser: Denoiser) -> CacheSpec:
    """What the latent cache of a training holds; the margin for crops is whole latent cells."""
    factor = denoiser.backbone.latent_factor
    size = training_size(settings, denoiser)
    extra = round(size * settings.images.margin / factor) * factor
    return CacheSpec(
        model=fingerprint_autoencoder(settings.base.path),
        image_size=size + extra,
        latent_size=(size + extra) // factor,
        channels=denoiser.backbone.latent_channels,
        flip=settings.images.flip,
        pictures=picture_stamps(pictures.folder, pictures.names),
    )


def fingerprint_autoencoder(path: str) -> str:
    """Sixteen hex digits that change when the autoencoder's files do (names, sizes, configuration)."""
    folder = (demo_model_path() if path == "demo" else Path(path)) / "vae"
    files = sorted((entry.name, entry.stat().st_size) for entry in folder.iterdir() if entry.is_file())
    config = (folder / "config.json").read_bytes()
    weights = [entry.stat().st_mtime_ns for entry in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256(json.dumps([files, weights]).encode() + config).hexdigest()[:16]


def build_objective(
    settings: TrainPartsSettings, kinds: TrainingKinds, denoiser: Denoiser, batches: ConceptImages
) -> PartObjective:
    """Fresh projector and adapters in their objective; draws from torch's generator."""
    method, lora = settings.method, settings.lora
    spec = LoraSpec(lora.rank, lora.alpha or float(lora.rank), lora.self_attention) if lora.rank else None
    adapters = denoiser.add_lora(spec) if spec else {}
    if settings.base.checkpointing:
        denoiser.set_gradient_checkpointing(True)
    projector = TokenProjector(
        len(kinds.part_names),
        kinds.num_kinds,
        denoiser.backbone.vector_width,
        depth=method.projector_depth,
        positional=method.positional,
    )
    start = common_start(denoiser, len(kinds.part_names), method.initial_words)  # (M, D)
    if method.part_words and method.kind == "parts":
        start = _start_at_words(settings, kinds, denoiser, batches, start)
    generator = torch.Generator().manual_seed(settings.run.seed)
    projector.start_from(start, noise=method.initial_spread * word_spread(denoiser), generator=generator)
    return PartObjective(
        denoiser,
        projector.to(denoiser.device),
        adapters,
        attention=_attention_loss(settings, denoiser),
        min_snr=method.min_snr,
        region_weight=method.region_weight,
    )


def _start_at_words(
    settings: TrainPartsSettings, kinds: TrainingKinds, denoiser: Denoiser, batches: ConceptImages, start: Tensor
) -> Tensor:
    """`start` `(M, D)` with every foreground part at the word that fits it best in a few pictures."""
    words = settings.method.part_words.split()
    rows = np.linspace(0, len(batches) - 1, min(PROBED_PICTURES, len(batches))).astype(int).tolist()
    fit = fit_of_words(denoiser, words, batches.fixed(rows, batches.plan.num_timesteps // 4))  # (M, W)
    shown = [part for part in sorted({part for part, _ in kinds.rows()}) if part != kinds.background]
    start = start.clone()
    for part, word in choose_words(fit, shown, words).items():
        logger.info("part %s starts at the word %r", kinds.part_names[part], word)
        start[part] = denoiser.word_vectors(word).float().cpu().mean(0)
    return start


def build_batches(
    settings: TrainPartsSettings, pictures: TrainingPictures, cache: LatentCache, denoiser: Denoiser, parallel: Parallel
) -> ConceptImages:
    """Training batches of this process."""
    backbone, optimizer, captions = denoiser.backbone, settings.optimizer, settings.captions
    size = training_size(settings, denoiser)
    plan = BatchPlan(
        batch_size=optimizer.batch_size,
        accumulation=optimizer.accumulation,
        latent_size=size // backbone.latent_factor,
        grid=size // backbone.attention_divisor,
        num_timesteps=len(denoiser.schedule.alphas_cumprod),
        timesteps=settings.method.timesteps,
        unconditional=captions.unconditional,
        seed=settings.run.seed,
        rank=parallel.rank,
        processes=parallel.size,
        latent_factor=backbone.latent_factor,
    )
    style = CaptionStyle(
        template_probability=captions.templates,
        shuffle=captions.shuffle,
        drop_probability=captions.drop_tokens,
        class_noun=captions.noun,
    )

    def tokenize(pieces: Sequence[PromptPiece]) -> PromptTokens:
        return denoiser.tokenize(pieces, chunks=1)

    return ConceptImages(pictures.names, cache, pictures.kinds, tokenize, style, plan, denoiser.device)


def parameter_groups(
    settings: TrainPartsSettings, objective: PartObjective, denoiser: Denoiser
) -> tuple[ParameterGroup, ...]:
    """Tokens, projector matrices and adapters with their own learning rates; only adapters decay."""
    optimizer = settings.optimizer
    own = dict(objective.projector.named_parameters())
    tokens = {name: p for name, p in own.items() if not name.startswith("projection.")}
    matrices = {name: p for name, p in own.items() if name.startswith("projection.")}
    # tokens move in units of the spread of words: embeddings differ tenfold in size between backbones
    groups = (
        ParameterGroup("tokens", tokens, optimizer.token_lr * word_spread(denoiser)),
        ParameterGroup("projector", matrices, optimizer.projector_lr),
        ParameterGroup("lora", objective.named_adapters(), optimizer.lora_lr, optimizer.weight_decay),
    )
    return tuple(group for group in groups if group.parameters)


def _attention_loss(settings: TrainPartsSettings, denoiser: Denoiser) -> AttentionLoss | None:
    asked = settings.attention_loss
    if settings.method.kind == "textual_inversion":
        return None
    layers = asked.layers or None
    if asked.downsampling:
        known = denoiser.cross_attention_layers()
        layers = tuple(name for name, factor in known.items() if factor in asked.downsampling)
    return AttentionLoss(asked.weight, asked.form, layers, asked.columns)


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


def _free_autoencoder(denoiser: Denoiser, *, keep_decoder: bool) -> None:
    """Drop what encodes pictures from memory, and what decodes them unless previews need it."""
    if not keep_decoder:
        denoiser.drop_autoencoder()
        return
    # latents are cached: only previews decode, nothing encodes any more
    autoencoder: nn.Module = denoiser.vae
    autoencoder.encoder = None
    autoencoder.quant_conv = None
