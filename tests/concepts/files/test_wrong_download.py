"""What lies in the place of a model: named, with the remedy, by every reader."""

from collections.abc import Callable
from pathlib import Path

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.concept_file import read_header
from bestiary.concepts.files.safe_pickle import load_inert
from bestiary.concepts.files.wrong_download import wrong_download

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:57\nsize 3192\n"


@pytest.mark.parametrize("read", [load_inert, read_header])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"model.x is empty \(0 bytes\): .* download it again"),
        (POINTER, r"model.x is a pointer of Git LFS, not the file itself: run `git lfs install` and `git lfs pull`"),
        (b"<!DOCTYPE html><html><head><title>Sign in", "model.x is a web page, not a model"),
        (b"\xef\xbb\xbf\n  <html lang='en'>", "model.x is a web page, not a model"),
        (b'{"error":"Repository not found"}', "model.x is an error message of the server, which refused the download"),
        (b"Entry not found", "model.x is an error message of the server, which refused the download"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, content: bytes, message: str, read: Callable) -> None:
    (tmp_path / "model.x").write_bytes(content)
    with pytest.raises(BestiaryError, match=message):
        read(tmp_path / "model.x")


def test_models_are_not_taken_for_it() -> None:
    for start in (b"PK\x03\x04", b"\x80\x02}q", b'\x10\x00\x00\x00\x00\x00\x00\x00{"a":', b"\x89PNG", b"hello"):
        assert wrong_download(start) is None
