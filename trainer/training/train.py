"""Every training on the command line, from its settings to its files; a task says what is learned.

Settings -> pictures, model, cache and objective -> doctor -> one flat loop (fit.py) -> file and exports.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from ...concepts.denoiser.denoiser import ProgressCallback
from ..learning.run.fit import fit
from ..learning.run.processes import Parallel
from ..learning.run.recipe_file import format_toml
from ..learning.run.run_folder import RunFolder
from ..learning.run.run_settings import loop_settings
from .doctor import examine_setup
from .previews import Previews
from .resume import tell_changed_pictures
from .several_processes import join_processes, shared_text
from .training_setup import Task, prepare

logger = logging.getLogger("bestiary")


@dataclass(frozen=True)
class Trained:
    """What a finished training leaves."""

    run: RunFolder
    path: Path
    """The file of what was learned."""
    exports: tuple[Path, ...]
    """Files for other programs."""


def train(task: Task, *, on_progress: ProgressCallback | None = None) -> Trained:
    """Learn in a new run folder.

    Raises:
        BestiaryError: settings, pictures and base model do not fit together, or the loss is not finite.
        TrainingStopped: Ctrl-C; the state is saved.
    """
    parallel, device = join_processes(task.settings.run.device)
    task.check_processes(parallel.size)
    _ = task.pictures  # faults in the material show before a folder is made or a model loaded
    created = str(RunFolder.create(task.settings.run.out).path) if parallel.rank == 0 else ""
    run = RunFolder(Path(shared_text(parallel, created)))
    if parallel.rank == 0:
        run.write_config(format_toml(task.located()))
    return train_in(task, run, parallel, device, on_progress)


def train_in(
    task: Task, run: RunFolder, parallel: Parallel, device: str, on_progress: ProgressCallback | None
) -> Trained:
    """Learn from the newest state of a run folder on."""
    # the device of this process takes the place of the one that was asked for
    own = task.settings.run.model_copy(update={"device": device})
    task.settings = task.settings.model_copy(update={"run": own})
    task.run_folder = run.path
    setup = prepare(task, parallel=parallel)
    training, settings = setup.training, task.settings
    # the first process examines, previews, saves and exports
    is_first = parallel.rank == 0
    if is_first:
        tell_changed_pictures(run, setup.pictures.folder, setup.pictures.names)
        if run.newest_state() is None:
            examine_setup(setup, run)
        run.write_curve_labels(training.curve_labels())
    state = fit(
        training.objective,
        training.groups,
        training.batches,
        loop_settings(settings.optimizer, settings.run, training.denoiser),
        run,
        parallel=parallel,
        on_progress=on_progress if is_first else None,
        on_preview=Previews(setup, run).write_average if is_first else None,
    )
    path, exports = run.path / f"{settings.run.name}.safetensors", []
    if is_first:
        # the file holds the weights that the previews showed
        with state.averaged():
            learned = training.learned(state.step, setup.origin)
            training.save(learned, path)
        exports = task.export(path, run.export)
        logger.info("%s in %s, %d files in %s", training.size_of(learned), path, len(exports), run.export)
    parallel.wait()
    return Trained(run, path, tuple(exports))
