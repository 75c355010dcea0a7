"""Starts a `bestiary` command as a child process and streams its lines; used by graph nodes for training.

A child process can spawn workers, frees all memory when it ends, and can be stopped like a command in a terminal.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ....concepts.errors import BestiaryError
from ....concepts.files.pack import ROOT
from .stop_signals import STOP_BY_INPUT, STOP_WORD

PACK = ROOT.resolve()
SECONDS_TO_SAVE = 60.0
"""Time that a stopped command has to save its state before it is killed."""
_BY_PIPE = os.name == "nt"
"""Windows has no signal that a program without a console can catch: it is stopped by a word on its standard input."""


_RUN_MODULE = """import runpy, sys
sys.path[:] = [entry for entry in sys.path if entry]
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
"""Like `python -m`, but without the working folder on the module search path: ComfyUI's folder has a `main` and a `comfy`
that could shadow ours."""


def command_line(arguments: Sequence[str]) -> list[str]:
    """The command that runs `bestiary ARGUMENTS` with this interpreter, installed or not, from any working folder."""
    if PACK.name.count("."):  # a dot would split the folder's name into two modules
        return [sys.executable, str(PACK / "trainer" / "__main__.py"), *arguments]
    return [sys.executable, "-c", _RUN_MODULE, f"{PACK.name}.trainer", *arguments]


def environment() -> dict[str, str]:
    """This process's environment with the pack's parent folder on the module search path and UTF-8 output."""
    paths = [str(PACK.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    lines = {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:surrogateescape"}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **lines, **({STOP_BY_INPUT: "1"} if _BY_PIPE else {})}


def launch(
    arguments: Sequence[str],
    on_line: Callable[[str], None],
    *,
    should_stop: Callable[[], bool] | None = None,
    poll_seconds: float = 0.2,
) -> int:
    """Run a command to its end and return its exit code (0 success, 2 an error the user can fix, 130 stopped).

    Args:
        arguments: the arguments of `bestiary`, such as ["train", "parts", "my.toml", "--progress", "json"].
        on_line: called with every line of output and log, in order, without its line end.
        should_stop: called every `poll_seconds`; True interrupts the command, which saves its state first.

    Raises:
        BestiaryError: the command could not be started.
    """
    # stderr joins stdout to keep the order of lines; a new session, so that Ctrl-C here does not reach the child
    try:
        child = subprocess.Popen(
            command_line(arguments),
            stdin=subprocess.PIPE if _BY_PIPE else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(),
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as fault:
        raise BestiaryError(f"could not start {sys.executable}: {fault.strerror or fault}") from fault
    # reading lines blocks, so a second thread polls `should_stop`
    finished = threading.Event()
    watcher = threading.Thread(target=_watch, args=(child, should_stop, finished, poll_seconds), daemon=True)
    watcher.start()
    try:
        for line in child.stdout or ():
            on_line(line.rstrip("\n"))
        return child.wait()
    finally:
        finished.set()
        if child.poll() is None:
            _stop(child)
        watcher.join()
        if child.stdin is not None:
            with suppress(OSError):
                child.stdin.close()


def read_progress(line: str) -> dict[str, Any] | None:
    """The progress record in a line of `--progress json`, None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and {"done", "total"} <= record.keys() else None


def _watch(
    child: subprocess.Popen[str],
    should_stop: Callable[[], bool] | None,
    finished: threading.Event,
    poll_seconds: float,
) -> None:
    while should_stop is not None and not finished.wait(poll_seconds):
        if should_stop():
            _stop(child)
            return


def _stop(child: subprocess.Popen[str]) -> None:
    """Interrupt the child; kill it if it does not end in time."""
    if child.stdin is not None:
        with suppress(OSError):  # it ended meanwhile
            child.stdin.write(f"{STOP_WORD}\n")
            child.stdin.flush()
    else:
        # children inherit ignored signals (nohup, or & in a shell): then SIGTERM instead of SIGINT
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        child.send_signal(signal.SIGTERM if ignored else signal.SIGINT)
    try:
        child.wait(SECONDS_TO_SAVE)
    except subprocess.TimeoutExpired:
        child.kill()
