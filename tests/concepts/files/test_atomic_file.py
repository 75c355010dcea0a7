"""Files that appear whole or not at all."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files import atomic_file
from bestiary.concepts.files.atomic_file import (
    check_writable,
    is_running,
    remove_leftovers,
    replacing,
    write_bytes,
    write_text,
)


def test_content_and_missing_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "words.txt", "größe\n")
    write_bytes(tmp_path / "a" / "bytes", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "words.txt").read_bytes() == "größe\n".encode()
    assert (tmp_path / "a" / "bytes").read_bytes() == b"\x00\xff"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b", "bytes"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError, SystemExit])
def test_a_block_that_fails_leaves_the_earlier_file_and_nothing_else(tmp_path: Path, fault: type) -> None:
    path = tmp_path / "file"
    path.write_text("earlier")
    with pytest.raises(fault), replacing(path) as temporary:
        assert temporary.parent == path.parent  # the same disk, so that renaming is one step
        temporary.write_text("half of the n")
        raise fault
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"] and path.read_text() == "earlier"


def test_the_earlier_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("earlier")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "earlier"
    assert path.read_text() == "new"


def test_a_full_disk_says_path_cause_and_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("earlier")

    def full(self: Path, *args: object, **options: object) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(BestiaryError) as fault:
        write_text(path, "new")
    monkeypatch.undo()
    assert str(fault.value) == (
        f"could not write {path}: No space left on device; the existing file is unchanged. "
        "Free some disk space or choose another --out folder"
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"] and path.read_text() == "earlier"


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BestiaryError, match=f"could not write {tmp_path / 'file' / 'x'}: "):
        write_bytes(tmp_path / "file" / "x", b"")


def test_places_are_tried_without_leaving_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path)
    check_writable(tmp_path / "not" / "yet" / "there")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(BestiaryError, match=r"cannot write to .*file/x: Not a directory; choose another --out folder"):
        check_writable(tmp_path / "file" / "x")
    monkeypatch.chdir(tmp_path)
    check_writable(Path("relative"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(BestiaryError, match="cannot write to .*locked/x: Permission denied"):
        check_writable(tmp_path / "locked" / "x")


def test_threads_that_write_one_file_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    path, begun, faults = tmp_path / "file", threading.Barrier(8), []

    def write(letter: str) -> None:
        try:
            with replacing(path) as temporary:
                begun.wait()  # every thread has a temporary file of its own open
                temporary.write_text(letter * 5000)
                begun.wait()
        except BaseException as fault:  # noqa: BLE001 - told by the test
            faults.append(fault)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert len(text := path.read_text()) == 5000 and len(set(text)) == 1


def test_content_is_on_the_disk_before_it_takes_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, flush, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append("flushed") or flush(descriptor))
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("renamed") or replace(*paths))
    write_text(tmp_path / "file", "new")
    assert done == ["flushed", "renamed"]


def test_a_file_that_cannot_be_read_is_no_full_disk(tmp_path: Path) -> None:
    with pytest.raises(BestiaryError) as fault, replacing(tmp_path / "copy") as temporary:
        temporary.write_bytes((tmp_path / "gone").read_bytes())
    assert str(fault.value) == (
        f"could not read {tmp_path / 'gone'}: No such file or directory; {tmp_path / 'copy'} was not written"
    )
    with pytest.raises(OSError, match="^cannot identify image file$"), replacing(tmp_path / "copy"):
        raise OSError("cannot identify image file")  # as Pillow does
    with (
        pytest.raises(
            BestiaryError, match="copy: Permission denied; .* Check that folder and its permissions, or choose"
        ),
        replacing(tmp_path / "copy") as temporary,
    ):
        raise PermissionError(errno.EACCES, "Permission denied", str(temporary))
    assert list(tmp_path.iterdir()) == []


def test_left_overs_of_ended_processes_are_removed_and_no_others(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not is_running(ended.pid) and is_running(os.getpid()) and is_running(os.getppid())
    for name in (f".a.safetensors.{ended.pid}.part", f".b.{ended.pid}-3.part"):
        (tmp_path / name).touch()
    kept = {f".c.{os.getpid()}.part", f".d.{os.getppid()}-0.part", "mine.part", f"e.{ended.pid}.part", ".f.part", "g"}
    for name in kept:
        (tmp_path / name).touch()
    assert remove_leftovers(tmp_path) == 2
    assert {entry.name for entry in tmp_path.iterdir()} == kept
    assert remove_leftovers(tmp_path / "nowhere") == 0


def test_a_killed_writer_leaves_what_is_removed_later(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from bestiary.concepts.files.atomic_file import replacing
with replacing(Path({str(tmp_path / "file")!r})) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    places = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": places}, check=False)
    assert len(list(tmp_path.iterdir())) == 1 and remove_leftovers(tmp_path) == 1
    assert atomic_file._TEMPORARY.fullmatch(".file.12-0.part") and list(tmp_path.iterdir()) == []
