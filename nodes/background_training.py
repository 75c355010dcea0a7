"""Training in a child process: the command line's own program on the pictures of a graph, with progress and Cancel.

The training set is written as a discovery, once per set, so that the child reads the same squares, parts and kinds.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from pathlib import Path

from PIL import Image

from ..concepts.atomic_file import replacing, write_text
from ..concepts.errors import BestiaryError
from ..concepts.parts.part_dictionary import PartDictionary
from ..trainer.discovery_folder import CODEBOOK, IMAGES, PART_MAPS, REPORT, write_lines, write_maps, write_report
from ..trainer.launch import launch, read_progress
from ..trainer.recipe_file import format_toml
from ..trainer.settings import TrainPartsSettings
from .dictionary_loading import save_dictionary
from .run_listing import newest_run
from .training_progress import TrainingProgress
from .training_runs import ANEW, run_to_resume, runs_folder
from .training_set import TrainingSet

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

    arguments = _arguments(training_set, base, settings, name, resume)
    if arguments[0] == "resume":
        progress.run = Path(arguments[1]).name
    # the child needs the device for itself
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    written: list[str] = []

    def read(line: str) -> None:
        record = read_progress(line)
        if record is not None:
            # the child chose its folder before its first step
            progress.run = progress.run or newest_run(name, "parts")
            progress.step(int(record["done"]), int(record["total"]))
            return
        if line.strip():
            lines.append(line.strip())
        if line.startswith(_WROTE):
            written.append(line.removeprefix(_WROTE).strip())

    code = launch([*arguments, "--progress", "json"], read, should_stop=progress.should_stop)
    if progress.cancelled or code == STOPPED:
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
    folder = runs_folder() / ".training_sets" / training_set.fingerprint()
    found, pictures = folder / "found", folder / "pictures"
    if (found / REPORT).is_file():
        return found
    names = [f"{name.replace(' ', '_')}.png" for name in training_set.names]
    for name, square in zip(names, training_set.squares, strict=True):
        with replacing(pictures / name) as temporary:
            Image.fromarray(square).save(temporary, "PNG")
    training_set.codebook.save(found / CODEBOOK)
    grid = tuple(training_set.maps.labels.shape[1:])  # of (N, h, w)
    write_maps(found / PART_MAPS, [training_set.maps], len(names), grid, training_set.maps.codes.shape[1])
    write_lines(found / IMAGES, names)
    if training_set.classes is not None:
        write_text(folder / "classes.csv", _class_table(names, training_set.classes))
    # last, since it marks the discovery as finished
    write_report(found, {"images_folder": str(pictures), "images_folder_relative": "../pictures"})
    return found


def _arguments(training_set: TrainingSet, base: str, settings: TrainPartsSettings, name: str, resume: str) -> list[str]:
    if resume and resume != ANEW:
        return ["resume", str(runs_folder() / run_to_resume(resume, "parts"))]
    found = write_training_set(training_set)
    recipe = found.parent / f"{name}.toml"
    changed = {"base": {"path": base.strip() or "demo"}, "discovery": {"folder": found}}
    changed |= {"run": {"out": runs_folder() / name, "estimate_memory": False}}
    if training_set.classes is not None:
        changed |= {"images": {"labels": found.parent / "classes.csv"}, "method": {"ids": "class"}}
    for section, values in changed.items():
        settings = settings.model_copy(update={section: getattr(settings, section).model_copy(update=values)})
    write_text(recipe, format_toml(settings))
    return ["train", "parts", str(recipe)]


def _class_table(names: list[str], classes: tuple[str, ...]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["path", "class"])
    writer.writerows(zip(names, classes, strict=True))
    return buffer.getvalue()


def _failure(code: int, lines: list[str]) -> str:
    """What the child said last; libraries that are missing are told with the way to get them."""
    last = lines[-1] if lines else "it said nothing"
    if "ModuleNotFoundError" in last:
        return f"the training program lacks a library ({last}): install the trainer with pip install bestiary[trainer]"
    return f"the training program ended with code {code}: {last.removeprefix('Error: ')}"
