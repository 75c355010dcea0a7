"""Names of concepts: one rule from files to prompts, and names that are no file everywhere are refused."""

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.concept_names import checked_file_name, name_of_file


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("corgi.safetensors", "corgi"),
        ("corgi.spectrum.safetensors", "corgi"),
        ("deep\\er/corgi.v2.1.SAFETENSORS", "corgi.v2.1"),
        ("blue jay.safetensors", "blue jay"),
        ("2024.safetensors", "2024"),
        ("My Birds (v2).safetensors", "My Birds_v2"),
        ("con.safetensors", "con"),
        ("鳥.safetensors", "鳥"),
        ("<>.safetensors", "dictionary"),
    ],
)
def test_names_of_files(file: str, name: str) -> None:
    assert name_of_file(file) == name


@pytest.mark.parametrize("name", ["corgi", "corgi.v2", "blue jay", "2024", "1.5", "contour", "nullify", "鳥" * 53])
def test_names_that_every_system_takes(name: str) -> None:
    assert checked_file_name(name) == name


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("", "is empty"),
        (" .. ", "is empty"),
        ("con", "is reserved for a device on Windows: add a letter"),
        ("NUL.v2", "is reserved for a device on Windows"),
        ("lpt1", "is reserved for a device on Windows"),
        ("corgi.", "ends with a dot or a space"),
        ("a/b", "contains '/', which is not allowed in file names"),
        ("a\0b", r"contains '\\x00', which is not allowed in file names"),
        ("what?", r"contains '\?', which is not allowed in file names"),
        ("x" * 300, "has 300 bytes: use at most 160"),
        ("\udcff", "is not valid Unicode"),
    ],
)
def test_names_that_some_system_refuses(name: str, cause: str) -> None:
    with pytest.raises(BestiaryError, match=cause) as fault:
        checked_file_name(name, "--name")
    assert str(fault.value).startswith("--name '") and str(fault.value).isprintable()
