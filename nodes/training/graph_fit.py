"""What all trainings in the graph share: ComfyUI's objects, the fit loop with the node as its face, and the end after Cancel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image
from torch import nn

from ...trainer.learning.run.fit import Batches, LoopSettings, TrainingStopped, fit
from ...trainer.learning.run.run_folder import RunFolder
from ...trainer.learning.run.training_state import ParameterGroup, TrainingState
from .node_previews import NodePreviews
from .training_progress import TrainingProgress

logger = logging.getLogger("bestiary")
Made = TypeVar("Made")


@dataclass(frozen=True)
class GraphModel:
    """ComfyUI's objects."""

    model: object
    clip: object
    vae: object


def begin_progress(run: RunFolder, node_id: str | None, what: str) -> TrainingProgress:
    """The face of a training that goes on from the newest state of its run; `what` is learned, for the log."""
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
