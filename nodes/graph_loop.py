"""What all trainings in the graph share: ComfyUI's objects, the fit loop with the node as its face, and the end after Cancel."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import nn

from ..trainer.fit import Batches, LoopSettings, TrainingStopped, fit
from ..trainer.run_folder import RunFolder
from ..trainer.training_state import ParameterGroup, TrainingState
from .node_previews import NodePreviews
from .training_progress import TrainingProgress

logger = logging.getLogger("bestiary")


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
    """The state after the last step, or after Cancel (`progress.cancelled`), when it is saved too.

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
        )
    except TrainingStopped as stopped:
        return stopped.state


def last_sheet(previews: NodePreviews, loop: LoopSettings, progress: TrainingProgress) -> Image.Image | None:
    """The newest preview, one made now where none was to be made on the way; None after Cancel without one."""
    if progress.cancelled or (previews.latest is not None and loop.preview_every):
        return previews.latest
    return previews.sheet()


def logged_losses(run: RunFolder) -> list[float]:
    """One loss per step, those of the steps before a stop included."""
    return [record["loss"] for record in run.read_log() if record.get("loss") is not None]


def end_cancelled(progress: TrainingProgress, steps: int, kept: str) -> None:
    """End the graph as Cancel does; what was learned is in the file `kept` of models/bestiary.

    Raises:
        InterruptProcessingException: always.
    """
    logger.info("training stopped at step %d; what was learned is in models/bestiary/%s", steps, kept)
    progress.stop()
