"""Everything that can be trained, by the name that run folders keep, and how a stopped run goes on."""

from pathlib import Path
from typing import NamedTuple, Protocol

from ...concepts.denoiser.denoiser import ProgressCallback
from ..learning.dreambooth.dreambooth_settings import load_dreambooth_recipe
from ..learning.parts.settings import load_recipe
from ..learning.run.run_settings import TrainingSettings
from ..learning.spectrum.spectrum_settings import load_spectrum_recipe
from .resume import check_resumable, find_run
from .several_processes import join_processes
from .train import Trained, train_in
from .train_dreambooth import DreamBoothTask
from .train_parts import PartTask
from .train_spectrum import SpectrumTask
from .training_setup import Task


class Loader(Protocol):
    """Reads the settings of a run folder."""

    def __call__(self, path: Path, *, of_run: bool) -> TrainingSettings:
        """The checked settings of the file `path`."""
        ...


class Known(NamedTuple):
    """One kind of training."""

    load: Loader
    task: type[Task]


TASKS = {
    "parts": Known(load_recipe, PartTask),
    "spectrum": Known(load_spectrum_recipe, SpectrumTask),
    "dreambooth": Known(load_dreambooth_recipe, DreamBoothTask),
}


def resume_training(folder: Path, *, on_progress: ProgressCallback | None = None) -> Trained:
    """Go on with the training of a run folder from its newest state; bit-exact on one thread.

    Raises:
        BestiaryError: `folder` is not a run folder, is one of a ComfyUI graph, or its pictures or base model have gone or changed.
    """
    run = find_run(folder)
    known = TASKS[run.kind]
    task = known.task(known.load(run.config, of_run=True))
    check_resumable(run, task.settings.base, task.settings.images.cache)
    parallel, device = join_processes(task.settings.run.device)
    task.check_processes(parallel.size)
    return train_in(task, run, parallel, device, on_progress)
