"""Previews of a training in the graph: made now and then, shown on the node, kept in the run folder; Cancel cuts them short.

Letters: n pictures of a preview, S edge of the training square.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...concepts.denoiser.ddim import sample_ddim
from ...concepts.denoiser.denoiser import Conditioning
from ...concepts.files.atomic_file import replacing
from ...concepts.spectrum.staged_conditioning import StagedConditioning
from ...trainer.learning.pictures.contact_sheet import PAPER
from ...trainer.learning.run.fit import TrainingState
from ...trainer.learning.run.run_folder import RunFolder
from ...trainer.learning.run.training import SHEET_ENDINGS, Origin, Training
from ..denoiser.comfy_denoiser import ComfyDenoiser
from .training_progress import TrainingProgress

PIXELS_AT_ONCE = 2**20
"""Pixels of the staged preview pictures that are sampled together: 64 of 128, 4 of 512, 1 of 1024."""


class PreviewCut(Exception):
    """The user cancelled while a preview was made."""


class NodePreviews:
    """What a preview shows is said by the training."""

    def __init__(
        self,
        training: Training,
        denoiser: ComfyDenoiser,
        origin: Origin,
        run: RunFolder,
        progress: TrainingProgress,
    ) -> None:
        self._training, self._denoiser, self._origin = training, denoiser, origin
        self._run, self._progress = run, progress
        self.latest: Image.Image | None = None

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
        self._progress.preview(self.latest, state.step, self._training.settings.optimizer.steps)

    def sheet(self) -> Image.Image | None:
        """All sheets below each other; None if the user cancelled meanwhile."""
        sheets = self._sheets()
        return None if sheets is None else stacked(sheets)

    @torch.no_grad()
    def _sheets(self) -> tuple[Image.Image, ...] | None:
        try:
            return self._training.sheets(self._origin, self.sample)
        # newer ComfyUIs raise Cancel out of any layer of the model
        except (PreviewCut, self._progress.interruption):
            self._progress.cancelled = True
            return None

    def sample(
        self,
        conditioning: Conditioning | StagedConditioning,
        seeds: Sequence[int],
        *,
        shape: tuple[int, int] | None = None,
    ) -> Tensor:
        """Pictures `(n, 3, S, S)` in 0..1; staged ones a few at a time. Trainings in the graph have squares alone.

        Raises:
            PreviewCut: the user cancelled.
        """
        size, settings = self._training.image_size, self._training.settings.run
        staged = isinstance(conditioning, StagedConditioning)
        at_once = max(1, PIXELS_AT_ONCE // size**2) if staged else len(seeds)
        made = []
        for start in range(0, len(seeds), at_once):
            rows = slice(start, start + at_once)
            try:
                made.append(
                    sample_ddim(
                        self._denoiser,
                        conditioning.pictures(rows).at
                        if isinstance(conditioning, StagedConditioning)
                        else conditioning,
                        self._denoiser.empty_conditioning(),
                        seeds=seeds[rows],
                        steps=settings.preview_steps,
                        guidance=settings.preview_guidance,
                        size=size,
                        on_step=self._ask,
                    )
                )
            finally:
                # decoding may have taken the model's place
                self._denoiser.make_room()
        return torch.cat(made)

    def _ask(self, done: int, steps: int) -> None:
        """Called between the steps of a sampler; raises PreviewCut once the user cancelled."""
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


def as_image(picture: Image.Image) -> Tensor:
    """A picture as ComfyUI's IMAGE `(1, H, W, 3)` in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255).unsqueeze(0)
