"""Training in a child process: the command line's own program on the pictures of a graph, with progress and Cancel.

The training set is written as a discovery, once per set, so that the child reads the same squares, parts and kinds.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import shutil
from collections import deque
from contextlib import suppress
from pathlib import Path

from PIL import Image

from ...concepts.errors import BestiaryError
from ...concepts.files.atomic_file import replacing, write_text
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ...trainer.learning.discovery.discovery_folder import (
    CODEBOOK,
    IMAGES,
    PART_MAPS,
    REPORT,
    write_lines,
    write_maps,
    write_report,
)
from ...trainer.learning.parts.settings import TrainPartsSettings, load_recipe
from ...trainer.learning.run.launch import launch, read_progress
from ...trainer.learning.run.recipe_file import format_toml
from ...trainer.learning.run.run_folder import RunFolder
from ...trainer.learning.run.run_settings import GRAPH
from ..part_dictionary.dictionary_loading import save_dictionary
from ..runs.training_runs import ANEW, run_to_resume, runs_folder
from .training_progress import TrainingProgress
from .training_set import TrainingSet

logger = logging.getLogger("bestiary")
KEPT_SETS = 8
"""Training sets that are kept as discoveries, each with its pictures and latents."""
_FIXED = {"base": ("path",), "images": ("size", "flip"), "method": (), "lora": ()}
"""By section of the settings, what cannot change once a run has begun; () is all of it."""
STOPPED = 130
"""Exit code of a command that the user stopped."""
_WROTE = "wrote "
_KEPT_LINES = 12


def train_in_background(
    training_set: TrainingSet,
    base: str,
    settings: TrainPartsSettings,
    name: str,
    resume: str,
    progress: TrainingProgress,
) -> tuple[PartDictionary, str]:
    """Run `bestiary train parts` on a training set, or `bestiary resume`, and wait for its end.

    Args:
        base: a folder of a diffusers-format model, or "demo".
        resume: as the node's input says: anew, the newest run, or a run's name.

    Returns:
        The dictionary and the name of its file below models/bestiary.

    Raises:
        BestiaryError: the command failed; the message is its own.
        InterruptProcessingException: the user cancelled; the child saved its state first.
    """
    import comfy.model_management

    arguments, folder = _arguments(training_set, base, settings, name, resume)
    progress.run = folder.name
    # the child needs the device for itself
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    written: list[str] = []

    def read(line: str) -> None:
        record = read_progress(line)
        if record is not None:
            progress.step(int(record["done"]), int(record["total"]))
            return
        if line.strip():
            lines.append(line.strip())
        if line.startswith(_WROTE):
            written.append(line.removeprefix(_WROTE).strip())

    try:
        code = launch([*arguments, "--progress", "json"], read, should_stop=progress.should_stop)
    finally:
        # a child that ended before it wrote anything leaves an empty folder
        with suppress(OSError):
            folder.rmdir()
    if progress.cancelled or code == STOPPED:
        _tell_stopped(folder, progress)
        progress.stop()
    if code != 0 or not written:
        raise BestiaryError(_failure(code, list(lines)))
    dictionary = PartDictionary.load(Path(written[-1]))
    return dictionary, save_dictionary(dictionary, name)


def write_training_set(training_set: TrainingSet) -> Path:
    """The training set as a discovery that the command line reads; written once, found again by its fingerprint.

    Raises:
        BestiaryError: it cannot be written.
    """
    folder = sets_folder() / training_set.fingerprint()
    found, pictures = folder / "found", folder / "pictures"
    if (found / REPORT).is_file():
        os.utime(folder)  # the newest is forgotten last
        return found
    names = [f"{name.replace(' ', '_')}.png" for name in training_set.names]
    for name, square in zip(names, training_set.squares, strict=True):
        with replacing(pictures / name) as temporary:
            Image.fromarray(square).save(temporary, "PNG")
    training_set.codebook.save(found / CODEBOOK)
    _, height, width = training_set.maps.labels.shape
    write_maps(found / PART_MAPS, [training_set.maps], len(names), (height, width), training_set.maps.codes.shape[1])
    write_lines(found / IMAGES, names)
    if training_set.classes is not None:
        write_text(folder / "classes.csv", _class_table(names, training_set.classes))
    # last, since it marks the discovery as finished
    write_report(found, {"images_folder": str(pictures), "images_folder_relative": "../pictures"})
    forget_old_sets(folder)
    return found


def sets_folder() -> Path:
    """Where training sets lie as discoveries."""
    return runs_folder() / ".training_sets"


def forget_old_sets(newest: Path) -> None:
    """Remove all but the last few training sets, `newest` never: a continued training writes its set again."""
    with suppress(OSError):
        others = [folder for folder in sets_folder().iterdir() if folder.is_dir() and folder != newest]
        for folder in sorted(others, key=lambda folder: folder.stat().st_mtime_ns, reverse=True)[KEPT_SETS - 1 :]:
            shutil.rmtree(folder, ignore_errors=True)


def _arguments(
    training_set: TrainingSet, base: str, settings: TrainPartsSettings, name: str, resume: str
) -> tuple[list[str], Path]:
    """The child's command, and the folder of its run."""
    if resume and resume != ANEW:
        run = RunFolder.open(runs_folder() / run_to_resume(resume, "parts"))
        _go_on_with(run, training_set, base, settings)
        return ["resume", str(run.path)], run.path
    found = write_training_set(training_set)
    # chosen here, so that no folder of an earlier run is taken for this one's
    out = RunFolder.reserve(runs_folder() / name)
    recipe = found.parent / f"{name}.toml"
    write_text(recipe, format_toml(_settings_of_child(training_set, found, base, settings, out)))
    return ["train", "parts", str(recipe)], out


def _settings_of_child(
    training_set: TrainingSet, found: Path, base: str, settings: TrainPartsSettings, out: Path
) -> TrainPartsSettings:
    """The node's settings with the places that a socket stands for."""
    changed = {"base": {"path": base.strip() or "demo"}, "discovery": {"folder": found}}
    changed |= {"run": {"out": out, "estimate_memory": False}}
    if training_set.classes is not None:
        changed |= {"images": {"labels": found.parent / "classes.csv"}, "method": {"ids": "class"}}
    for section, values in changed.items():
        settings = settings.model_copy(update={section: getattr(settings, section).model_copy(update=values)})
    return settings


def _go_on_with(run: RunFolder, training_set: TrainingSet, base: str, settings: TrainPartsSettings) -> None:
    """Give an earlier run the node's settings, such as more steps, once what cannot change on the way is the same.

    Raises:
        BestiaryError: another training set, model or method than the run began with, or a training is writing into it.
    """
    then = load_recipe(run.config, of_run=True)
    # a run of the command line has its own discovery and settings: the child looks after them
    if then.base.path == GRAPH or then.discovery.folder.parent.parent != sets_folder().absolute():
        return
    if then.discovery.folder.parent.name != training_set.fingerprint():
        raise BestiaryError(
            f"run {run.path.name} was trained on other pictures or parts than this training set: connect the same pictures, codebook "
            f"and image_size as then, or choose {ANEW!r}"
        )
    found = write_training_set(training_set)
    now = _settings_of_child(training_set, found, base, settings, run.path)
    now = now.model_copy(update={"base": now.base.model_copy(update={"path": _absolute(now.base.path)})})
    changed = [
        f"{section}.{key} {getattr(old, key)!r}, not {getattr(new, key)!r}"
        for section, fixed in _FIXED.items()
        for old, new in [(getattr(then, section), getattr(now, section))]
        for key in fixed or type(new).model_fields
        if getattr(old, key) != getattr(new, key)
    ]
    if changed:
        raise BestiaryError(
            f"run {run.path.name} was started with {', '.join(changed)}: set what it had, or choose {ANEW!r}"
        )
    with run.locked():
        run.write_config(format_toml(now))


def _absolute(base: str) -> str:
    return base if base == "demo" else str(Path(base).absolute())


def _tell_stopped(folder: Path, progress: TrainingProgress) -> None:
    """Say what a stopped child left, in the log and below the node."""
    saved = RunFolder(folder).newest_state() if folder.is_dir() else None
    if saved is None:
        text = "stopped before anything was learned"
    else:
        text = f"stopped at step {saved.step}; choose {folder.name} at resume to go on"
    logger.info("training in its own process %s", text)
    progress.tell(text)


def _class_table(names: list[str], classes: tuple[str, ...]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["path", "class"])
    writer.writerows(zip(names, classes, strict=True))
    return buffer.getvalue()


def _failure(code: int, lines: list[str]) -> str:
    """The last lines of the child process; for a missing library, how to install it."""
    last = lines[-1] if lines else "it said nothing"
    if "ModuleNotFoundError" in last:
        return f"the training program lacks a library ({last}): install the trainer with pip install bestiary[trainer]"
    return f"the training program ended with code {code}: {last.removeprefix('Error: ')}"
