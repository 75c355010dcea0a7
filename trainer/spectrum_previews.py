"""What a spectrum training looks like on the way: the whole concept, and what each stage alone has learned."""

import torch
from PIL import Image
from torch import Tensor

from ..concepts.atomic_file import replacing
from ..concepts.spectrum.attribute_presets import stages_text
from ..concepts.spectrum.prompt_spectrum import PromptSpectrum
from ..concepts.spectrum.stage_algebra import assemble
from ..concepts.spectrum.staged_conditioning import encode_staged
from ..concepts.spectrum.staged_prompt import PromptSources, resolve_staged_prompt
from .contact_sheet import contact_sheet
from .image_files import fit_square, read_image
from .run_folder import RunFolder
from .sampling import sample_images
from .spectrum_setup import SpectrumSetup, build_spectrum

TILE = 160
"""Edge of a preview tile in pixels."""
MOST_STAGES_SHOWN = 20


class SpectrumPreviews:
    """Writes `samples/step-N.png`: pictures of the concept, then pictures in which one stage alone has its vectors."""

    def __init__(self, setup: SpectrumSetup, run: RunFolder) -> None:
        self._setup, self._run = setup, run

    def write(self, step: int, *, sampling_steps: int | None = None) -> None:
        """Write the sheet for the weights as they are now."""
        settings = self._setup.settings.run
        spectrum = build_spectrum(self._setup, step)
        names = self._setup.pictures.names[: settings.preview_count]
        real = [self._picture(row) for row in range(len(names))]
        stages = range(min(spectrum.stages, MOST_STAGES_SHOWN)) if spectrum.stages > 1 else range(0)
        made = self.sample(spectrum, len(names), list(stages), sampling_steps or settings.preview_steps)
        images = [*real, *(_to_image(image) for image in made)]
        captions = [*names, *("all stages" for _ in names), *(f"stage {stages_text((s,))} alone" for s in stages)]
        sheet = contact_sheet(images, captions, columns=max(2 * len(names), 5), tile=TILE)
        with replacing(self._run.samples / f"step-{step:07d}.png") as temporary:
            sheet.save(temporary, "PNG")

    @torch.no_grad()
    def sample(self, spectrum: PromptSpectrum, whole: int, stages: list[int], steps: int) -> Tensor:
        """Pictures `(whole + len(stages), 3, H, W)` 0..1: `whole` with all stages (seeds 0, 1, ...), then stage by stage (seed 0)."""
        denoiser = self._setup.denoiser
        text = self._setup.settings.captions.templates[0].replace("{}", "<concept>")
        chosen = [spectrum] * whole + [only_stage(spectrum, stage) for stage in stages]
        prompts = [resolve_staged_prompt(text, PromptSources({"concept": one})) for one in chosen]
        sampled = sample_images(
            denoiser,
            encode_staged(denoiser, prompts),
            None,
            seeds=[*range(whole), *[0] * len(stages)],
            steps=steps,
            guidance=self._setup.settings.run.preview_guidance,
            size=self._setup.image_size,
        )
        return sampled.images

    def _picture(self, row: int) -> Image.Image:
        picture = read_image(self._setup.pictures.paths[row], self._setup.image_size)
        return fit_square(picture, self._setup.image_size)


def only_stage(spectrum: PromptSpectrum, stage: int) -> PromptSpectrum:
    """The concept at one stage, its neutral words `(V, D)` at all others."""
    matrix = spectrum.neutral_matrix()
    flat = {name: spectrum.neutral[name].unsqueeze(0) for name in spectrum.embeddings}  # (1, V, W)
    if matrix is None:
        return spectrum
    neutral = PromptSpectrum(spectrum.backbone, flat, spectrum.bounds.equal(1, spectrum.bounds.num_timesteps))
    picks = [(spectrum, s) if s == stage else (neutral, 0) for s in range(spectrum.stages)]
    return assemble(picks, spectrum.bounds, like=spectrum)


def _to_image(image: Tensor) -> Image.Image:
    """`(3, H, W)` in 0..1 -> Pillow."""
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).contiguous().numpy())
