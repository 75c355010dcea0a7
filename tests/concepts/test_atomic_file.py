"""Files that appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest
from bestiary.concepts.atomic_file import check_writable, replacing, write_bytes, write_text
from bestiary.concepts.errors import BestiaryError


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
        f"could not write {path}: No space left on device; nothing was changed there. "
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
