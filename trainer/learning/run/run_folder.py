"""The folder of one run: settings, log, samples, saved states and exports; a new run never reuses an old folder."""

import itertools
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ....concepts.errors import BestiaryError
from ....concepts.files.atomic_file import remove_leftovers, write_bytes, write_text

logger = logging.getLogger("bestiary")
CONFIG_NAME = "config.resolved.toml"
CURVE_LABELS_NAME = "curve_labels.json"
STATE_KIND = "training-state"
_KIND = re.compile(r'\s*kind\s*=\s*"(\w+)"\s*')
_STATE_FILE = re.compile(r"step-(\d{7,})\.safetensors")


@dataclass(frozen=True)
class SavedState:
    """A loaded state: finished steps, tensors by name, and other values."""

    step: int
    tensors: dict[str, Tensor]
    notes: dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, and the only code that writes to them."""

    path: Path

    @classmethod
    def create(cls, wanted: Path) -> "RunFolder":
        """A new folder `wanted`, or `wanted-2`, `wanted-3` and so on if that exists and is not empty.

        Raises:
            BestiaryError: the folder cannot be created.
        """
        return cls(next(filter(_claim, _numbered(Path(wanted)))))._with_places()

    @staticmethod
    def reserve(wanted: Path) -> Path:
        """An empty folder with the name that `create` would choose; `create` accepts it later, in a child process.

        Raises:
            BestiaryError: the folder cannot be created.
        """
        return next(filter(_make_empty, _numbered(Path(wanted))))

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of an earlier run.

        Raises:
            BestiaryError: it is not a run folder.
        """
        path = Path(path)
        if not (path / CONFIG_NAME).is_file():
            raise BestiaryError(
                f"{path} is not a run folder: it has no {CONFIG_NAME}; give the folder that a training wrote"
            )
        return cls(path)._with_places()

    @property
    def config(self) -> Path:
        """File of the resolved settings."""
        return self.path / CONFIG_NAME

    @property
    def kind(self) -> str:
        """Kind of training, such as "spectrum"; "parts" if the settings do not give one.

        Raises:
            BestiaryError: the settings cannot be read.
        """
        return run_kind(self.config)

    @property
    def samples(self) -> Path:
        """Folder of preview sheets and heat maps."""
        return self.path / "samples"

    @property
    def export(self) -> Path:
        """Folder of files for other programs."""
        return self.path / "export"

    @property
    def states(self) -> Path:
        """Folder of saved states."""
        return self.path / "state"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Context with an exclusive lock on this folder; the system releases the lock when a process dies.

        Raises:
            BestiaryError: another training holds the lock.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise BestiaryError(
                f"another training is writing into {self.path}: wait until it ends, stop it, or start a new run"
            ) from None
        except (OSError, NotImplementedError) as fault:
            # some network drives do not support locks: warn instead of refusing to train there
            logger.info("%s cannot be locked (%s): do not start a second training in it", self.path, fault)
        try:
            for place in (self.path, self.samples, self.states, self.export):
                remove_leftovers(place)
            yield
        finally:
            lock.release()

    def write_config(self, toml: str) -> None:
        """Write the resolved settings."""
        write_text(self.config, toml)

    def write_curve_labels(self, labels: Mapping[str, Sequence[str]]) -> None:
        """Write the labels of curves with several entries, such as the parts of part_attention_loss."""
        write_text(self.path / CURVE_LABELS_NAME, json.dumps({curve: list(names) for curve, names in labels.items()}))

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to log.jsonl.

        Raises:
            BestiaryError: the disk is full or the folder cannot be written to.
        """
        try:
            with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as fault:
            raise BestiaryError(
                f"could not write {self.path / 'log.jsonl'}: {fault.strerror or fault}. {self._resume_hint()}"
            ) from fault

    def read_log(self) -> list[dict[str, Any]]:
        """All complete lines of log.jsonl."""
        path = self.path / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def forget_log_after(self, step: int) -> None:
        """Drop log lines of steps that a resumed run repeats."""
        # `read_log` also drops a line that a crash has truncated
        kept = [record for record in self.read_log() if record.get("step", 0) <= step]
        if (self.path / "log.jsonl").exists():
            write_text(self.path / "log.jsonl", "".join(json.dumps(record) + "\n" for record in kept))

    def save_state(self, step: int, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], keep: int) -> Path:
        """Write a state, with tensors of any shape, atomically; then delete all but the newest `keep` states.

        Raises:
            BestiaryError: it could not be written; earlier states are kept, and the message names the newest.
        """
        path = self.states / f"step-{step:07d}.safetensors"
        header = {"bestiary.kind": STATE_KIND, "bestiary.step": str(step), "bestiary.notes": json.dumps(dict(notes))}
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            write_bytes(path, to_bytes(plain, header))
        except BestiaryError as fault:
            raise BestiaryError(f"{fault}. {self._resume_hint()}") from fault
        # delete old states only after the new one is in place
        for old in self._state_files()[:-keep]:
            old.unlink(missing_ok=True)
        return path

    def newest_state(self) -> SavedState | None:
        """The newest readable state, or None; damaged files are skipped."""
        for path in reversed(self._state_files()):
            try:
                return _read_state(path)
            except (SafetensorError, OSError, KeyError, ValueError):
                continue
        return None

    def state_to_resume(self) -> SavedState | None:
        """Like `newest_state`, but warns about damaged files; None if nothing was saved yet.

        Raises:
            BestiaryError: all saved states are damaged.
        """
        files, saved = self._state_files(), self.newest_state()
        newest = -1 if saved is None else saved.step
        broken = [path for path in files if _step_of(path) > newest]
        if broken and saved is None:
            raise BestiaryError(
                f"all saved states of {self.path} are damaged: {', '.join(path.name for path in broken)}; "
                "start a new run, or move them away to restart this one from its first step"
            )
        for path in broken:
            logger.warning("%s is damaged and was skipped: continuing from step %d", path, newest)
        return saved

    def _resume_hint(self) -> str:
        files = self._state_files()
        if not files:
            return "No state was saved yet"
        return f"The state of step {_step_of(files[-1])} is kept: continue with `bestiary resume {self.path}`"

    def _state_files(self) -> list[Path]:
        if not self.states.is_dir():
            return []
        return sorted(path for path in self.states.iterdir() if _STATE_FILE.fullmatch(path.name))

    def _with_places(self) -> "RunFolder":
        for place in (self.samples, self.states, self.export):
            place.mkdir(exist_ok=True)
        return self


def run_kind(config: Path) -> str:
    """Kind of training, from the key `kind` above the first table of the settings file `config`; "parts" without one.

    Raises:
        BestiaryError: the file cannot be read.
    """
    try:
        with config.open(encoding="utf-8") as file:
            # read only up to the first table: parsing the whole TOML would be slow for a list of many runs
            top = itertools.takewhile(lambda line: not line.startswith("["), file)
            found = next(filter(None, map(_KIND.fullmatch, top)), None)
    except (OSError, UnicodeDecodeError) as fault:
        raise BestiaryError(f"cannot read {config}: {fault}") from fault
    return found.group(1) if found else "parts"


def _step_of(state: Path) -> int:
    """The step in the file name of a state."""
    return int(_STATE_FILE.sub(r"\1", state.name))


def _numbered(wanted: Path) -> Iterator[Path]:
    """`wanted`, then `wanted-2`, `wanted-3` and so on."""
    yield wanted
    for number in range(2, 10_000):
        yield wanted.with_name(f"{wanted.name}-{number}")
    raise BestiaryError(f"{wanted} and 9998 numbered folders already exist: choose another run.out")


def _claim(path: Path) -> bool:
    """Claim `path` for this run if it is new or empty."""
    if not _make_empty(path, taken=True):
        return False
    # mkdir is atomic: of two runs that find the same empty folder only one succeeds
    with suppress(OSError):
        (path / "state").mkdir()
        return True
    return False


def _make_empty(path: Path, taken: bool = False) -> bool:
    """Create the folder `path`; with `taken` an existing empty folder is accepted."""
    # parents may exist; the folder itself is created separately below, to detect a race
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise _no_folder(path, fault) from fault
    try:
        path.mkdir()  # of two runs that start at the same time only one succeeds
    except FileExistsError:
        return taken and path.is_dir() and not any(path.iterdir())
    except OSError as fault:
        raise _no_folder(path, fault) from fault
    return True


def _no_folder(path: Path, fault: OSError) -> BestiaryError:
    return BestiaryError(f"cannot create the run folder {path}: {fault.strerror or fault}; choose another run.out")


def _read_state(path: Path) -> SavedState:
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        if header.get("bestiary.kind") != STATE_KIND:
            raise ValueError(f"{path} does not contain a training state")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping, only keys()
    return SavedState(int(header["bestiary.step"]), tensors, json.loads(header["bestiary.notes"]))
