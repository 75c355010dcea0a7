"""Trainings for the browser: runs by name, their curves and preview pictures. Read-only.

A name is always that of a run folder below output/bestiary, never a path.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from pathlib import Path

from ...concepts.errors import BestiaryError
from ...concepts.name_search import choices_text, shown_name
from ..host.concept_folders import concept_names, concept_path
from .training_curves import CurveReaders, path_stamp
from .training_runs import CONFIG, run_names, runs_folder

SHEETS = {"pictures": "", "attention": "-attention"}
"""Kinds of preview pictures -> suffix of their file names."""
MOST_PREVIEWS = 2000
LARGEST_PICTURE = 32 << 20
LARGEST_TEXT = 1 << 20
"""Maximum bytes of a settings or label file."""
LONGEST_LABEL = 80
_PNG = b"\x89PNG\r\n\x1a\n"
_PREVIEW = re.compile(r"step-(\d{7,12})(-attention)?\.png")
_READERS = CurveReaders()


def find_run(name: str) -> Path:
    """Folder of a run.

    Raises:
        BestiaryError: no run of this name.
    """
    known = run_names()
    if name not in known:
        raise BestiaryError(
            f"no run {shown_name(name)} in output/bestiary; available: {choices_text(name, known) or 'none'}"
        )
    return runs_folder() / name


def newest_run(name: str, kind: str | None = None) -> str | None:
    """The most recently started run of a training `name`, whose runs are name, name-2, name-3 and so on.

    `kind`, "parts" or "spectrum", restricts the search to runs of this kind.
    """
    own = re.compile(rf"{re.escape(name.strip())}(-[1-9]\d*)?")
    return next((run for run in run_names(kind) if own.fullmatch(run)), None)


def run_stamp(name: str) -> str:
    """Stamp that changes with a run's log and previews; empty if there is no such run."""
    if name not in run_names():
        return ""
    folder = runs_folder() / name
    previews = f"{path_stamp(folder / 'samples')}-{zlib.crc32((stopped_file(name) or '').encode()):08x}"
    # hash the name: HTTP headers cannot contain arbitrary characters
    return f"{zlib.crc32(os.fsencode(name)):08x}-{path_stamp(folder / 'log.jsonl')}-{previews}"


def list_run(name: str) -> dict[str, object]:
    """A run as JSON values.

    `run`: its name; `step` of `total` steps done; `rate` in steps per second; `steps` and `curves` (see TrainingCurves);
    `labels` of curves with several entries, such as part_attention_loss; `previews`: steps by kind of picture; `stopped`:
    the file below models/bestiary that was saved when the run was last cancelled, or null.

    Raises:
        BestiaryError: no such run, or its log is too large.
    """
    folder = find_run(name)
    curves, last = _READERS.read(folder / "log.jsonl")
    rate = last.get("steps_per_second")
    return {
        "run": name,
        "step": last.get("step", 0),
        "total": _total_steps(folder),
        "rate": rate if isinstance(rate, int | float) else None,
        **curves,
        "labels": _labels(folder),
        "previews": _previews(folder / "samples"),
        "stopped": stopped_file(name),
    }


def stopped_file(name: str) -> str | None:
    """The latest file below models/bestiary saved by cancelling this run, or None."""
    own = re.compile(rf"{re.escape(name)}_stopped([-_ ]?\d+)?")
    times: dict[str, float] = {}
    for file in concept_names():
        if own.fullmatch(Path(file).stem):
            # ignore broken links and files deleted since the listing
            with contextlib.suppress(OSError, BestiaryError):
                times[file] = concept_path(file).stat().st_mtime
    return max(times, key=times.__getitem__, default=None)


def preview_picture(name: str, step: int, sheet: str) -> bytes:
    """PNG bytes of a preview.

    Raises:
        BestiaryError: no such run, kind of picture or step, or a file that is not a PNG of a permitted size.
    """
    path = _preview_path(name, step, sheet)
    if not path.is_file():
        raise BestiaryError(f"run {name} has no preview {sheet} of step {step}")
    if path.stat().st_size > LARGEST_PICTURE:
        raise BestiaryError(f"{path.name} has {path.stat().st_size:,} bytes, at most {LARGEST_PICTURE:,} are shown")
    content = path.read_bytes()
    if not content.startswith(_PNG):
        raise BestiaryError(f"{path.name} is not a PNG picture")
    return content


def preview_stamp(name: str, step: int, sheet: str) -> str:
    """Stamp that changes with a preview; empty if there is none."""
    try:
        return path_stamp(_preview_path(name, step, sheet))
    except BestiaryError:
        return ""


def _preview_path(name: str, step: int, sheet: str) -> Path:
    if sheet not in SHEETS:
        raise BestiaryError(f"unknown kind of preview {shown_name(sheet)}; choose {' or '.join(SHEETS)}")
    return find_run(name) / "samples" / f"step-{step:07d}{SHEETS[sheet]}.png"


def _previews(folder: Path) -> dict[str, list[int]]:
    """Steps of the previews by kind, the newest `MOST_PREVIEWS` of each."""
    found: dict[str, list[int]] = {sheet: [] for sheet in SHEETS}
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    for match in filter(None, map(_PREVIEW.fullmatch, names)):
        found["attention" if match[2] else "pictures"].append(int(match[1]))
    return {sheet: sorted(steps)[-MOST_PREVIEWS:] for sheet, steps in found.items()}


def _total_steps(folder: Path) -> int | None:
    from ...trainer.learning.run.recipe_file import parse_toml

    try:
        tree = parse_toml(_small_text(folder / CONFIG), CONFIG)
    except BestiaryError:
        return None
    section = tree.get("optimizer")
    steps = section.get("steps") if isinstance(section, dict) else None
    return steps if isinstance(steps, int) else None


def _labels(folder: Path) -> dict[str, list[str]]:
    """Labels of curves with several entries, by curve; a foreign or damaged file yields none."""
    from ...trainer.learning.run.run_folder import CURVE_LABELS_NAME

    try:
        table = json.loads(_small_text(folder / CURVE_LABELS_NAME))
        return {str(curve): [str(label)[:LONGEST_LABEL] for label in labels] for curve, labels in table.items()}
    except (ValueError, AttributeError, TypeError, RecursionError):
        return {}


def _small_text(path: Path) -> str:
    """Content of a text file; empty if it is missing, unreadable or too large."""
    try:
        return path.read_text(encoding="utf-8") if path.stat().st_size <= LARGEST_TEXT else ""
    except (OSError, UnicodeDecodeError):
        return ""
