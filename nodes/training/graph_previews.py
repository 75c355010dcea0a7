"""What a part training in the graph looks like on the way: pictures beside those made from their tokens, and heat maps.

Letters: n chosen pictures, M parts.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...concepts.denoiser.ddim import sample_ddim
from ...trainer.learning.parts.concept_images import ConceptImages, quarter_time
from ...trainer.learning.parts.part_objective import PartObjective
from ...trainer.learning.parts.preview_sheets import TILE, attention_sheet, preview_prompts, to_image, varied_rows
from ...trainer.learning.parts.settings import TrainPartsSettings
from ...trainer.learning.pictures.contact_sheet import contact_sheet
from ...trainer.learning.run.run_folder import RunFolder
from .node_previews import NodePreviews
from .training_progress import TrainingProgress
from .training_set import TrainingSet


class GraphPreviews(NodePreviews):
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
        super().__init__(objective.denoiser, run, progress, settings.optimizer.steps)
        self._objective, self._batches, self._set = objective, batches, training_set
        self._settings = settings
        self._rows = varied_rows(training_set.kinds.codes, settings.run.preview_count)

    def draw(self) -> tuple[Image.Image, ...]:
        """Real above made, then heat maps if there are any."""
        made = self.sampled(self._sample)  # (n, 3, S, S)
        real = [self._set.picture(row) for row in self._rows]
        labels = [self._set.names[row] for row in self._rows]
        captions = [*labels, *("made from its tokens" for _ in labels)]
        pictures = contact_sheet([*real, *map(to_image, made)], captions, columns=len(labels), tile=TILE)
        if self._objective.attention is None:
            return (pictures,)
        batch = self._batches.fixed(self._rows, quarter_time(self.denoiser.process))
        return pictures, attention_sheet(self._objective, batch, self._set.kinds.part_names, real)

    def _sample(self) -> Tensor:
        codes = torch.from_numpy(self._set.kinds.codes[self._rows])  # (n, M)
        return sample_ddim(
            self.denoiser,
            preview_prompts(self._objective, codes, self._settings.captions.noun),
            self.denoiser.empty_conditioning(),
            seeds=range(len(self._rows)),
            steps=self._settings.run.preview_steps,
            guidance=self._settings.run.preview_guidance,
            size=self._set.image_size,
            on_step=self.ask,
        )


def as_image(picture: Image.Image) -> Tensor:
    """A picture as ComfyUI's IMAGE `(1, H, W, 3)` in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255).unsqueeze(0)
