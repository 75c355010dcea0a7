"""Spectrum training on the MODEL, CLIP and VAE of a graph: the command line's loop, objective and settings on ComfyUI's weights.

Letters: n real pictures, m stages shown alone, S edge of the training square.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from ...concepts.denoiser.ddim import sample_ddim
from ...concepts.errors import BestiaryError
from ...concepts.spectrum.prompt_spectrum import PromptSpectrum
from ...concepts.spectrum.spectrum_file import save_spectrum
from ...concepts.spectrum.staged_conditioning import encode_staged
from ...trainer.learning.pictures.latent_cache import LatentCache
from ...trainer.learning.run.run_folder import RunFolder
from ...trainer.learning.run.run_settings import loop_settings
from ...trainer.learning.spectrum.spectrum_objective import curve_labels
from ...trainer.learning.spectrum.spectrum_objective_setup import SpectrumTraining, build_spectrum, set_up_spectrum
from ...trainer.learning.spectrum.spectrum_settings import TrainSpectrumSettings
from ...trainer.learning.spectrum.spectrum_sheet import sheet_prompts, sheet_seeds, shown_stages, spectrum_sheet
from ..denoiser.comfy_denoiser import ComfyDenoiser
from ..denoiser.training_faults import memory_told, random_state_kept
from ..spectrum.spectrum_files import write_spectrum
from .graph_fit import (
    GraphModel,
    begin_progress,
    end_cancelled,
    fit_in_graph,
    last_sheet,
    logged_losses,
    whatever_cancel,
)
from .node_previews import NodePreviews
from .spectrum_pictures import SpectrumPictures
from .training_progress import TrainingProgress

PIXELS_AT_ONCE = 2**20
"""Pixels of the preview pictures that are sampled together: 64 of 128, 4 of 512, 1 of 1024."""
MADE_BY = "Bestiary Train Spectrum in ComfyUI"


@dataclass(frozen=True)
class LearnedSpectrum:
    """What a training in the graph leaves."""

    spectrum: PromptSpectrum = field(repr=False)
    losses: list[float]
    """One per step, those of the steps before a stop included."""
    preview: Image.Image
    steps: int


def train_spectrum_in_graph(
    loaded: GraphModel,
    pictures: SpectrumPictures,
    settings: TrainSpectrumSettings,
    run: RunFolder,
    node_id: str | None = None,
) -> LearnedSpectrum:
    """Learn the vectors of all stages in a run folder, from its newest state if it has one.

    MODEL, CLIP and VAE are afterwards what they were, whatever happens.

    Raises:
        BestiaryError: things that do not fit together, a loss that is not finite, or too little memory.
        InterruptProcessingException: the user cancelled; the state and a spectrum of what was learned are saved.
    """
    progress = begin_progress(run, node_id, "a spectrum")
    denoiser = ComfyDenoiser(loaded.model, loaded.clip, loaded.vae)
    check_vae(denoiser, loaded.vae)
    size = settings.images.size or denoiser.backbone.image_size
    with memory_told(settings, size), random_state_kept(), denoiser.training():
        cache = LatentCache(pictures.moments)
        training = whatever_cancel(
            progress, lambda: set_up_spectrum(settings, denoiser, pictures.names, cache, pictures.masks)
        )
        learned = _learn(training, pictures, run, progress)
    if not progress.cancelled:
        return learned
    end_cancelled(progress, learned.steps, lambda: write_spectrum(learned.spectrum, f"{run.path.name}_stopped"))


def check_vae(denoiser: ComfyDenoiser, vae: object) -> None:
    """Make sure that VAE and model belong together.

    Raises:
        BestiaryError: the model takes latents of another number of channels.
    """
    backbone = denoiser.backbone
    if vae.latent_channels != backbone.latent_channels:
        raise BestiaryError(
            f"this VAE makes latents of {vae.latent_channels} channels, this MODEL ({backbone.name}) takes "
            f"{backbone.latent_channels}: connect the VAE of this model"
        )


def _learn(
    training: SpectrumTraining, pictures: SpectrumPictures, run: RunFolder, progress: TrainingProgress
) -> LearnedSpectrum:
    settings = training.settings
    run.write_curve_labels(curve_labels(training.bounds.stages))
    loop = loop_settings(settings.optimizer, settings.run, training.denoiser)
    previews = SpectrumNodePreviews(training, pictures, run, progress)
    state = fit_in_graph(training.objective, training.groups, training.batches, loop, run, progress, previews)
    # the spectrum holds the weights that previews show
    with state.averaged():
        spectrum = whatever_cancel(
            progress, lambda: build_spectrum(training, state.step, made_by=MADE_BY, base="MODEL of a graph")
        )
        shown = last_sheet(previews, loop, progress)
    save_spectrum(spectrum, run.path / f"{settings.run.name}.safetensors")
    return LearnedSpectrum(spectrum, logged_losses(run), shown or pictures.picture(0), state.step)


class SpectrumNodePreviews(NodePreviews):
    """Pictures beside those made from all stages, then pictures in which one stage alone has its vectors."""

    def __init__(
        self, training: SpectrumTraining, pictures: SpectrumPictures, run: RunFolder, progress: TrainingProgress
    ) -> None:
        """The first few pictures are shown."""
        super().__init__(training.denoiser, run, progress, training.settings.optimizer.steps)
        self._training, self._pictures = training, pictures

    def draw(self) -> tuple[Image.Image, ...]:
        """One sheet, as the command line makes it."""
        spectrum = build_spectrum(self._training, 0)
        names = self._pictures.names[: self._training.settings.run.preview_count]
        stages = shown_stages(spectrum)
        made = self.sampled(lambda: self._sample(spectrum, len(names), stages))  # (n + m, 3, S, S)
        real = [self._pictures.picture(row) for row in range(len(names))]
        return (spectrum_sheet(real, names, made, stages),)

    def _sample(self, spectrum: PromptSpectrum, whole: int, stages: list[int]) -> Tensor:
        settings, size = self._training.settings, self._training.image_size
        prompts = sheet_prompts(spectrum, settings.captions.templates[0], whole, stages)
        told, seeds = encode_staged(self.denoiser, prompts), sheet_seeds(whole, stages)
        at_once = max(1, PIXELS_AT_ONCE // size**2)
        made = []
        for start in range(0, len(seeds), at_once):
            rows = slice(start, start + at_once)
            made.append(
                sample_ddim(
                    self.denoiser,
                    told.pictures(rows).at,
                    self.denoiser.empty_conditioning(),
                    seeds=seeds[rows],
                    steps=settings.run.preview_steps,
                    guidance=settings.run.preview_guidance,
                    size=size,
                    on_step=self.ask,
                )
            )
            # decoding may have taken the model's place
            self.denoiser.make_room()
        return torch.cat(made)
