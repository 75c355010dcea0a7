"""Shared options: faults of typed values name the option, the value and the remedy."""

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.command_options import assignment, assignments, checked, existing
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
    with pytest.raises(BestiaryError, match=r"no file .*bird\.safetensors; .* holds birds\.safetensors"):
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
    with pytest.raises(BestiaryError, match="--mix names 'layout' twice, as 'a' and as 'b': give one of them"):
        assignments(["layout=a", "layout=b"], "--mix")
