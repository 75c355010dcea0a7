"""Finds the run that `bestiary resume` shall go on with."""

from pathlib import Path

from ..concepts.errors import BestiaryError
from .run_folder import CONFIG_NAME, RunFolder
from .settings import GRAPH, BaseSettings


def find_run(path: Path) -> RunFolder:
    """The run folder `path`, or the newest one directly below it.

    Raises:
        BestiaryError: there is none.
    """
    path = Path(path)
    if (path / CONFIG_NAME).is_file():
        return RunFolder.open(path)
    below = [config.parent for config in path.glob(f"*/{CONFIG_NAME}")] if path.is_dir() else []
    if not below:
        raise BestiaryError(f"{path} holds no run: give the folder that training wrote, with {CONFIG_NAME} in it")
    return RunFolder.open(max(below, key=lambda folder: (folder / CONFIG_NAME).stat().st_mtime_ns))


def check_resumable(run: RunFolder, base: BaseSettings) -> None:
    """Make sure that the command line has what a run was started with.

    Raises:
        BestiaryError: its model and pictures came from a ComfyUI graph.
    """
    if base.path == GRAPH:
        raise BestiaryError(
            f"{run.path} was trained in ComfyUI, where its model and pictures are: choose {run.path.name} at resume of the "
            "training block there"
        )
