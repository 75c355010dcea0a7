"""Commands as child processes: lines arrive in order, exit codes are passed on, a stop is a clean one."""

import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.pack import ROOT
from bestiary.trainer.learning.run import launch as launching
from bestiary.trainer.learning.run.launch import command_line, environment, launch, read_progress


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch):
    """Puts a little program in the command's place."""

    def put(text: str) -> None:
        monkeypatch.setattr(
            launching, "command_line", lambda arguments: [sys.executable, "-c", textwrap.dedent(text), *arguments]
        )

    return put


def test_lines_of_output_and_log_arrive_in_order(program) -> None:
    program(
        """
        import sys
        print("one", sys.argv[1:], flush=True)
        print("zwei \\u00e4", file=sys.stderr, flush=True)
        sys.exit(2)
        """
    )
    lines: list[str] = []
    assert launch(["--a", "b"], lines.append) == 2
    assert lines == ["one ['--a', 'b']", "zwei ä"]


def test_a_stop_lets_the_command_save(program) -> None:
    program(
        """
        import sys, time
        print("started", flush=True)
        try:
            time.sleep(30)
        except KeyboardInterrupt:
            print("saved", flush=True)
            sys.exit(130)
        """
    )
    lines: list[str] = []
    started = time.monotonic()
    code = launch([], lines.append, should_stop=lambda: "started" in lines, poll_seconds=0.02)
    assert code == 130 and lines == ["started", "saved"] and time.monotonic() - started < 20


def test_a_stop_is_heard_where_ctrl_c_is_switched_off(program) -> None:
    """As under nohup, or behind & in a script: the child inherits it."""
    program("import time; print('started', flush=True); time.sleep(60)")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        lines: list[str] = []
        started = time.monotonic()
        code = launch([], lines.append, should_stop=lambda: "started" in lines, poll_seconds=0.02)
    finally:
        signal.signal(signal.SIGINT, before)
    assert code != 0 and time.monotonic() - started < 30


def test_a_training_where_ctrl_c_is_switched_off_saves(program) -> None:
    program(
        """
        import sys, time
        from bestiary.trainer.learning.run.stop_signals import stop_signals
        with stop_signals() as stopped:
            print("started", flush=True)
            for _ in range(3000):
                if stopped():
                    print("saved", flush=True)
                    sys.exit(130)
                time.sleep(0.01)
        """
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        lines: list[str] = []
        code = launch([], lines.append, should_stop=lambda: "started" in lines, poll_seconds=0.02)
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130 and lines == ["started", "saved"]


@pytest.mark.parametrize("ignored", [False, True])
def test_a_stop_by_word_lets_the_command_save(program, monkeypatch: pytest.MonkeyPatch, ignored: bool) -> None:
    """The way of Windows, which has no signal for it."""
    monkeypatch.setattr(launching, "_BY_PIPE", True)
    program(
        """
        import os, sys, time
        from bestiary.trainer.learning.run.stop_signals import STOP_BY_INPUT, listen_for_stop
        assert listen_for_stop() is not None and STOP_BY_INPUT not in os.environ and listen_for_stop() is None
        print("started", flush=True)
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            print("saved", flush=True)
            sys.exit(130)
        """
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if ignored else None
    try:
        lines: list[str] = []
        started = time.monotonic()
        code = launch([], lines.append, should_stop=lambda: "started" in lines, poll_seconds=0.02)
    finally:
        if before:
            signal.signal(signal.SIGINT, before)
    assert code == 130 and lines == ["started", "saved"] and time.monotonic() - started < 40


def test_lines_are_in_utf8_whatever_the_machine_speaks(program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    monkeypatch.setenv("LC_ALL", "C")
    program("print('\\u9ce5 \\u00e4 \\udcff', flush=True)")
    lines: list[str] = []
    assert launch([], lines.append) == 0 and lines[0].startswith("鳥 ä ")


def test_a_fault_in_the_callback_does_not_leave_the_child_behind(program) -> None:
    program("import time; print('x', flush=True); time.sleep(30)")

    def fail(line: str) -> None:
        raise RuntimeError(line)

    started = time.monotonic()
    with pytest.raises(RuntimeError, match="x"):
        launch([], fail)
    assert time.monotonic() - started < 20


def test_a_missing_interpreter_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "command_line", lambda arguments: ["/no/such/python"])
    with pytest.raises(BestiaryError, match="could not start .*No such file"):
        launch([], print)


def test_the_command_runs_the_pack_as_a_module_from_any_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    root = ROOT.resolve()
    *command, module, argument = command_line(["x"])
    assert command[:2] == [sys.executable, "-c"] and (module, argument) == (f"{root.name}.trainer", "x")
    assert environment()["PYTHONPATH"].startswith(str(root.parent))
    monkeypatch.setattr(launching, "PACK", Path("/a/ComfyUI.Bestiary"))
    assert command_line(["x"]) == [sys.executable, str(Path("/a/ComfyUI.Bestiary/trainer/__main__.py")), "x"]


@pytest.mark.parametrize(
    ("line", "record"),
    [
        ('{"stage": "train", "done": 1, "total": 4}', {"stage": "train", "done": 1, "total": 4}),
        ("encoding 4 of 4", None),
        ('{"half', None),
        ('{"other": 1}', None),
    ],
)
def test_progress_lines_are_told_from_others(line: str, record: dict | None) -> None:
    assert read_progress(line) == record


@pytest.mark.train
def test_modules_of_the_working_folder_do_not_stand_before_ours(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (launching.PACK.name, "typer"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    assert launch(["--help"], lines.append) == 0, lines
    assert any("Usage: bestiary" in line for line in lines)


def test_a_training_runs_as_a_child_with_a_spawned_worker(tmp_path, make_discovery, tiny_folder) -> None:
    found = make_discovery(tmp_path)
    lines: list[str] = []
    flags = {
        "images.size": 64, "images.workers": 1, "run.preview_every": 0, "run.estimate_memory": False, "run.tensorboard": False,
        "run.log_every": 1, "lora.rank": 2,
    }  # fmt: skip
    arguments = ["train", "parts", "--discovery", str(found), "--base", str(tiny_folder("bestiary-demo"))]
    arguments += [
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "2",
        "--progress",
        "json",
        "--device",
        "cpu",
        "--dtype",
        "fp32",
    ]
    for key, value in flags.items():
        arguments += ["--set", f"{key}={str(value).lower()}"]
    assert launch(arguments, lines.append) == 0, lines
    records = [record for record in map(read_progress, lines) if record]
    assert records[-1]["done"] == records[-1]["total"] == 2
    assert (tmp_path / "run" / "parts.safetensors").is_file()
