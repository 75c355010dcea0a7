"""From settings to what the loop needs, over any denoiser: batches, objective, parameter groups.

Shared by the command line and the graph, so it imports no library that holds models. Letters: M parts, W words, D width.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....concepts.denoiser.denoiser import Denoiser, PromptLayout, PromptPiece
from ....concepts.denoiser.low_rank import LoraSpec
from ....concepts.denoiser.process import FlowProcess, min_snr_of
from ....concepts.errors import BestiaryError
from ....concepts.part_dictionary.part_dictionary import PartDictionary
from ....concepts.part_dictionary.token_projector import TokenProjector
from ....concepts.part_prompt.part_captions import CaptionStyle
from ..denoiser.prompt_encoding import use_insertion
from ..pictures.latent_cache import LatentCache
from ..run.fit import ParameterGroup
from ..run.processes import Parallel, SingleProcess
from ..run.training import Origin, Sample, Training
from .block_probe import AUTO, PROBE_FILE, plain_words, probed_layers
from .concept_images import BatchPlan, ConceptImages, PartBucket, quarter_time
from .finished_parts import cut_thumbnails, learned_dictionary, write_dictionary
from .part_objective import AttentionLoss, PartBatch, PartObjective, curve_labels
from .preview_sheets import pictures_sheet, preview_prompts, token_sheet, varied_rows
from .settings import USUAL_MIN_SNR, TrainPartsSettings
from .token_start import choose_words, common_start, fit_of_words, mean_word, word_spread
from .training_kinds import TrainingKinds

logger = logging.getLogger("bestiary")
PROBED_PICTURES = 16
"""Pictures in which the attention of candidate words is looked at."""
FORMAT_VERSION = 1


@dataclass(frozen=True)
class PartTraining(Training[PartDictionary]):
    """Part tokens and adapters, which become a part dictionary."""

    settings: TrainPartsSettings
    objective: PartObjective
    batches: ConceptImages
    kinds: TrainingKinds
    """Of the single pictures."""

    def shape_of(self, row: int) -> tuple[int, int]:
        """That of the picture's bucket."""
        factor = self.denoiser.backbone.latent_factor
        height, width = self.batches.bucket_of(row).crop
        return height * factor, width * factor

    def largest_batch(self) -> PartBatch:
        """One of the largest shape."""
        return self.batches.draw(*self.batches.step_of_largest())

    def curve_labels(self) -> dict[str, tuple[str, ...]]:
        """Curves by part."""
        return curve_labels(self.kinds.part_names)

    def learned(self, steps: int, origin: Origin) -> PartDictionary:
        """The dictionary, with a note of how it was made."""
        settings = self.settings
        # what another training would need to be compared with this one
        provenance = {
            "made_by": f"{origin.made_by}, dictionary format {FORMAT_VERSION}",
            "base": origin.base,
            "prediction": self.denoiser.process.prediction,
            **flow_notes(self.denoiser),
            "autoencoder": origin.autoencoder,
            "method": settings.method.kind,
            "steps": steps,
            "pictures": len(self.batches.names),
            "image_size": self.image_size,
            **self._shapes(),
            "batch": self.batches.step_size,
            "seed": settings.run.seed,
            "attention_loss": settings.attention_loss.weight,
            "lora_rank": settings.lora.rank,
            **({"insertion": settings.method.insertion} if settings.method.insertion != "input" else {}),
            **self.kinds.notes,
        }
        tiles = cut_thumbnails(self.kinds, origin.thumbnail_square)
        return learned_dictionary(self.objective, self.kinds, tiles, provenance)

    def size_of(self, concept: PartDictionary) -> str:
        """How many tokens it has."""
        return f"{len(concept.rows)} tokens"

    def save(self, concept: PartDictionary, path: Path) -> None:
        """Write the dictionary and read it back."""
        write_dictionary(concept, path)

    def _shapes(self) -> dict[str, object]:
        """Width and height of every shape, and the share of scenes, where not all pictures are squares of one size."""
        shapes = {self.shape_of(bucket.rows[0]) for bucket in self.batches.buckets}
        notes: dict[str, object] = {}
        if any(height != width for height, width in shapes):
            notes["shapes"] = sorted(f"{width}x{height}" for height, width in shapes)
        if any(bucket.of_scenes for bucket in self.batches.buckets):
            notes["scene_share"] = self.settings.images.scene_share
        return notes

    @torch.no_grad()
    def sheets(self, origin: Origin, sample: Sample) -> tuple[Image.Image, ...]:
        """The same few pictures every time, which together show as many kinds as possible; then where their tokens look."""
        shown = self._preview_rows()
        rows = [row for some in shown for row in some]
        made = [picture for some in shown for picture in self._sampled(some, sample, rows.index(some[0]))]
        real = [origin.square(row) for row in rows]
        pictures = pictures_sheet(real, [self.batches.names[row] for row in rows], made)
        if self.objective.attention is None:
            return (pictures,)
        # all parts in their captions, at a quarter of the noise schedule
        batches = [self.batches.fixed(some, quarter_time(self.denoiser.process)) for some in shown]
        return pictures, token_sheet(self.objective, batches, self.kinds.part_names, real)

    def _preview_rows(self) -> list[list[int]]:
        """Rows of pictures to look at, by shape; half of them scenes where there are any."""
        count, buckets = self.settings.run.preview_count, self.batches.buckets
        groups = [[bucket for bucket in buckets if bucket.of_scenes is scenes] for scenes in (False, True)]
        of_scenes = max(1, count // 2) if groups[1] else 0
        shown = []
        for group, many in zip(groups, (max(1, count - of_scenes), of_scenes), strict=True):
            rows = [row for bucket in group for row in bucket.rows]
            codes = np.concatenate([bucket.kinds.codes for bucket in group]) if group else np.empty((0, 1), np.int64)
            chosen = [rows[place] for place in varied_rows(codes, many)]
            shown += [[row for row in chosen if row in bucket.rows] for bucket in group]
        return [rows for rows in shown if rows]

    def _sampled(self, rows: Sequence[int], sample: Sample, first: int) -> Tensor:
        """What the tokens of pictures of one shape make `(n, 3, H, W)`; seeds count from `first`."""
        bucket = self.batches.bucket_of(rows[0])
        codes = torch.from_numpy(bucket.kinds.codes[[bucket.rows.index(row) for row in rows]])  # (n, S * M)
        prompts = preview_prompts(self.objective, codes, self.settings.captions.noun)
        return sample(prompts, range(first, first + len(rows)), shape=self.shape_of(rows[0]))


def flow_notes(denoiser: Denoiser) -> dict[str, object]:
    """What files say of a flow model: its shift, and text encoders that it was loaded without, whose vectors were not learned."""
    notes: dict[str, object] = {}
    if isinstance(denoiser.process, FlowProcess):
        notes["shift"] = round(denoiser.process.shift, 6)
    if missing := getattr(denoiser.text, "missing", ()):
        notes["without_text_encoders"] = list(missing)
    return notes


def set_up_parts(
    settings: TrainPartsSettings,
    denoiser: Denoiser,
    names: Sequence[str],
    kinds: TrainingKinds,
    cache: LatentCache | Sequence[PartBucket],
    parallel: Parallel | None = None,
    run_folder: Path | None = None,
) -> PartTraining:
    """A training from its first step on; seeds torch's generator, from which adapters are drawn.

    `names` and `kinds` are in the cache's order of pictures; of buckets, `kinds` are those of the single pictures. `run_folder` keeps the
    ranking of attention layers, for when the run is resumed.
    """
    use_insertion(denoiser.text, settings.method.insertion)
    torch.manual_seed(settings.run.seed)
    batches = build_batches(settings, names, kinds, cache, denoiser, parallel)
    objective = build_objective(settings, kinds, denoiser, batches, run_folder)
    groups = parameter_groups(settings, objective, denoiser)
    return PartTraining(settings, denoiser, objective, batches, groups, kinds)


def check_layers(settings: TrainPartsSettings, denoiser: Denoiser) -> None:
    """Make sure that the attention layers asked for exist, and that the loss is one of this model's.

    Raises:
        BestiaryError: unknown names or downsamplings; the message lists what the model has. Min-SNR weights on a flow model.
    """
    min_snr_of(settings.method.min_snr, denoiser.process.prediction)
    known = denoiser.attention_factors()
    layers = settings.attention_loss.layers
    unknown = [] if layers == (AUTO,) else [name for name in layers if name not in known]
    if unknown:
        raise BestiaryError(
            f"attention_loss.layers: {', '.join(unknown)} do not exist in this model; it has {', '.join(known)}"
        )
    # the choice by downsampling must meet layers too
    factors = sorted(set(known.values()))
    strange = [factor for factor in settings.attention_loss.downsampling if factor not in factors]
    if strange:
        raise BestiaryError(f"attention_loss.downsampling: {strange} do not occur in this model; it has {factors}")


def build_objective(
    settings: TrainPartsSettings,
    kinds: TrainingKinds,
    denoiser: Denoiser,
    batches: ConceptImages,
    run_folder: Path | None = None,
) -> PartObjective:
    """Fresh projector and adapters in their objective; draws from torch's generator."""
    # adapters first, then what is learned: both belong to one objective
    method, lora = settings.method, settings.lora
    spec = LoraSpec(lora.rank, lora.alpha or float(lora.rank), lora.self_attention) if lora.rank else None
    adapters = denoiser.network.adapters.add(spec) if spec else {}
    if settings.base.checkpointing:
        denoiser.network.set_gradient_checkpointing(True)
    projector = TokenProjector(
        len(kinds.part_names),
        kinds.num_kinds,
        denoiser.backbone.vector_width,
        depth=method.projector_depth,
        positional=method.positional,
    )
    # where vectors start: one point for all parts, then a word of its own for each
    start = denoiser.backbone.join_vectors(
        common_start(denoiser, len(kinds.part_names), method.initial_words)
    )  # (M, D)
    if method.part_words and method.kind == "parts":
        start = _start_at_words(settings, kinds, denoiser, batches, start)
    # drawn from a generator of its own: adapters before it change nothing
    generator = torch.Generator().manual_seed(settings.run.seed)
    projector.start_from(start, noise=method.initial_spread * word_spread(denoiser), generator=generator)
    return PartObjective(
        denoiser,
        projector.to(denoiser.device),
        adapters,
        attention=_attention_loss(settings, kinds, denoiser, batches, run_folder),
        min_snr=min_snr_of(method.min_snr, denoiser.process.prediction, USUAL_MIN_SNR),
        region_weight=method.region_weight,
    )


def _start_at_words(
    settings: TrainPartsSettings, kinds: TrainingKinds, denoiser: Denoiser, batches: ConceptImages, start: Tensor
) -> Tensor:
    """`start` `(M, D)` with every foreground part at the word that fits it best in a few pictures."""
    words = settings.method.part_words.split()
    fit = fit_of_words(denoiser, words, _probed_batch(denoiser, batches))  # (M, W)
    shown = _shown_parts(kinds)
    start = start.clone()
    for part, word in choose_words(fit, shown, words).items():
        logger.info("part %s starts at the word %r", kinds.part_names[part], word)
        start[part] = denoiser.backbone.join_vectors(mean_word(denoiser, word))
    return start


def _probed_batch(denoiser: Denoiser, batches: ConceptImages) -> PartBatch:
    """A few pictures spread over all of them, with little noise."""
    known = batches.buckets[0].rows
    places = np.linspace(0, len(known) - 1, min(PROBED_PICTURES, len(known))).astype(int)
    return batches.fixed([known[place] for place in places], quarter_time(denoiser.process))


def _shown_parts(kinds: TrainingKinds) -> list[int]:
    """Parts with kinds, the background left out."""
    return [part for part in sorted({part for part, _ in kinds.rows()}) if part != kinds.background]


def build_batches(
    settings: TrainPartsSettings,
    names: Sequence[str],
    kinds: TrainingKinds,
    cache: LatentCache | Sequence[PartBucket],
    denoiser: Denoiser,
    parallel: Parallel | None = None,
) -> ConceptImages:
    """Training batches of this process; as `set_up_parts`."""
    parallel = parallel or SingleProcess()
    backbone, optimizer, captions = denoiser.backbone, settings.optimizer, settings.captions
    size = settings.images.training_size(backbone)
    # sizes in latent cells and attention cells, as this model counts them
    plan = BatchPlan(
        batch_size=optimizer.batch_size,
        accumulation=optimizer.accumulation,
        latent_size=size // backbone.latent_factor,
        grid=size // backbone.attention_divisor,
        process=denoiser.process,
        timesteps=settings.method.timesteps,
        unconditional=captions.unconditional,
        seed=settings.run.seed,
        rank=parallel.rank,
        processes=parallel.size,
        latent_factor=backbone.latent_factor,
        scene_share=settings.images.scene_share,
    )
    # captions as the settings want them; the rest keeps the published defaults
    style = CaptionStyle(
        template_probability=captions.templates,
        shuffle=captions.shuffle,
        drop_probability=captions.drop_tokens,
        class_noun=captions.noun,
    )

    def tokenize(pieces: Sequence[PromptPiece]) -> PromptLayout:
        return denoiser.text.tokenize(pieces, chunks=1)

    return ConceptImages(names, cache, kinds, tokenize, style, plan, denoiser.device)


def parameter_groups(
    settings: TrainPartsSettings, objective: PartObjective, denoiser: Denoiser
) -> tuple[ParameterGroup, ...]:
    """Tokens, projector matrices and adapters with their own learning rates; only adapters decay."""
    # three groups that learn at different speeds
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


def _attention_loss(
    settings: TrainPartsSettings,
    kinds: TrainingKinds,
    denoiser: Denoiser,
    batches: ConceptImages,
    run_folder: Path | None,
) -> AttentionLoss | None:
    asked = settings.attention_loss
    if settings.method.kind == "textual_inversion":
        return None
    layers = asked.layers or None
    if asked.layers == (AUTO,):
        words = plain_words(settings.method.part_words, [kinds.part_names[part] for part in _shown_parts(kinds)])
        kept = None if run_folder is None else run_folder / PROBE_FILE
        layers = probed_layers(denoiser, words, _shown_parts(kinds), _probed_batch(denoiser, batches), kept)
    # layers by their grid instead of by name
    if asked.downsampling:
        known = denoiser.attention_factors()
        layers = tuple(name for name, factor in known.items() if factor in asked.downsampling)
    return AttentionLoss(asked.weight, asked.form, layers, asked.columns, asked.maps)
