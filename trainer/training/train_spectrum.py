"""ProSpect training: `bestiary train spectrum IMAGE_OR_FOLDER`. Paper: arXiv 2305.16225.

Settings -> pictures, model, cache and objective -> doctor -> one flat loop (fit.py) -> spectrum file and exports.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...concepts.denoiser.denoiser import ProgressCallback
from ...concepts.spectrum.spectrum_file import load_spectrum, save_spectrum
from ..exchange.export_spectrum import export_spectrum
from ..learning.run.fit import fit
from ..learning.run.recipe_file import format_toml
from ..learning.run.run_folder import RunFolder
from ..learning.run.run_settings import loop_settings
from ..learning.run.training_state import TrainingState
from ..learning.spectrum.spectrum_images import find_pictures
from ..learning.spectrum.spectrum_objective import curve_labels
from ..learning.spectrum.spectrum_objective_setup import build_spectrum
from ..learning.spectrum.spectrum_settings import TrainSpectrumSettings, load_spectrum_recipe
from .resume import check_resumable, find_run, tell_changed_pictures
from .several_processes import join_processes
from .spectrum_doctor import examine_spectrum_setup
from .spectrum_previews import SpectrumPreviews
from .spectrum_setup import SpectrumSetup, check_one_process, prepare_spectrum

logger = logging.getLogger("bestiary")


@dataclass(frozen=True)
class TrainedSpectrum:
    """What a finished training leaves."""

    run: RunFolder
    spectrum_path: Path
    exports: tuple[Path, ...]


def train_spectrum(settings: TrainSpectrumSettings, *, on_progress: ProgressCallback | None = None) -> TrainedSpectrum:
    """Learn the spectrum of a picture or a folder of pictures in a new run folder.

    Raises:
        BestiaryError: pictures, settings and base model do not fit together, or the loss is not finite.
        TrainingStopped: Ctrl-C; the state is saved.
    """
    check_one_process(join_processes("cpu")[0].size)
    # faults in the material show before a folder is made or a model loaded
    find_pictures(settings.images.source, settings.images.masks, warn=False)
    run = RunFolder.create(settings.run.out)
    settings = _with_absolute_paths(settings)
    run.write_config(format_toml(settings))
    return _train(settings, run, on_progress)


def resume_spectrum(folder: Path, *, on_progress: ProgressCallback | None = None) -> TrainedSpectrum:
    """Go on with the training of a run folder from its newest state; bit-exact on one thread.

    Raises:
        BestiaryError: `folder` is no run folder of a spectrum, one of a ComfyUI graph, or its pictures or base model have gone or
            changed.
    """
    run = find_run(folder)
    settings = load_spectrum_recipe(run.config, of_run=True)
    check_resumable(run, settings.base, settings.images.cache)
    return _train(settings, run, on_progress)


def _train(settings: TrainSpectrumSettings, run: RunFolder, on_progress: ProgressCallback | None) -> TrainedSpectrum:
    setup = prepare_spectrum(settings)
    tell_changed_pictures(run, setup.pictures.folder, setup.pictures.names)
    if run.newest_state() is None:
        examine_spectrum_setup(setup, run)
    run.write_curve_labels(curve_labels(setup.bounds.stages))
    state = fit(
        setup.objective,
        setup.groups,
        setup.batches,
        loop_settings(settings.optimizer, settings.run, setup.denoiser),
        run,
        on_progress=on_progress,
        on_preview=_previews(setup, run),
    )
    path = run.path / f"{settings.run.name}.safetensors"
    # the file holds the weights that the previews showed, and is read back before its path is given out
    with state.averaged():
        save_spectrum(build_spectrum(setup, state.step), path)
    exports = export_spectrum(load_spectrum(path), run.export, settings.run.name)
    logger.info("%d stages in %s (%d bytes)", setup.bounds.stages, path, path.stat().st_size)
    return TrainedSpectrum(run, path, tuple(exports))


def _previews(setup: SpectrumSetup, run: RunFolder) -> Callable[[TrainingState], None] | None:
    if not setup.settings.run.preview_every:
        return None
    sheets = SpectrumPreviews(setup, run)

    def write(state: TrainingState) -> None:
        with state.averaged():
            sheets.write(state.step)

    return write


def _with_absolute_paths(settings: TrainSpectrumSettings) -> TrainSpectrumSettings:
    """The settings with folders that mean the same from any working directory."""
    # relative folders would mean others where the run is resumed
    images = settings.images
    cache = images.cache or settings.run.out.absolute().parent / "latents"
    paths = {"source": images.source.absolute(), "cache": cache.absolute()}
    if images.masks:
        paths["masks"] = images.masks.absolute()
    base = settings.base
    if base.path != "demo":
        base = base.model_copy(update={"path": str(Path(base.path).absolute())})
    return settings.model_copy(update={"images": images.model_copy(update=paths), "base": base})
