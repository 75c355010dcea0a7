"""What a spectrum training on the command line looks like on the way: the sheets of its run folder."""

import torch
from PIL import Image
from torch import Tensor

from ...concepts.files.atomic_file import replacing
from ...concepts.spectrum.prompt_spectrum import PromptSpectrum
from ...concepts.spectrum.staged_conditioning import encode_staged
from ..learning.pictures.image_files import fit_square, read_image
from ..learning.run.run_folder import RunFolder
from ..learning.spectrum.spectrum_objective_setup import build_spectrum
from ..learning.spectrum.spectrum_sheet import sheet_prompts, sheet_seeds, shown_stages, spectrum_sheet
from ..model.sampling import sample_images
from .spectrum_setup import SpectrumSetup


class SpectrumPreviews:
    """Writes `samples/step-N.png`: pictures of the concept, then pictures in which one stage alone has its vectors."""

    def __init__(self, setup: SpectrumSetup, run: RunFolder) -> None:
        self._setup, self._run = setup, run

    def write(self, step: int, *, sampling_steps: int | None = None) -> None:
        """Write the sheet for the weights as they are now."""
        settings = self._setup.settings.run
        spectrum = build_spectrum(self._setup, step)
        # real pictures on the left, then the whole concept, then stages alone
        names, stages = self._setup.pictures.names[: settings.preview_count], shown_stages(spectrum)
        made = self.sample(spectrum, len(names), stages, sampling_steps or settings.preview_steps)
        sheet = spectrum_sheet([self._picture(row) for row in range(len(names))], names, made, stages)
        with replacing(self._run.samples / f"step-{step:07d}.png") as temporary:
            sheet.save(temporary, "PNG")

    @torch.no_grad()
    def sample(self, spectrum: PromptSpectrum, whole: int, stages: list[int], steps: int) -> Tensor:
        """Pictures `(whole + len(stages), 3, H, W)` 0..1: `whole` with all stages (seeds 0, 1, ...), then stage by stage (seed 0)."""
        denoiser, settings = self._setup.denoiser, self._setup.settings
        prompts = sheet_prompts(spectrum, settings.captions.templates[0], whole, stages)
        sampled = sample_images(
            denoiser,
            encode_staged(denoiser, prompts),
            None,
            seeds=sheet_seeds(whole, stages),
            steps=steps,
            guidance=settings.run.preview_guidance,
            size=self._setup.image_size,
        )
        return sampled.images

    def _picture(self, row: int) -> Image.Image:
        picture = read_image(self._setup.pictures.paths[row], self._setup.image_size)
        return fit_square(picture, self._setup.image_size)
