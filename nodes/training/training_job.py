"""From the inputs of a part training node to its outputs: checks before the first step, then the training, then what it gives."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ...concepts.errors import BestiaryError
from ...trainer.learning.denoiser.model_folder import read_model_folder
from ...trainer.learning.parts.settings import TrainPartsSettings, load_recipe
from ..denoiser.comfy_denoiser import ComfyDenoiser
from ..host.comfy_objects import Clip, Model
from ..host.graph_progress import GraphProgress
from ..host.socket_types import NamedDictionary
from ..part_dictionary.dictionary_loading import prompt_name, teach
from ..part_prompt.clip_tokens import dictionaries_of
from ..runs.training_runs import checked_name, open_run
from .background_training import train_in_background
from .graph_fit import GraphModel, train_in_graph
from .graph_training import PartsInGraph
from .node_previews import as_image
from .node_settings import SHARED_GIVES, SHARED_KEYS, settings_of_node
from .training_progress import TrainingProgress
from .training_set import TrainingSet, at_size

logger = logging.getLogger("bestiary")
KEYS = {
    **SHARED_KEYS,
    "accumulation": "optimizer.accumulation",
    "token_lr": "optimizer.token_lr",
    "lora_lr": "optimizer.lora_lr",
    "attention_loss": "attention_loss.form",
    "attention_weight": "attention_loss.weight",
    "rank": "lora.rank",
}
"""Inputs of the nodes and the settings they are."""
GRAPH_GIVES = (
    *SHARED_GIVES,
    *(f"images.{name}" for name in ("folder", "labels", "scenes", "buckets")),
    "discovery.folder",
)
"""Settings that sockets decide."""


class PartOutputs(NamedTuple):
    """Outputs of Train Parts in order, and a line for the node."""

    dictionary: NamedDictionary
    model: Model
    clip: Clip
    loss_map: dict[str, list[float]]
    preview: Tensor
    """`(1, H, W, 3)` in 0..1."""
    text: str


def run_graph_training(
    loaded: GraphModel, training_set: TrainingSet, choices: Mapping[str, object], node_id: str | None
) -> PartOutputs:
    """Train on the objects of the graph; see `train_in_graph` for what may be raised."""
    name = prompt_name(checked_name(str(choices["name"])))
    # fail before training, not after it
    if name in dictionaries_of(loaded.clip):
        raise BestiaryError(f"the CLIP knows a dictionary {name!r} already: give this training another name")
    size = ComfyDenoiser(loaded.model, loaded.clip, loaded.vae).backbone.image_size
    training_set = at_size(training_set, size, loaded.vae, GraphProgress(node_id))
    settings = graph_settings({**choices, "name": name}, training_set)
    run = open_run(
        name, str(choices.get("resume", "")), settings, training_set.fingerprint(), training_set.earlier_fingerprint()
    )
    learned = train_in_graph(loaded, PartsInGraph(training_set, settings), run, node_id)
    logger.info("%s", learned.text)
    named = NamedDictionary(name, learned.concept)
    model, clip = teach(loaded.model, loaded.clip, named, 1.0)
    return PartOutputs(named, model, clip, {"loss": learned.losses}, as_image(learned.preview), learned.text)


def graph_settings(choices: Mapping[str, object], training_set: TrainingSet) -> TrainPartsSettings:
    """Settings of a training from a node's inputs and the training set.

    Raises:
        BestiaryError: values out of range, or settings that a graph cannot follow.
    """
    cut = {"size": training_set.image_size, "flip": training_set.flip}
    settings = settings_of_node(load_recipe, choices, KEYS, GRAPH_GIVES, **cut)
    if settings.method.kind != "parts" or settings.method.ids != "discovered" or settings.images.margin:
        raise BestiaryError(
            "more_settings: method.kind, method.ids and images.margin are decided by Training Images (classes) or belong to "
            "the command line; leave them out"
        )
    return settings


def run_background_training(
    training_set: TrainingSet, base: str, choices: Mapping[str, object], node_id: str | None
) -> tuple[NamedDictionary, str]:
    """Train in a child process; the dictionary, and the name of its file below models/bestiary."""
    name = prompt_name(checked_name(str(choices["name"])))
    if (Path(base) / "model_index.json").is_file():
        size = read_model_folder(Path(base)).backbone.image_size
        training_set = at_size(training_set, size, None, GraphProgress(node_id))
    settings = graph_settings({**choices, "name": name}, training_set)
    progress = TrainingProgress(node_id)
    resume = str(choices.get("resume", ""))
    dictionary, file = train_in_background(training_set, base, settings, name, resume, progress)
    return NamedDictionary(name, dictionary), file
