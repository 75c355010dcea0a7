"""Run folders of trainings in the graph, below ComfyUI's output folder: creation, listing and resuming."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths

from ...concepts.errors import BestiaryError
from ...concepts.name_search import choices_text, shown_name
from ..host.concept_folders import own_folder

if TYPE_CHECKING:
    from ...trainer.learning.parts.settings import TrainPartsSettings
    from ...trainer.learning.run.run_folder import RunFolder
    from ...trainer.learning.run.run_settings import TrainingSettings

ANEW, NEWEST = "start anew", "go on with the newest"
"""Menu entries besides the names of runs."""
CONFIG = "config.resolved.toml"
"""Settings file of a run, which identifies its folder."""
_CALLED = {"parts": "trainings of parts", "spectrum": "trainings of spectra", "dreambooth": "DreamBooth trainings"}
_SOURCES = {
    "parts": ("other pictures or parts than this training set", "pictures, codebook and image_size"),
    "spectrum": ("other pictures or masks than these", "pictures, foreground and VAE, at the same image_size,"),
    "dreambooth": (
        "other pictures or masks than these",
        "images, class_images, foreground and VAE, at the same image_size,",
    ),
}
"""By kind of run, for the message about a mismatch: what differs, and what to connect."""
_NAME = re.compile(r"\w[\w .-]{0,80}")


def runs_folder() -> Path:
    """Folder of all runs: output/bestiary."""
    return Path(folder_paths.get_output_directory()) / "bestiary"


def run_names(kind: str | None = None) -> list[str]:
    """Names of all runs, or of those of this kind, the most recently started first."""
    times: dict[Path, int] = {}
    for path in runs_folder().glob(f"*/{CONFIG}"):
        # a run that is being deleted must not break the list
        with contextlib.suppress(OSError):
            times[path] = path.stat().st_mtime_ns
    newest_first = sorted(times, key=times.__getitem__, reverse=True)
    return [path.parent.name for path in newest_first if kind is None or _kind_of(path) == kind]


def _kind_of(config: Path) -> str | None:
    from ...trainer.learning.run.run_folder import run_kind

    try:
        return run_kind(config)
    except BestiaryError:
        return None  # one damaged folder must not break the menu


def resume_choices(kind: str = "parts") -> list[str]:
    """Menu of the input `resume` for trainings of this kind."""
    return [ANEW, NEWEST, *run_names(kind)]


def run_to_resume(resume: str, kind: str) -> str:
    """Name of the run selected by `resume`: the latest one of its kind, or the named one.

    Raises:
        BestiaryError: there is none, or it is of another kind.
    """
    known = run_names(kind)
    wanted = known[0] if resume == NEWEST and known else resume
    if wanted in known:
        return wanted
    if wanted in run_names():
        raise BestiaryError(
            f"run {wanted} is of another kind: this node can resume only {_CALLED[kind]}; choose {ANEW!r}"
            + (f", or {choices_text(wanted, known)}" if known else "")
        )
    raise BestiaryError(
        f"no run {shown_name(resume)} to resume in output/bestiary; choose {ANEW!r}"
        + (f", or {choices_text(wanted, known)}" if known else ": there is none yet")
    )


def checked_name(name: str) -> str:
    """A name for files and folders.

    Raises:
        BestiaryError: it contains characters that are not allowed in file names or prompts.
    """
    if not _NAME.fullmatch(name.strip()):
        raise BestiaryError(
            f"{shown_name(name)} cannot be used as the name of a training: use letters, digits, spaces and - _ . between them"
        )
    return name.strip()


def open_run(name: str, resume: str, settings: TrainingSettings, fingerprint: str, *earlier: str) -> RunFolder:
    """The folder of a new run `name`, or of the earlier one selected by `resume`.

    `fingerprint` identifies the training set; `earlier` are its fingerprints in earlier versions.

    Raises:
        BestiaryError: no such run, a run of another kind, or one with other pictures.
    """
    from ...concepts.files.atomic_file import remove_leftovers
    from ...trainer.learning.run.recipe_file import format_toml
    from ...trainer.learning.run.run_folder import RunFolder

    # partial files of ended processes in the folders that this training will write to
    for folder in (own_folder(), runs_folder()):
        remove_leftovers(folder)
    if resume == ANEW:
        run = RunFolder.create(runs_folder() / checked_name(name))
        run.write_config(f"# training set {fingerprint}\n{format_toml(settings)}")
        return run
    kind = str(getattr(settings, "kind", "parts"))
    run = RunFolder.open(runs_folder() / run_to_resume(resume, kind))
    first_line = run.config.read_text(encoding="utf-8").split("\n", 1)[0]
    if first_line not in {f"# training set {known}" for known in (fingerprint, *earlier)}:
        source, same = _SOURCES[kind]
        raise BestiaryError(
            f"run {run.path.name} was trained on {source}: connect the same {same} again, or choose {ANEW!r}"
        )
    return run


def settings_from(choices: Mapping[str, object], more: str = "") -> TrainPartsSettings:
    """Settings of a part training from dotted keys, overridden by lines of TOML such as `captions.noun = "bird"`.

    Raises:
        BestiaryError: lines that are not TOML; misspelt keys and values out of range, all in one message.
    """
    from ...trainer.learning.parts.settings import load_recipe

    return load_recipe(None, {**choices, **more_choices(more)})


def more_choices(more: str) -> dict[str, object]:
    """Dotted keys and values from typed lines of TOML.

    Raises:
        BestiaryError: they are not TOML.
    """
    from ...trainer.learning.run.recipe_file import parse_toml

    return _flat(parse_toml(more, "more_settings"))


def _flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
