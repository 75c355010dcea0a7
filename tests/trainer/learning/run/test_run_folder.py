"""Run folders: never overwritten, states whole or not at all, the earlier state kept when the disk is full."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.run.run_folder import RunFolder, run_kind

WEIGHTS = {"w": torch.arange(6.0).view(2, 3)}


def test_a_second_run_gets_a_number(tmp_path: Path) -> None:
    paths = []
    for _ in range(3):
        run = RunFolder.create(tmp_path / "deep" / "run")
        run.write_config("[run]\n")
        paths.append(run.path.name)
    assert paths == ["run", "run-2", "run-3"]


def test_an_empty_folder_is_taken_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    assert RunFolder.create(tmp_path / "empty").path == tmp_path / "empty"
    assert RunFolder.create(tmp_path / "file").path == tmp_path / "file-2"
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        BestiaryError, match=r"cannot create the run folder .*run: Permission denied; choose another run.out"
    ):
        RunFolder.create(tmp_path / "run")


def test_what_is_no_run_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match=r"is not a run folder: it has no config.resolved.toml"):
        RunFolder.open(tmp_path)


def test_states_come_back_and_old_ones_go(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    assert run.newest_state() is None
    for step in (10, 20, 30):
        run.save_state(step, {"w": WEIGHTS["w"] + step}, {"note": step}, keep=2)
    state = run.newest_state()
    assert (state.step, state.notes) == (30, {"note": 30})
    assert torch.equal(state.tensors["w"], WEIGHTS["w"] + 30)
    assert [path.name for path in sorted(run.states.iterdir())] == [
        "step-0000020.safetensors",
        "step-0000030.safetensors",
    ]


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}", b"garbage" * 100])
def test_a_broken_state_is_passed_over(tmp_path: Path, content: bytes) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.save_state(10, WEIGHTS, {}, keep=2)
    (run.states / "step-0000020.safetensors").write_bytes(content)
    assert run.newest_state().step == 10


def test_a_full_disk_keeps_the_earlier_state_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.save_state(10, WEIGHTS, {}, keep=1)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BestiaryError) as fault:
        run.save_state(20, WEIGHTS, {}, keep=1)
    text = str(fault.value)
    assert "No space left on device" in text and "The state of step 10 is kept" in text and f"resume {run.path}" in text
    assert [path.name for path in run.states.iterdir()] == ["step-0000010.safetensors"]
    assert run.newest_state().step == 10


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    (run.path / "log.jsonl").mkdir()
    with pytest.raises(BestiaryError, match=r"could not write .*log.jsonl: Is a directory. No state was saved yet"):
        run.log({"step": 1})


def test_log_lines_after_a_step_are_forgotten(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    for step in (1, 2, 3):
        run.log({"step": step})
    with (run.path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "cut o')
    run.forget_log_after(2)
    assert run.read_log() == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ('kind = "spectrum"\n\n[run]\n', "spectrum"),
        ('# training set 12\nkind="spectrum"\n[run]\n', "spectrum"),
        ('[method]\nkind = "textual_inversion"\n', "parts"),
        ("# no settings\n", "parts"),
    ],
)
def test_what_a_run_trains_stands_above_its_tables(tmp_path: Path, config: str, kind: str) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.write_config(config)
    assert run.kind == run_kind(run.config) == kind


def test_settings_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match=r"cannot read .*gone.toml: .*No such file"):
        run_kind(tmp_path / "gone.toml")
    (tmp_path / "strange.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BestiaryError, match=r"cannot read .*strange.toml"):
        run_kind(tmp_path / "strange.toml")


def test_two_trainings_do_not_write_into_one_folder(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    with (
        run.locked(),
        pytest.raises(BestiaryError, match=r"another training is writing into .*run: wait until it ends, stop it, or"),
        RunFolder(run.path).locked(),
    ):
        pass
    with RunFolder(run.path).locked():
        pass


def test_a_process_that_died_holds_no_folder(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    program = f"""
import os, signal
from pathlib import Path
from bestiary.trainer.learning.run.run_folder import RunFolder
with RunFolder(Path({str(run.path)!r})).locked():
    (Path({str(run.states)!r}) / f".step-0000001.safetensors.{{os.getpid()}}-0.part").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    places = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": places}, check=False)
    assert len(list(run.states.iterdir())) == 1
    with run.locked():  # what it left half done goes
        assert list(run.states.iterdir()) == []


def test_of_two_runs_that_find_one_empty_folder_one_takes_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    begun, made = threading.Barrier(6), []

    def create() -> None:
        begun.wait()
        made.append(RunFolder.create(tmp_path / "run").path.name)

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == ["run", "run-2", "run-3", "run-4", "run-5", "run-6"]


def test_a_reserved_folder_is_new_and_is_the_one_that_is_made(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()  # of an earlier run that was stopped before it wrote
    reserved = RunFolder.reserve(tmp_path / "run")
    assert reserved == tmp_path / "run-2" and list(reserved.iterdir()) == []
    assert RunFolder.create(reserved).path == reserved


def test_damaged_states_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = RunFolder.create(tmp_path / "run")
    assert run.state_to_resume() is None
    (run.states / "step-0000020.safetensors").write_bytes(b"")
    with pytest.raises(BestiaryError, match=r"all saved states of .*run are damaged: step-0000020.saf.*; start"):
        run.state_to_resume()
    run.save_state(10, WEIGHTS, {}, keep=2)
    with caplog.at_level("WARNING", logger="bestiary"):
        assert run.state_to_resume().step == 10
    assert "step-0000020.safetensors is damaged and was skipped: continuing from step 10" in caplog.text
