"""Spectrum training on the MODEL, CLIP and VAE of a graph: the command line's objective and settings on ComfyUI's weights."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from ...concepts.errors import BestiaryError
from ...concepts.spectrum.prompt_spectrum import PromptSpectrum
from ...trainer.learning.pictures.latent_cache import LatentCache
from ...trainer.learning.spectrum.spectrum_objective_setup import SpectrumTraining, set_up_spectrum
from ...trainer.learning.spectrum.spectrum_settings import TrainSpectrumSettings
from ..denoiser.comfy_denoiser import ComfyDenoiser
from ..host.comfy_objects import Vae
from ..spectrum.spectrum_files import write_spectrum
from .graph_fit import GraphTask
from .spectrum_pictures import SpectrumPictures


@dataclass(frozen=True)
class SpectrumInGraph(GraphTask[PromptSpectrum]):
    """The vectors of all stages from pictures of one concept."""

    pictures: SpectrumPictures
    settings: TrainSpectrumSettings
    what = "a spectrum"
    made_by = "Bestiary Train Spectrum in ComfyUI"

    def check(self, denoiser: ComfyDenoiser, vae: Vae) -> None:
        """VAE and model must belong together."""
        check_vae(denoiser, vae)

    def set_up(self, denoiser: ComfyDenoiser) -> SpectrumTraining:
        """Vectors and batches that serve every stage."""
        pictures = self.pictures
        return set_up_spectrum(self.settings, denoiser, pictures.names, LatentCache(pictures.moments), pictures.masks)

    def square(self, row: int) -> Image.Image:
        """The cached square."""
        return self.pictures.picture(row)

    def keep(self, concept: PromptSpectrum, name: str) -> str:
        """Save it as a spectrum."""
        return write_spectrum(concept, name)


def check_vae(denoiser: ComfyDenoiser, vae: Vae) -> None:
    """Make sure that VAE and model belong together.

    Raises:
        BestiaryError: the model takes latents of another number of channels.
    """
    backbone, channels = denoiser.backbone, vae.latent_channels
    if channels != backbone.latent_channels:
        raise BestiaryError(
            f"this VAE makes latents of {channels} channels, this MODEL ({backbone.name}) takes "
            f"{backbone.latent_channels}: connect the VAE of this model"
        )
