"""What a training on the command line looks like on the way: the sheets of its run folder."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ...concepts.denoiser.denoiser import Conditioning
from ...concepts.files.atomic_file import replacing
from ...concepts.spectrum.staged_conditioning import StagedConditioning
from ..learning.run.fit import TrainingState
from ..learning.run.run_folder import RunFolder
from ..learning.run.training import SHEET_ENDINGS
from ..model.sampling import sample_images
from .training_setup import TrainingSetup


class Previews:
    """Writes `samples/step-N.png`, and beside it `samples/step-N-attention.png` where tokens are watched."""

    def __init__(self, setup: TrainingSetup, run: RunFolder) -> None:
        self._setup, self._run = setup, run

    def write(self, step: int, *, sampling_steps: int | None = None) -> None:
        """Write the sheets for the weights as they are now."""
        steps = sampling_steps or self._setup.settings.run.preview_steps
        sheets = self._setup.training.sheets(self._setup.origin, partial(self.sample, steps=steps))
        for ending, sheet in zip(SHEET_ENDINGS, sheets, strict=False):
            with replacing(self._run.samples / f"step-{step:07d}{ending}.png") as temporary:
                sheet.save(temporary, "PNG")

    def write_average(self, state: TrainingState) -> None:
        """Write the sheets for the weights that would be exported."""
        with state.averaged():
            self.write(state.step)

    @torch.no_grad()
    def sample(
        self,
        conditioning: Conditioning | StagedConditioning,
        seeds: Sequence[int],
        *,
        steps: int,
        shape: tuple[int, int] | None = None,
    ) -> Tensor:
        """Pictures `(n, 3, H, W)` in 0..1 by the denoiser's own sampler, with the weights that are being trained."""
        sampled = sample_images(
            self._setup.denoiser,
            conditioning,
            None,
            seeds=seeds,
            steps=steps,
            guidance=self._setup.settings.run.preview_guidance,
            size=shape or self._setup.settings.images.training_shape(self._setup.denoiser.backbone),
        )
        return sampled.images
