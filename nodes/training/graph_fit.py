"""Every training in the graph: ComfyUI's objects, the loop with the node as its face, previews, and the end after Cancel.

A `GraphTask` says what is learned.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

from PIL import Image
from torch import nn

from ...trainer.learning.run.fit import Batches, LoopSettings, ParameterGroup, TrainingState, TrainingStopped, fit
from ...trainer.learning.run.run_folder import RunFolder
from ...trainer.learning.run.run_settings import TrainingSettings, loop_settings
from ...trainer.learning.run.training import Concept, Origin, Training
from ..denoiser.comfy_denoiser import ComfyDenoiser
from ..denoiser.model_backbone import without_encoders
from ..denoiser.training_faults import memory_told, random_state_kept
from ..host.comfy_objects import Clip, Model, Vae
from .node_previews import NodePreviews
from .training_progress import TrainingProgress

logger = logging.getLogger("bestiary")
Made = TypeVar("Made")


@dataclass(frozen=True)
class GraphModel:
    """ComfyUI's objects."""

    model: Model
    clip: Clip
    vae: Vae


class GraphTask(ABC, Generic[Concept]):
    """What a training in the graph does its own way; one small class for each thing that can be learned."""

    what: ClassVar[str]
    """What is learned, for the log."""
    made_by: ClassVar[str]
    """What the file says of the program that made it."""
    settings: TrainingSettings

    @abstractmethod
    def check(self, denoiser: ComfyDenoiser, vae: Vae) -> None:
        """Raise BestiaryError for pictures and objects that do not belong together."""

    @abstractmethod
    def set_up(self, denoiser: ComfyDenoiser) -> Training[Concept]:
        """The training from its first step on."""

    @abstractmethod
    def square(self, row: int) -> Image.Image:
        """The training square of a picture."""

    @abstractmethod
    def keep(self, concept: Concept, name: str) -> str:
        """Write what was learned below models/bestiary; the name of its file there."""

    def origin(self) -> Origin:
        """What the file says of pictures and model."""
        return Origin(self.made_by, "MODEL of a graph", self.autoencoder, self.square, self.square)

    @property
    def autoencoder(self) -> str:
        """Fingerprint of the VAE that encoded the pictures, where the file names it."""
        return ""


@dataclass(frozen=True)
class Learned(Generic[Concept]):
    """What a training in the graph leaves."""

    concept: Concept = field(repr=False)
    losses: list[float]
    """One per step, those of the steps before a stop included."""
    preview: Image.Image
    steps: int
    text: str
    """One line for the node."""


def train_in_graph(
    loaded: GraphModel, task: GraphTask[Concept], run: RunFolder, node_id: str | None = None
) -> Learned[Concept]:
    """Learn in a run folder, from its newest state if it has one.

    MODEL, CLIP and VAE are afterwards what they were, whatever happens.

    Raises:
        BestiaryError: things that do not fit together, a loss that is not finite, or too little memory.
        InterruptProcessingException: the user cancelled; the state and a file of what was learned are saved.
    """
    progress = begin_progress(run, node_id, task.what)
    denoiser = ComfyDenoiser(loaded.model, loaded.clip, loaded.vae)
    task.check(denoiser, loaded.vae)
    size = task.settings.images.training_size(denoiser.backbone)
    with memory_told(task.settings, size), random_state_kept(), denoiser.training():
        training = whatever_cancel(progress, lambda: task.set_up(denoiser))
        learned = _learn(training, denoiser, task, run, progress)
    if progress.cancelled:
        end_cancelled(progress, learned.steps, lambda: task.keep(learned.concept, f"{run.path.name}_stopped"))
    return learned


def _learn(
    training: Training[Concept],
    denoiser: ComfyDenoiser,
    task: GraphTask[Concept],
    run: RunFolder,
    progress: TrainingProgress,
) -> Learned[Concept]:
    settings, origin = training.settings, task.origin()
    run.write_curve_labels(training.curve_labels())
    loop = loop_settings(settings.optimizer, settings.run, denoiser)
    previews = NodePreviews(training, denoiser, origin, run, progress)
    state = fit_in_graph(training.objective, training.groups, training.batches, loop, run, progress, previews)
    # the file holds the weights that previews show
    with state.averaged():
        concept = whatever_cancel(progress, lambda: training.learned(state.step, origin))
        shown = last_sheet(previews, loop, progress)
    training.save(concept, run.path / f"{settings.run.name}.safetensors")
    losses = logged_losses(run)
    last = f", loss {losses[-1]:.4f}" if losses else ""
    size, place = training.size_of(concept), f"run folder output/bestiary/{run.path.name}"
    text = f"{size} learned in {state.step} steps{last}; {place}"
    if missing := denoiser.text.missing:
        held = [spec.name for spec in denoiser.backbone.text_encoders if spec.name not in missing]
        text += f". {without_encoders(missing, held)}"
    return Learned(concept, losses, shown or task.square(0), state.step, text)


def begin_progress(run: RunFolder, node_id: str | None, what: str) -> TrainingProgress:
    """Progress display of a run that goes on from its newest state; `what` is learned, for the log."""
    saved = run.newest_state()
    return TrainingProgress(node_id, 0 if saved is None else saved.step, run.path.name, what)


def fit_in_graph(
    objective: nn.Module,
    groups: Sequence[ParameterGroup],
    batches: Batches,
    loop: LoopSettings,
    run: RunFolder,
    progress: TrainingProgress,
    previews: NodePreviews,
) -> TrainingState:
    """The state after the last whole step, or after Cancel (`progress.cancelled`), when it is saved too.

    Newer ComfyUIs raise Cancel out of any layer of the model: the step that it cuts short is undone.

    Raises:
        BestiaryError: the loss is not finite, or a state cannot be written.
    """
    try:
        return fit(
            objective,
            groups,
            batches,
            loop,
            run,
            on_progress=progress.step,
            on_preview=previews.show if loop.preview_every else None,
            should_stop=progress.should_stop,
            interruptions=(progress.interruption,),
        )
    except TrainingStopped as stopped:
        progress.cancelled = True
        if stopped.state is None:
            raise
        return stopped.state


def whatever_cancel(progress: TrainingProgress, make: Callable[[], Made]) -> Made:
    """What `make` gives, whole: Cancel is remembered in `progress`, and what it cut short is done again at once.

    For the short work before the first step and after the last one, without which nothing could be saved.
    """
    while True:
        try:
            return make()
        except progress.interruption:
            progress.cancelled = True


def last_sheet(previews: NodePreviews, loop: LoopSettings, progress: TrainingProgress) -> Image.Image | None:
    """The newest preview, one made now where none was to be made on the way; None after Cancel without one."""
    if progress.cancelled or (previews.latest is not None and loop.preview_every):
        return previews.latest
    return previews.sheet()


def logged_losses(run: RunFolder) -> list[float]:
    """One loss per step, those of the steps before a stop included."""
    return [record["loss"] for record in run.read_log() if record.get("loss") is not None]


def end_cancelled(progress: TrainingProgress, steps: int, keep: Callable[[], str]) -> None:
    """End the graph as Cancel does; `keep` writes what was learned and names its file below models/bestiary.

    Raises:
        InterruptProcessingException: always.
    """
    # before the first step there is nothing to keep but the state
    kept = f"what was learned is in models/bestiary/{whatever_cancel(progress, keep)}; " if steps else ""
    text = f"stopped at step {steps}; {kept}choose {progress.run} at resume to go on"
    logger.info("training %s", text)
    progress.tell(text)
    progress.stop()
