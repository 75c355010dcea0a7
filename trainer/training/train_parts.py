"""PartCraft training: `bestiary train parts RECIPE.toml`. Paper: arXiv 2407.04604.

Settings -> pictures, model, cache and objective -> doctor -> one flat loop (fit.py) -> part dictionary and exports.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...concepts.denoiser.denoiser import ProgressCallback
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ..exchange.export_parts import export_dictionary
from ..learning.parts.finished_parts import write_dictionary
from ..learning.parts.part_objective import curve_labels
from ..learning.parts.settings import TrainPartsSettings, load_recipe
from ..learning.run.fit import Parallel, fit
from ..learning.run.recipe_file import format_toml
from ..learning.run.run_folder import RunFolder
from ..learning.run.run_settings import loop_settings
from ..learning.run.training_state import TrainingState
from .doctor import examine_setup
from .finished_dictionary import build_dictionary
from .part_previews import PartPreviews
from .resume import check_resumable, find_run, tell_changed_pictures
from .several_processes import join_processes, shared_text
from .training_setup import TrainingSetup, load_pictures, prepare

logger = logging.getLogger("bestiary")


@dataclass(frozen=True)
class TrainedParts:
    """What a finished training leaves."""

    run: RunFolder
    dictionary_path: Path
    exports: tuple[Path, ...]


def train_parts(settings: TrainPartsSettings, *, on_progress: ProgressCallback | None = None) -> TrainedParts:
    """Learn part tokens and adapters in a new run folder.

    Raises:
        BestiaryError: settings, pictures, discovery and base model do not fit together, or the loss is not finite.
        TrainingStopped: Ctrl-C; the state is saved.
    """
    parallel, device = join_processes(settings.run.device)
    load_pictures(settings)  # faults in the material show before a folder is made or a model loaded
    created = str(RunFolder.create(settings.run.out).path) if parallel.rank == 0 else ""
    run = RunFolder(Path(shared_text(parallel, created)))
    if parallel.rank == 0:
        run.write_config(format_toml(_with_absolute_paths(settings)))
    return _train(settings, run, parallel, device, on_progress)


def resume_training(folder: Path, *, on_progress: ProgressCallback | None = None) -> TrainedParts:
    """Go on with the training of a run folder from its newest state; bit-exact on one thread.

    Raises:
        BestiaryError: `folder` is no run folder, one of a ComfyUI graph, or its discovery, pictures or base model have gone or
            changed.
    """
    run = find_run(folder)
    settings = load_recipe(run.config, of_run=True)
    check_resumable(run, settings.base, settings.images.cache)
    parallel, device = join_processes(settings.run.device)
    return _train(settings, run, parallel, device, on_progress)


def _train(
    settings: TrainPartsSettings,
    run: RunFolder,
    parallel: Parallel,
    device: str,
    on_progress: ProgressCallback | None,
) -> TrainedParts:
    # the device of this process takes the place of the one that was asked for
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"device": device})})
    setup = prepare(settings, parallel=parallel)
    # the first process examines, previews, saves and exports
    is_first = parallel.rank == 0
    if is_first:
        tell_changed_pictures(run, setup.pictures.folder, setup.pictures.names)
    if is_first and run.newest_state() is None:
        examine_setup(setup, run)
    if is_first:
        run.write_curve_labels(curve_labels(setup.pictures.kinds.part_names))
    state = fit(
        setup.objective,
        setup.groups,
        setup.batches,
        loop_settings(settings.optimizer, settings.run, setup.denoiser),
        run,
        parallel=parallel,
        on_progress=on_progress if is_first else None,
        on_preview=_previews(setup, run) if is_first else None,
    )
    path = run.path / f"{settings.run.name}.safetensors"
    # the dictionary holds the weights that the previews showed
    exports: list[Path] = []
    if is_first:
        with state.averaged():
            write_dictionary(build_dictionary(setup, state.step), path)
        exports = export_dictionary(PartDictionary.load(path), run.export)
        logger.info("%d tokens in %s, %d files in %s", len(setup.pictures.kinds.rows()), path, len(exports), run.export)
    parallel.wait()
    return TrainedParts(run, path, tuple(exports))


def _previews(setup: TrainingSetup, run: RunFolder) -> Callable[[TrainingState], None] | None:
    """Writes preview sheets with the weights that would be exported."""
    if not setup.settings.run.preview_every:
        return None
    sheets = PartPreviews(setup, run)

    def write(state: TrainingState) -> None:
        with state.averaged():
            sheets.write(state.step)

    return write


def _with_absolute_paths(settings: TrainPartsSettings) -> TrainPartsSettings:
    """The settings with folders that mean the same from any working directory."""
    # relative folders would mean others where the run is resumed
    discovery = settings.discovery.model_copy(update={"folder": settings.discovery.folder.absolute()})
    own = {name: getattr(settings.images, name) for name in ("folder", "labels", "cache")}
    images = settings.images.model_copy(update={name: path.absolute() for name, path in own.items() if path})
    base = settings.base
    if base.path != "demo":
        base = base.model_copy(update={"path": str(Path(base.path).absolute())})
    return settings.model_copy(update={"discovery": discovery, "images": images, "base": base})
