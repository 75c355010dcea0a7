"""Settings of a training in the graph, from the inputs of its node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from ...concepts.errors import BestiaryError
from ...trainer.learning.run.run_settings import GRAPH, TrainingSettings
from ..runs.training_runs import more_choices

Settings = TypeVar("Settings", bound=TrainingSettings)
SHARED_KEYS = {
    "name": "run.name",
    "steps": "optimizer.steps",
    "batch_size": "optimizer.batch_size",
    "seed": "run.seed",
    "preview_every": "run.preview_every",
    "recompute": "base.checkpointing",
}
"""Inputs that every training node has, and the settings they are."""
SHARED_GIVES = ("images.cache", "base.path", "run.out")
"""Settings that no training in the graph takes: a graph from elsewhere must not name folders of this machine."""


def settings_of_node(
    load: Callable[[None, Mapping[str, object]], Settings],
    choices: Mapping[str, object],
    keys: Mapping[str, str],
    graph_gives: Sequence[str],
    **connected: object,
) -> Settings:
    """Settings from a node's inputs; sockets give pictures, model and device.

    Args:
        load: reads the recipe of this training.
        keys: inputs of the node, and the settings they are.
        graph_gives: settings that sockets decide.
        connected: what sockets say of the section `images`, such as `size`.

    Raises:
        BestiaryError: values out of range, or settings that a graph cannot follow.
    """
    more = more_choices(str(choices.get("more_settings") or ""))
    refused = sorted(set(more) & set(graph_gives))
    if refused:
        raise BestiaryError(f"more_settings: {', '.join(refused)} is decided by what is connected; leave it out")
    given = {keys[key]: value for key, value in choices.items() if key in keys}
    given |= {f"images.{key}": value for key, value in connected.items()}
    given |= {"base.path": GRAPH, "run.tensorboard": False, "run.log_every": 1, "run.save_every": 100}
    return load(None, {**given, **more})
