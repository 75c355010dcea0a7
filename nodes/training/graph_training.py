"""Part training on the MODEL, CLIP and VAE of a graph: the command line's loop, objective and settings on ComfyUI's weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from PIL import Image

from ...concepts.errors import BestiaryError
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ...trainer.learning.parts.concept_images import ConceptImages
from ...trainer.learning.parts.finished_parts import cut_thumbnails, learned_dictionary, write_dictionary
from ...trainer.learning.parts.objective_setup import (
    build_batches,
    build_objective,
    check_layers,
    parameter_groups,
)
from ...trainer.learning.parts.part_objective import PartObjective, curve_labels
from ...trainer.learning.parts.settings import TrainPartsSettings
from ...trainer.learning.pictures.latent_cache import LatentCache
from ...trainer.learning.run.run_folder import RunFolder
from ...trainer.learning.run.run_settings import loop_settings
from ...trainer.learning.run.training_state import ParameterGroup, TrainingState
from ..denoiser.comfy_autoencoder import ComfyAutoencoder
from ..denoiser.comfy_denoiser import ComfyDenoiser
from ..denoiser.training_faults import memory_told, random_state_kept
from ..part_dictionary.dictionary_loading import save_dictionary
from .graph_fit import (
    GraphModel,
    begin_progress,
    end_cancelled,
    fit_in_graph,
    last_sheet,
    logged_losses,
    whatever_cancel,
)
from .graph_previews import GraphPreviews
from .training_progress import TrainingProgress
from .training_set import TrainingSet


@dataclass(frozen=True)
class LearnedParts:
    """What a training in the graph leaves."""

    dictionary: PartDictionary = field(repr=False)
    losses: list[float]
    """One per step, those of the steps before a stop included."""
    preview: Image.Image
    steps: int


@dataclass(frozen=True)
class _Setup:
    denoiser: ComfyDenoiser
    batches: ConceptImages
    objective: PartObjective
    groups: tuple[ParameterGroup, ...]


def train_in_graph(
    loaded: GraphModel,
    training_set: TrainingSet,
    settings: TrainPartsSettings,
    run: RunFolder,
    node_id: str | None = None,
) -> LearnedParts:
    """Learn part tokens and adapters in a run folder, from its newest state if it has one.

    MODEL, CLIP and VAE are afterwards what they were, whatever happens.

    Raises:
        BestiaryError: things that do not fit together, a loss that is not finite, or too little memory.
        InterruptProcessingException: the user cancelled; the state and a dictionary of what was learned are saved.
    """
    progress = begin_progress(run, node_id, "parts")
    with memory_told(settings, training_set.image_size), random_state_kept():
        denoiser = ComfyDenoiser(loaded.model, loaded.clip, loaded.vae)
        _check_set(training_set, denoiser, loaded.vae)
        with denoiser.training():
            setup = whatever_cancel(progress, lambda: set_up(denoiser, training_set, settings))
            learned = _learn(setup, training_set, settings, run, progress)
    if not progress.cancelled:
        return learned
    end_cancelled(progress, learned.steps, lambda: save_dictionary(learned.dictionary, f"{run.path.name}_stopped"))


def set_up(denoiser: ComfyDenoiser, training_set: TrainingSet, settings: TrainPartsSettings) -> _Setup:
    """Batches, objective and parameters as the command line builds them; draws from torch's generator.

    Raises:
        BestiaryError: attention layers that this model does not have.
    """
    check_layers(settings, denoiser)
    denoiser.unload_lora()  # of a set-up that Cancel cut short
    torch.manual_seed(settings.run.seed)  # adapters draw from torch's own generator
    cache = LatentCache(training_set.moments)
    batches = build_batches(settings, training_set.names, training_set.kinds, cache, denoiser)
    objective = build_objective(settings, training_set.kinds, denoiser, batches)
    return _Setup(denoiser, batches, objective, parameter_groups(settings, objective, denoiser))


def _learn(
    setup: _Setup, training_set: TrainingSet, settings: TrainPartsSettings, run: RunFolder, progress: TrainingProgress
) -> LearnedParts:
    run.write_curve_labels(curve_labels(training_set.kinds.part_names))
    loop = loop_settings(settings.optimizer, settings.run, setup.denoiser)
    previews = GraphPreviews(setup.objective, setup.batches, training_set, settings, run, progress)
    state = fit_in_graph(setup.objective, setup.groups, setup.batches, loop, run, progress, previews)
    # the dictionary holds the weights that previews show
    with state.averaged():
        dictionary = whatever_cancel(progress, lambda: _dictionary(setup, training_set, settings, state))
        shown = last_sheet(previews, loop, progress)
    write_dictionary(dictionary, run.path / f"{settings.run.name}.safetensors")
    return LearnedParts(dictionary, logged_losses(run), shown or training_set.picture(0), state.step)


def _dictionary(
    setup: _Setup, training_set: TrainingSet, settings: TrainPartsSettings, state: TrainingState
) -> PartDictionary:
    provenance = {
        "made_by": "Bestiary Train Parts in ComfyUI, dictionary format 1",
        "base": "MODEL of a graph",
        "autoencoder": training_set.autoencoder,
        "prediction": setup.denoiser.schedule.prediction,
        "method": settings.method.kind,
        "steps": state.step,
        "pictures": len(training_set.names),
        "image_size": training_set.image_size,
        "batch": setup.batches.plan.step_size,
        "seed": settings.run.seed,
        "attention_loss": settings.attention_loss.weight,
        "lora_rank": settings.lora.rank,
        **training_set.kinds.notes,
    }
    tiles = cut_thumbnails(training_set.kinds, training_set.picture)
    return learned_dictionary(setup.objective, training_set.kinds, tiles, provenance)


def _check_set(training_set: TrainingSet, denoiser: ComfyDenoiser, vae: object) -> None:
    backbone = denoiser.backbone
    channels = training_set.moments.shape[3]  # of (N, V, 2, C, h, w)
    if channels != backbone.latent_channels:
        raise BestiaryError(
            f"the training set holds latents of {channels} channels, this MODEL ({backbone.name}) takes "
            f"{backbone.latent_channels}: connect the VAE of this model to Training Images"
        )
    if training_set.image_size % backbone.attention_divisor:
        raise BestiaryError(
            f"image_size {training_set.image_size} of Training Images: {backbone.name} needs a multiple of "
            f"{backbone.attention_divisor}, such as {backbone.image_size}"
        )
    if ComfyAutoencoder(vae).fingerprint() != training_set.autoencoder:
        raise BestiaryError("the training set was encoded with another VAE: connect the same VAE to both nodes")
