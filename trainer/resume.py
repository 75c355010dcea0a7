"""Finds the run that `bestiary resume` shall go on with."""

from pathlib import Path

from ..concepts.errors import BestiaryError
from .latent_cache import SPEC_NAME
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


def check_resumable(run: RunFolder, base: BaseSettings, cache: Path | None = None) -> None:
    """Make sure that the command line has what a run was started with.

    Args:
        base: the run's model.
        cache: the run's `images.cache`.

    Raises:
        BestiaryError: its model and pictures came from a ComfyUI graph, or it would make a folder that is not its own.
    """
    if base.path == GRAPH:
        raise BestiaryError(
            f"{run.path} was trained in ComfyUI, where its model and pictures are: choose {run.path.name} at resume of the "
            "training block there"
        )
    # a run from elsewhere names folders of another machine: only what lies beside it, or holds latents already, is its own
    if cache is None or any(cache.glob(f"*/{SPEC_NAME}")):
        return
    own = run.path.resolve().parent
    if own not in (place := cache.resolve()).parents:
        raise BestiaryError(
            f"{run.config} keeps its latents in {place}, which holds none and lies outside of {own}: take the line `cache` out "
            "of that file, or make it a folder beside the run"
        )
