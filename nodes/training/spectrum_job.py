"""From the inputs of Train Spectrum to its outputs: checks before the first step, then the training, then what it gives."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ...concepts.errors import BestiaryError
from ...trainer.learning.run.run_folder import RunFolder
from ...trainer.learning.spectrum.spectrum_objective_setup import word_start
from ...trainer.learning.spectrum.spectrum_settings import TrainSpectrumSettings, load_spectrum_recipe
from ..denoiser.comfy_denoiser import ComfyDenoiser
from ..host.graph_progress import GraphProgress
from ..host.socket_types import NamedSpectrum
from ..part_dictionary.dictionary_loading import prompt_name
from ..runs.training_runs import ANEW, checked_name, open_run
from .graph_fit import GraphModel, train_in_graph
from .graph_spectrum_training import SpectrumInGraph, check_vae
from .node_previews import as_image
from .node_settings import SHARED_GIVES, SHARED_KEYS, settings_of_node
from .spectrum_pictures import prepare_pictures

logger = logging.getLogger("bestiary")
KEYS = {
    **SHARED_KEYS,
    "initial_words": "method.initial_words",
    "stages": "method.stages",
    "vectors": "method.vectors",
    "vector_lr": "optimizer.vector_lr",
}
"""Inputs of the node and the settings they are."""
GRAPH_GIVES = (*SHARED_GIVES, "images.source", "images.masks", "run.device", "run.dtype", "kind")
"""Settings that sockets decide."""


class SpectrumOutputs(NamedTuple):
    """Outputs of Train Spectrum in order, and a line for the node."""

    spectrum: NamedSpectrum
    loss_map: dict[str, list[float]]
    preview: Tensor
    """`(1, H, W, 3)` in 0..1."""
    run: str
    text: str


@dataclass(frozen=True)
class ConnectedPictures:
    """What sockets carry."""

    images: Sequence[Tensor]
    """`(B, H, W, 3)` in 0..1 each."""
    masks: Sequence[Tensor] | None
    """`(B, H, W)` each, the thing in white; None learns from all."""


def run_spectrum_training(
    loaded: GraphModel, concept: ConnectedPictures, choices: Mapping[str, object], node_id: str | None
) -> SpectrumOutputs:
    """Train on the objects of the graph; see `train_in_graph` for what may be raised."""
    name = prompt_name(checked_name(str(choices["name"])))
    settings = spectrum_settings({**choices, "name": name})
    # fail before pictures are encoded, not after it
    denoiser = ComfyDenoiser(loaded.model, loaded.clip, loaded.vae)
    check_vae(denoiser, loaded.vae)
    word_start(denoiser, settings.method.initial_words, settings.method.vectors)
    size = settings.images.cached_size(denoiser.backbone)
    progress = GraphProgress(node_id)
    pictures = prepare_pictures(concept.images, concept.masks, loaded.vae, size, settings.images.flip, progress)
    resume = str(choices.get("resume") or ANEW)
    run = open_run(name, resume, settings, pictures.fingerprint())
    if resume != ANEW:
        _check_same_method(run, settings)
    learned = train_in_graph(loaded, SpectrumInGraph(pictures, settings), run, node_id)
    logger.info("%s", learned.text)
    named, shown = NamedSpectrum(name, learned.concept), as_image(learned.preview)
    return SpectrumOutputs(named, {"loss": learned.losses}, shown, run.path.name, learned.text)


def spectrum_settings(choices: Mapping[str, object]) -> TrainSpectrumSettings:
    """Settings of a training from the node's inputs.

    Raises:
        BestiaryError: values out of range, or settings that a graph cannot follow.
    """
    return settings_of_node(load_spectrum_recipe, choices, KEYS, GRAPH_GIVES, size=choices.get("image_size") or None)


def _check_same_method(run: RunFolder, settings: TrainSpectrumSettings) -> None:
    """What is learned cannot change on the way."""
    then, now = load_spectrum_recipe(run.config, of_run=True).method, settings.method
    changed = [key for key in type(now).model_fields if getattr(then, key) != getattr(now, key)]
    if changed:
        listed = ", ".join(f"{key} {getattr(then, key)!r}, not {getattr(now, key)!r}" for key in changed)
        raise BestiaryError(f"run {run.path.name} was started with {listed}: set what it had, or choose {ANEW!r}")
