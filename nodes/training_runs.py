"""Run folders of trainings in the graph, below ComfyUI's output folder: made anew, listed, found again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths

from ..concepts.errors import BestiaryError
from ..concepts.name_search import choices_text, shown_name

if TYPE_CHECKING:
    from ..trainer.run_folder import RunFolder
    from ..trainer.settings import TrainPartsSettings

ANEW, NEWEST = "start anew", "go on with the newest"
"""Choices besides the names of runs."""
_CONFIG = "config.resolved.toml"
_NAME = re.compile(r"\w[\w .-]{0,80}")


def runs_folder() -> Path:
    """Where runs lie: output/bestiary."""
    return Path(folder_paths.get_output_directory()) / "bestiary"


def run_names() -> list[str]:
    """Names of all runs, the one that was started last first."""
    found = runs_folder().glob(f"*/{_CONFIG}")
    return [path.parent.name for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)]


def resume_choices() -> list[str]:
    """What the input `resume` offers."""
    return [ANEW, NEWEST, *run_names()]


def checked_name(name: str) -> str:
    """A name for files and folders.

    Raises:
        BestiaryError: it has characters that file systems or prompts do not take.
    """
    if not _NAME.fullmatch(name.strip()):
        raise BestiaryError(
            f"{shown_name(name)} cannot name a training: use letters, digits, spaces and - _ . between them"
        )
    return name.strip()


def open_run(name: str, resume: str, settings: TrainPartsSettings, fingerprint: str) -> RunFolder:
    """The folder of a new run called `name`, or of the earlier one that `resume` names.

    Raises:
        BestiaryError: no such run, or it learned from other pictures (`fingerprint` is the training set's).
    """
    from ..trainer.recipe_file import format_toml
    from ..trainer.run_folder import RunFolder

    if resume == ANEW:
        run = RunFolder.create(runs_folder() / checked_name(name))
        run.write_config(f"# training set {fingerprint}\n{format_toml(settings)}")
        return run
    known = run_names()
    wanted = known[0] if resume == NEWEST and known else resume
    if wanted not in known:
        raise BestiaryError(
            f"no run {shown_name(resume)} in output/bestiary to go on with; choose {ANEW!r}"
            + (f", or {choices_text(wanted, known)}" if known else ": there is none yet")
        )
    run = RunFolder.open(runs_folder() / wanted)
    first_line = run.config.read_text(encoding="utf-8").split("\n", 1)[0]
    if first_line != f"# training set {fingerprint}":
        raise BestiaryError(
            f"run {wanted} learned from other pictures or parts than this training set: connect the same pictures, "
            f"codebook and image_size as then, or choose {ANEW!r}"
        )
    return run


def settings_from(choices: Mapping[str, object], more: str = "") -> TrainPartsSettings:
    """Settings of a training from dotted keys, and from lines of TOML such as `captions.noun = "bird"`, which win.

    Raises:
        BestiaryError: lines that are no TOML; misspelt keys and values out of range, all of them in one message.
    """
    from ..trainer.recipe_file import parse_toml
    from ..trainer.settings import load_recipe

    return load_recipe(None, {**choices, **_flat(parse_toml(more, "more_settings"))})


def _flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
