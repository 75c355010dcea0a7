"""What a training looks like on the way: real pictures beside pictures made from their tokens, and where tokens look."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ...concepts.denoiser.denoiser import Conditioning
from ...concepts.files.atomic_file import replacing
from ..learning.parts.concept_images import quarter_time
from ..learning.parts.part_objective import PartBatch
from ..learning.parts.preview_sheets import TILE, attention_sheet, preview_prompts, to_image, varied_rows
from ..learning.pictures.contact_sheet import contact_sheet
from ..learning.pictures.image_files import fit_square, read_image
from ..learning.run.run_folder import RunFolder
from ..model.sampling import sample_images
from .training_setup import TrainingSetup


class PartPreviews:
    """Writes `samples/step-N.png` and `samples/step-N-attention.png` of the same few training pictures every time."""

    def __init__(self, setup: TrainingSetup, run: RunFolder) -> None:
        """Choose the pictures: those that together show as many kinds as possible."""
        self._setup, self._run = setup, run
        settings = setup.settings.run
        self._rows = varied_rows(setup.pictures.kinds.codes, settings.preview_count)
        self._settings = settings

    def write(self, step: int, *, sampling_steps: int | None = None) -> None:
        """Write both sheets for the weights as they are now."""
        made = self.sample(sampling_steps or self._settings.preview_steps)  # (n, 3, H, W)
        # a column per picture: the real one above what its tokens make
        real = [self._picture(row) for row in self._rows]
        labels = [self._setup.pictures.names[row] for row in self._rows]
        images = [*real, *(to_image(image) for image in made)]
        captions = [*labels, *("made from its tokens" for _ in labels)]
        sheet = contact_sheet(images, captions, columns=len(labels), tile=TILE)
        self._save(sheet, f"step-{step:07d}.png")
        if self._setup.objective.attention is not None:
            self._save(self._attention_sheet(real), f"step-{step:07d}-attention.png")

    @torch.no_grad()
    def sample(self, steps: int) -> Tensor:
        """Pictures `(n, 3, H, W)` 0..1 of "a photo of a" and all tokens of each chosen picture, seeds 0 to n - 1."""
        denoiser = self._setup.denoiser
        # by the denoiser's own sampler, with the adapters that are being trained
        sampled = sample_images(
            denoiser,
            self._encode(),
            None,
            seeds=range(len(self._rows)),
            steps=steps,
            guidance=self._settings.preview_guidance,
            size=self._setup.image_size,
        )
        return sampled.images

    def _encode(self) -> Conditioning:
        codes = torch.from_numpy(self._setup.pictures.kinds.codes[self._rows])  # (n, M)
        return preview_prompts(self._setup.objective, codes, self._setup.settings.captions.noun)

    def _attention_sheet(self, pictures: Sequence[Image.Image]) -> Image.Image:
        names = self._setup.pictures.kinds.part_names
        return attention_sheet(self._setup.objective, self._middle_batch(), names, pictures)

    def _middle_batch(self) -> PartBatch:
        """The chosen pictures at a quarter of the noise schedule, all parts in their captions."""
        return self._setup.batches.fixed(self._rows, quarter_time(self._setup.denoiser.process))

    def _picture(self, row: int) -> Image.Image:
        picture = read_image(self._setup.pictures.paths[row], self._setup.image_size)
        return fit_square(picture, self._setup.image_size)

    def _save(self, sheet: Image.Image, name: str) -> None:
        with replacing(self._run.samples / name) as temporary:
            sheet.save(temporary, "PNG")
