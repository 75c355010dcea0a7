"""Finds the run that `bestiary resume` continues."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from ...concepts.errors import BestiaryError
from ...concepts.files.atomic_file import write_text
from ..learning.pictures.latent_cache import SPEC_NAME
from ..learning.run.run_folder import CONFIG_NAME, RunFolder
from ..learning.run.run_settings import GRAPH, BaseSettings

logger = logging.getLogger("bestiary")
PICTURES_NAME = "pictures.json"
_PROBE = 4096


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


def tell_changed_pictures(run: RunFolder, folder: Path, names: Sequence[str]) -> list[str]:
    """Names of pictures that changed since the run began, for a warning; a new run records their state.

    A picture is known by its length and by both of its ends, so that a copied folder is the same one.
    """
    now = {name: _picture_mark(Path(folder) / name) for name in names}
    noted = run.path / PICTURES_NAME
    try:
        then = json.loads(noted.read_text(encoding="utf-8"))
        changed = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    except FileNotFoundError:
        changed = []
        write_text(noted, json.dumps(now))
    except (OSError, ValueError, AttributeError, TypeError) as fault:
        logger.warning("%s cannot be read (%s): whether pictures were replaced is not known", noted, fault)
        changed = []
    if changed:
        logger.warning(
            "%d pictures of %s were replaced, added or removed since this run began, first %s: it goes on with those of now",
            len(changed), folder, changed[0],
        )  # fmt: skip
    return changed


def _picture_mark(path: Path) -> str:
    """Sixteen hex digits of a file's length, first and last bytes; empty where there is none."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, 2)
            file.seek(0)
            digest = hashlib.sha256(str(length).encode() + file.read(_PROBE))
            file.seek(max(0, length - _PROBE))
            digest.update(file.read(_PROBE))
    except OSError:
        return ""
    return digest.hexdigest()[:16]
