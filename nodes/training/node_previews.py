"""Previews of a training in the graph: made now and then, shown on the node, kept in the run folder; Cancel cuts them short."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from ...concepts.files.atomic_file import replacing
from ...trainer.learning.pictures.contact_sheet import PAPER
from ...trainer.learning.run.run_folder import RunFolder
from ...trainer.learning.run.training_state import TrainingState
from ..denoiser.comfy_denoiser import ComfyDenoiser
from .training_progress import TrainingProgress

SHEET_ENDINGS = ("", "-attention")
"""What the file names of a preview's sheets end with, as on the command line."""


class PreviewCut(Exception):
    """The user cancelled while a preview was made."""


class NodePreviews:
    """What a preview shows is said by `draw`."""

    def __init__(self, denoiser: ComfyDenoiser, run: RunFolder, progress: TrainingProgress, steps: int) -> None:
        """`steps`: those of the whole training."""
        self.denoiser = denoiser
        self._run, self._progress, self._steps = run, progress, steps
        self.latest: Image.Image | None = None

    def draw(self) -> tuple[Image.Image, ...]:
        """The sheets for the weights as they are, from top to bottom.

        Raises:
            PreviewCut: the user cancelled.
        """
        raise NotImplementedError

    def show(self, state: TrainingState) -> None:
        """Make a preview with the weights that would be kept now, show it on the node, keep it in the run folder."""
        with state.averaged():
            sheets = self._sheets()
        if sheets is None:
            return
        for ending, sheet in zip(SHEET_ENDINGS, sheets, strict=False):
            with replacing(self._run.samples / f"step-{state.step:07d}{ending}.png") as temporary:
                sheet.save(temporary, "PNG")
        self.latest = stacked(sheets)
        self._progress.preview(self.latest, state.step, self._steps)

    def sheet(self) -> Image.Image | None:
        """All sheets below each other; None if the user cancelled meanwhile."""
        sheets = self._sheets()
        return None if sheets is None else stacked(sheets)

    @torch.no_grad()
    def _sheets(self) -> tuple[Image.Image, ...] | None:
        try:
            return self.draw()
        # newer ComfyUIs raise Cancel out of any layer of the model
        except (PreviewCut, self._progress.interruption):
            self._progress.cancelled = True
            return None

    def sampled(self, sample: Callable[[], Tensor]) -> Tensor:
        """Pictures `(n, 3, S, S)` that `sample` makes; afterwards the model has its place again, which the VAE may have taken."""
        try:
            return sample()
        finally:
            self.denoiser.make_room()

    def ask(self, done: int, steps: int) -> None:
        """Called between the steps of a sampler.

        Raises:
            PreviewCut: the user cancelled.
        """
        if self._progress.should_stop():
            raise PreviewCut


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """All sheets below each other."""
    joined = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), PAPER)
    top = 0
    for sheet in sheets:
        joined.paste(sheet, (0, top))
        top += sheet.height
    return joined
