"""ProSpect training: `bestiary train spectrum IMAGE_OR_FOLDER`. Paper: arXiv 2305.16225."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...concepts.denoiser.denoiser import ProgressCallback
from ...concepts.denoiser.process import min_snr_of
from ...concepts.errors import BestiaryError
from ...concepts.spectrum.spectrum_file import load_spectrum
from ..exchange.export_spectrum import export_spectrum
from ..learning.pictures.latent_cache import LatentCache
from ..learning.run.processes import Parallel
from ..learning.spectrum.spectrum_images import ConceptPictures, find_pictures, read_masks
from ..learning.spectrum.spectrum_objective_setup import SpectrumTraining, set_up_spectrum, word_start
from ..learning.spectrum.spectrum_settings import TrainSpectrumSettings
from ..model.sampling import SamplingDenoiser
from .train import Trained, train
from .training_setup import Task, TrainingSetup, load_base


class SpectrumTask(Task[TrainSpectrumSettings, ConceptPictures]):
    """The vectors of all stages from one picture or a folder of pictures."""

    kind = "spectrum"
    masks: np.ndarray | None = None
    """(N, h, w) 0..1 of what is learned from, read once the model is known."""

    def read_pictures(self) -> ConceptPictures:
        """All readable pictures."""
        return find_pictures(self.settings.images.source, self.settings.images.masks)

    def load_denoiser(self) -> SamplingDenoiser:
        """Stable Diffusion."""
        return load_base(self.settings)

    @property
    def cache_folder(self) -> Path:
        """Beside the run folder."""
        return Path(self.settings.run.out).absolute().parent / "latents"

    def check(self, denoiser: SamplingDenoiser) -> None:
        """The words to start from must be known, and every picture must have its mask where there are any."""
        images, method = self.settings.images, self.settings.method
        min_snr_of(method.min_snr, denoiser.process.prediction)
        word_start(denoiser, method.initial_words, method.vectors)
        edge = images.cached_size(denoiser.backbone) // denoiser.backbone.latent_factor
        self.masks = read_masks(images.masks, self.pictures, edge)

    def set_up(self, denoiser: SamplingDenoiser, caches: Sequence[LatentCache], parallel: Parallel) -> SpectrumTraining:
        """Vectors and batches that serve every stage."""
        return set_up_spectrum(self.settings, denoiser, self.pictures.names, caches[0], self.masks)

    def findings(self, setup: TrainingSetup) -> Iterator[str]:
        """Pictures, sizes, stages, and pictures for every stage."""
        pictures, settings, stages = self.pictures, self.settings, len(setup.training.curve_labels()["stage_loss"])
        yield f"pictures: {len(pictures.names)} in {pictures.folder}, {len(pictures.skipped)} files left out"
        yield f"sizes: trained at {setup.image_size} px, cached at {setup.spec.image_size} px"
        words = settings.method.initial_words or "common words"
        yield (
            f"stages: {stages} with {settings.method.vectors} vectors each, "
            f"{sum(p.numel() for p in setup.objective.parameters()):,} learned numbers, start from {words}"
        )
        steps, size = settings.optimizer.steps, setup.batches.step_size
        yield f"work: {steps} steps of {size} pictures, {steps * size / stages:.1f} pictures for every stage"

    def export(self, path: Path, folder: Path) -> list[Path]:
        """The mean, every stage, and a guide."""
        return export_spectrum(load_spectrum(path), folder, self.settings.run.name)

    def located(self) -> TrainSpectrumSettings:
        """Also with the folder of latents, which lies beside the run."""
        settings = super().located()
        cache = settings.images.cache or self.cache_folder
        return settings.model_copy(update={"images": settings.images.model_copy(update={"cache": cache})})

    def check_processes(self, count: int) -> None:
        """One alone: stages without a picture in one of several processes would stop the others."""
        if count > 1:
            raise BestiaryError(
                f"{count} processes were started, but a spectrum is learned by one: leave `accelerate launch` out "
                "(a few hundred steps on one GPU are enough)"
            )


def train_spectrum(settings: TrainSpectrumSettings, *, on_progress: ProgressCallback | None = None) -> Trained:
    """Learn the spectrum of a picture or a folder of pictures in a new run folder.

    Raises:
        BestiaryError: pictures, settings and base model do not fit together, or the loss is not finite.
        TrainingStopped: Ctrl-C; the state is saved.
    """
    return train(SpectrumTask(settings), on_progress=on_progress)
