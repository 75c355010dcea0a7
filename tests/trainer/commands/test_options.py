"""Shared options: faults of typed values name the option, the value and the remedy."""

from pathlib import Path

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.__main__ import main
from bestiary.trainer.commands.options import (
    _place,
    assignment,
    assignments,
    checked,
    existing,
    page_folder,
    result_file,
    result_folder,
)
from pydantic import BaseModel, Field


class _Settings(BaseModel, extra="forbid"):
    num_parts: int | None = Field(default=None, ge=1)
    steps: int = Field(default=30, ge=1)


def test_left_out_options_keep_their_defaults():
    assert checked(_Settings, {"num_parts": None, "steps": 4}) == _Settings(steps=4)


def test_every_fault_is_named_by_its_option():
    with pytest.raises(BestiaryError) as fault:
        checked(_Settings, {"num_parts": 0, "steps": -2})
    assert "--num-parts 0: input should be greater than or equal to 1" in str(fault.value)
    assert "--steps -2: input should be" in str(fault.value)


def test_missing_file_says_what_is_there(tmp_path):
    (tmp_path / "birds.safetensors").touch()
    with pytest.raises(BestiaryError, match=r"no file .*bird\.safetensors; .* contains birds\.safetensors"):
        existing(tmp_path / "bird.safetensors", "file")


def test_missing_folder_in_a_missing_place(tmp_path):
    with pytest.raises(BestiaryError, match=r"no folder .*nowhere.here$"):
        existing(tmp_path / "nowhere" / "here", "folder")


def test_file_where_a_folder_is_needed(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BestiaryError, match="file is not a folder: give the path of a folder"):
        existing(tmp_path / "file", "folder")
    assert existing(tmp_path / "file", "file") == tmp_path / "file"


def test_assignment_splits_once():
    assert assignment("method.form = a=b", "--set") == ("method.form", "a=b")


@pytest.mark.parametrize("text", ["steps", "=4", "steps="])
def test_assignment_faults_show_what_was_typed(text):
    with pytest.raises(BestiaryError, match=rf"--set '{text}': write name=value"):
        assignment(text, "--set")


def test_a_name_is_given_once():
    assert (
        assignments(["layout=a", "style = b"], "--mix") == {"layout": "a", "style": "b"}
        and assignments(None, "--mix") == {}
    )
    with pytest.raises(BestiaryError, match="--mix sets 'layout' twice, to 'a' and to 'b': give it once"):
        assignments(["layout=a", "layout=b"], "--mix")


def test_a_place_for_files_is_a_folder_or_ends_as_they_do(tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    default = "corgi.spectrum.safetensors"
    assert result_file(None, default) == Path(default)
    assert result_file(folder, default) == folder / default
    assert result_file(tmp_path / "new.v2", default) == tmp_path / "new.v2" / default
    assert result_file(tmp_path / "my corgi.safetensors", default) == tmp_path / "my corgi.safetensors"
    (tmp_path / "file.txt").touch()
    with pytest.raises(
        BestiaryError, match=r"file\.txt is a file: give a folder, or a file name that ends with \.safetensors"
    ):
        result_file(tmp_path / "file.txt", default)
    with pytest.raises(BestiaryError, match="--out 'nul' is reserved"):
        result_file(tmp_path / "nul.safetensors", default)


def test_what_is_there_is_never_replaced(tmp_path):
    default = "corgi.spectrum.safetensors"
    for name in (default, "corgi_2.spectrum.safetensors", "birds.parts.safetensors"):
        (tmp_path / name).touch()
    assert result_file(tmp_path, default) == tmp_path / "corgi_3.spectrum.safetensors"
    # a second file beside it needs its own place too
    assert result_file(tmp_path, "birds.safetensors", ".parts.safetensors") == tmp_path / "birds_2.safetensors"
    assert result_file(tmp_path, "birds.safetensors") == tmp_path / "birds.safetensors"


def test_a_place_for_folders_is_no_file(tmp_path):
    (tmp_path / "file").touch()
    assert result_folder(None, "pictures") == Path("pictures")
    assert result_folder(tmp_path, "pictures") == tmp_path
    assert result_folder(tmp_path / "v1.5", "pictures") == tmp_path / "v1.5"
    with pytest.raises(BestiaryError, match="file is a file: give a folder; it does not have to exist yet"):
        result_folder(tmp_path / "file", "pictures")
    with pytest.raises(
        BestiaryError, match=r"ends in \.safetensors, but this command writes a folder: remove \.safetensors"
    ):
        result_folder(tmp_path / "x.safetensors", "pictures")


def test_a_page_never_takes_the_place_of_another(tmp_path):
    marks = ("report.json", "state")
    assert (
        page_folder(tmp_path / "new", "x", marks) == tmp_path / "new" and page_folder(tmp_path, "x", marks) == tmp_path
    )
    (tmp_path / "index.html").touch()
    (tmp_path / "evaluation.json").touch()
    with pytest.raises(BestiaryError, match=r"contains an index\.html of another command: give another folder"):
        page_folder(tmp_path, "x", marks)
    assert page_folder(tmp_path, "x", ("evaluation.json",)) == tmp_path


@pytest.mark.parametrize("command", ["discover", "evaluate"])
def test_commands_spare_pages_of_others(command, tmp_path, capsys):
    (tmp_path / "d").mkdir()
    (tmp_path / "f").touch()
    (tmp_path / "d" / "index.html").write_text("mine")
    typed = [word.format(f=tmp_path / "f", d=tmp_path / "d") for word in COMMANDS[command]]
    assert main([*typed, "--out", str(tmp_path / "d")]) == 2
    assert "contains an index.html of another command" in capsys.readouterr().err
    assert (tmp_path / "d" / "index.html").read_text() == "mine"


COMMANDS = {
    "compose": ["compose", "{f}", "a <head:0>"],
    "export": ["export", "{f}"],
    "discover": ["discover", "{d}"],
    "train parts": ["train", "parts", "--discovery", "{d}"],
    "train spectrum": ["train", "spectrum", "{d}"],
    "doctor": ["doctor", "--discovery", "{d}"],
    "import xti": ["import", "xti", "{f}"],
    "import partcraft": ["import", "partcraft", "{f}"],
    "evaluate": ["evaluate", "parts", "{f}", "--discovery", "{d}"],
    "demo": ["demo"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("place", "cause"),
    [
        ("", "is empty: give a folder, or leave the option out"),
        ("con/x", "has a name that Windows reserves for a device (con): add a letter"),
        ("x.", "has a name that ends with a dot or a space ('x.')"),
        ("y" * 300, "has a name of 300 bytes: use at most 200"),
        ("a\0b", "contains characters that are not allowed in a file name: type it again"),
    ],
)
def test_every_command_refuses_the_same_places(command, place, cause, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "f").touch()
    typed = [word.format(f=tmp_path / "f", d=tmp_path / "d") for word in COMMANDS[command]]
    assert main([*typed, "--out", place]) == 2
    error = capsys.readouterr().err
    assert cause in error and error.count("\n") == 1 and "--out" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "f"]


def test_the_working_folder_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    assert [_place(text) for text in (".", "..", "./x", "../x")] == [
        tmp_path / "deep",
        tmp_path,
        Path("x"),
        Path("../x"),
    ]
