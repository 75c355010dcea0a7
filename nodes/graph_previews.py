"""What a training in the graph looks like on the way: pictures beside those made from their tokens, and heat maps.

Letters: n chosen pictures, M parts.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..concepts.atomic_file import replacing
from ..concepts.ddim import sample_ddim
from ..trainer.concept_images import ConceptImages
from ..trainer.contact_sheet import PAPER, contact_sheet
from ..trainer.part_objective import PartObjective
from ..trainer.preview_sheets import TILE, attention_sheet, preview_prompts, to_image, varied_rows
from ..trainer.run_folder import RunFolder
from ..trainer.settings import TrainPartsSettings
from ..trainer.training_state import TrainingState
from .comfy_denoiser import ComfyDenoiser
from .training_progress import TrainingProgress
from .training_set import TrainingSet


class PreviewCut(Exception):
    """The user cancelled while a preview was made."""


class GraphPreviews:
    """Previews of the same few training pictures every time."""

    def __init__(
        self,
        objective: PartObjective,
        batches: ConceptImages,
        training_set: TrainingSet,
        settings: TrainPartsSettings,
        run: RunFolder,
        progress: TrainingProgress,
    ) -> None:
        """Choose the pictures: those that together show as many kinds as possible."""
        self._objective, self._batches, self._set = objective, batches, training_set
        self._settings, self._run, self._progress = settings, run, progress
        self._rows = varied_rows(training_set.kinds.codes, settings.run.preview_count)
        self.latest: Image.Image | None = None

    def show(self, state: TrainingState) -> None:
        """Make a preview with the weights that would be kept now, show it on the node, keep it in the run folder."""
        with state.averaged():
            self.latest = self.sheet()
        if self.latest is None:
            return
        with replacing(self._run.samples / f"step-{state.step:07d}.png") as temporary:
            self.latest.save(temporary, "PNG")
        self._progress.preview(self.latest, state.step, self._settings.optimizer.steps)

    @torch.no_grad()
    def sheet(self) -> Image.Image | None:
        """Real above made above heat maps; None if the user cancelled meanwhile."""
        denoiser: ComfyDenoiser = self._objective.denoiser
        try:
            made = self._sample(denoiser)  # (n, 3, S, S)
        except PreviewCut:
            return None
        finally:
            # the VAE may have taken the place of weights that the next step needs
            denoiser.make_room()
        real = [self._set.picture(row) for row in self._rows]
        labels = [self._set.names[row] for row in self._rows]
        captions = [*labels, *("made from its tokens" for _ in labels)]
        pictures = contact_sheet([*real, *map(to_image, made)], captions, columns=len(labels), tile=TILE)
        if self._objective.attention is None:
            return pictures
        batch = self._batches.fixed(self._rows, self._batches.plan.num_timesteps // 4)
        return _stacked(pictures, attention_sheet(self._objective, batch, self._set.kinds.part_names, real))

    def _sample(self, denoiser: ComfyDenoiser) -> Tensor:
        codes = torch.from_numpy(self._set.kinds.codes[self._rows])  # (n, M)
        text = preview_prompts(self._objective, codes, self._settings.captions.noun)

        def ask(done: int, steps: int) -> None:
            if self._progress.should_stop():
                raise PreviewCut

        return sample_ddim(
            denoiser,
            text,
            denoiser.empty_conditioning(),
            seeds=range(len(self._rows)),
            steps=self._settings.run.preview_steps,
            guidance=self._settings.run.preview_guidance,
            size=self._set.image_size,
            on_step=ask,
        )


def as_image(picture: Image.Image) -> Tensor:
    """A picture as ComfyUI's IMAGE `(1, H, W, 3)` in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255).unsqueeze(0)


def _stacked(above: Image.Image, below: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (max(above.width, below.width), above.height + below.height), PAPER)
    sheet.paste(above, (0, 0))
    sheet.paste(below, (0, above.height))
    return sheet
