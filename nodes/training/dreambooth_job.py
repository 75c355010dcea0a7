"""From the inputs of Train DreamBooth to its outputs: checks before the first step, then the training, then what it gives."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ...concepts.errors import BestiaryError
from ...trainer.learning.dreambooth.dreambooth_settings import TrainDreamBoothSettings, load_dreambooth_recipe
from ...trainer.learning.dreambooth.dreambooth_setup import IDENTIFIER_ENDING, identifier_start, lay_out
from ...trainer.learning.run.run_folder import RunFolder
from ..denoiser.comfy_denoiser import ComfyDenoiser
from ..denoiser.lora_loading import apply_lora
from ..host.comfy_objects import Clip, Model, Vae
from ..host.graph_progress import GraphProgress
from ..runs.training_runs import ANEW, checked_name, open_run
from .graph_dreambooth_training import DreamBoothInGraph, DreamBoothPictures
from .graph_fit import GraphModel, train_in_graph
from .graph_spectrum_training import check_vae
from .learned_identifier import with_identifier
from .lora_files import save_lora
from .node_previews import as_image
from .node_settings import SHARED_GIVES, SHARED_KEYS, settings_of_node
from .spectrum_pictures import prepare_pictures

logger = logging.getLogger("bestiary")
KEYS = {
    **SHARED_KEYS,
    "instance_prompt": "captions.instance_prompt",
    "class_prompt": "captions.class_prompt",
    "rank": "lora.rank",
    "lora_lr": "optimizer.lora_lr",
    "prior": "method.prior",
    "prior_weight": "method.prior_weight",
    "vectors": "method.vectors",
    "initial_words": "method.initial_words",
}
"""Inputs of the node and the settings they are."""
GRAPH_GIVES = (
    *SHARED_GIVES,
    *(f"images.{name}" for name in ("instance", "masks", "class_images", "class_count")),
    "images.buckets",
    "run.device",
    "run.dtype",
    "method.prior",
    "kind",
)
"""Settings that inputs and sockets decide."""
AUTO, PICTURES, OF_MODEL, OFF = "auto", "pictures", "model", "off"
FIXED = ("method", "captions", "lora")
"""Sections that cannot change when a run is continued."""


class DreamBoothOutputs(NamedTuple):
    """Outputs of Train DreamBooth in order, and a line for the node."""

    model: Model
    lora: dict[str, Tensor]
    """Under kohya names, as ComfyUI's own training gives it."""
    loss_map: dict[str, list[float]]
    preview: Tensor
    """`(1, H, W, 3)` in 0..1."""
    clip: Clip
    run: str
    text: str


@dataclass(frozen=True)
class ConnectedSubject:
    """What sockets carry."""

    images: Sequence[Tensor]
    """`(B, H, W, 3)` in 0..1 each."""
    class_images: Sequence[Tensor] | None = None
    """Of other things of the kind."""
    masks: Sequence[Tensor] | None = None
    """`(B, H, W)` each, the thing in white; None learns from all."""


def run_dreambooth_training(
    loaded: GraphModel, subject: ConnectedSubject, choices: Mapping[str, object], node_id: str | None
) -> DreamBoothOutputs:
    """Train on the objects of the graph; see `train_in_graph` for what may be raised."""
    name = checked_name(str(choices["name"]))
    prior = chosen_prior(str(choices.get("prior", AUTO)), subject.class_images is not None)
    settings = dreambooth_settings({**choices, "name": name, "prior": prior})
    # fail before pictures are encoded, not after it
    denoiser = ComfyDenoiser(loaded.model, loaded.clip, loaded.vae)
    check_vae(denoiser, loaded.vae)
    lay_out(settings, denoiser)
    identifier_start(denoiser, settings.method.vectors, settings.method.initial_words)
    size = settings.images.cached_size(denoiser.backbone)
    pictures = _prepared(subject, settings, loaded.vae, size, GraphProgress(node_id))
    resume = str(choices.get("resume") or ANEW)
    run = open_run(name, resume, settings, pictures.fingerprint())
    if resume != ANEW:
        _check_same_method(run, settings)
    learned = train_in_graph(loaded, DreamBoothInGraph(pictures, settings, loaded.vae), run, node_id)
    adapter, text = learned.concept, learned.text
    if choices.get("save"):
        text = f"{text}; saved as models/loras/{save_lora(adapter, name)}"
    logger.info("%s", text)
    model = apply_lora(loaded.model, adapter.tensors, 1.0).model
    clip = loaded.clip
    if adapter.vectors:
        clip = with_identifier(clip, f"{name}{IDENTIFIER_ENDING}", adapter.vectors)
    return DreamBoothOutputs(
        model, dict(adapter.tensors), {"loss": learned.losses}, as_image(learned.preview), clip, run.path.name, text
    )


def chosen_prior(prior: str, pictures: bool) -> str:
    """How the class is kept: `auto` takes pictures of the class where they are connected, else the model's own predictions.

    Raises:
        BestiaryError: pictures are asked for and none are connected.
    """
    if prior == AUTO:
        return PICTURES if pictures else OF_MODEL
    if prior == PICTURES and not pictures:
        raise BestiaryError(
            f"prior {prior!r} needs pictures of the class: connect class_images, or choose {OF_MODEL!r}, which needs none"
        )
    return prior


def dreambooth_settings(choices: Mapping[str, object]) -> TrainDreamBoothSettings:
    """Settings of a training from the node's inputs.

    Raises:
        BestiaryError: values out of range, or settings that a graph cannot follow.
    """
    return settings_of_node(load_dreambooth_recipe, choices, KEYS, GRAPH_GIVES, size=choices.get("image_size") or None)


def _prepared(
    subject: ConnectedSubject, settings: TrainDreamBoothSettings, vae: Vae, size: int, progress: GraphProgress
) -> DreamBoothPictures:
    flip = settings.images.flip
    instance = prepare_pictures(subject.images, subject.masks, vae, size, flip, progress)
    if settings.method.prior != PICTURES:
        if subject.class_images is not None:
            logger.warning(
                "class_images are connected, but prior %r does not learn from them: choose %r to use them",
                settings.method.prior, PICTURES,
            )  # fmt: skip
        return DreamBoothPictures(instance)
    return DreamBoothPictures(instance, prepare_pictures(subject.class_images or (), None, vae, size, flip, progress))


def _check_same_method(run: RunFolder, settings: TrainDreamBoothSettings) -> None:
    """What is learned cannot change on the way."""
    then = load_dreambooth_recipe(run.config, of_run=True)
    changed = [
        f"{section}.{key} {before!r}, not {getattr(getattr(settings, section), key)!r}"
        for section in FIXED
        for key, before in getattr(then, section)
        if before != getattr(getattr(settings, section), key)
    ]
    if changed:
        raise BestiaryError(
            f"run {run.path.name} was started with {', '.join(changed)}: set what it had, or choose {ANEW!r}"
        )
