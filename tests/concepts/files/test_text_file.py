"""Text of Windows editors reads like any other, and hostile TOML is refused soon."""

import time
from pathlib import Path

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.text_file import LARGEST_TOML, parse_toml, read_text
from bestiary.trainer.composing.staged_pictures import read_presets
from bestiary.trainer.learning.discovery.part_names import read_names
from bestiary.trainer.learning.parts.settings import TrainPartsSettings
from bestiary.trainer.learning.run.recipe_file import parse_value, read_recipe

MARK = b"\xef\xbb\xbf"


def test_the_mark_of_windows_editors_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    for content in (b"a\nb\n", MARK + b"a\nb\n", MARK + b"a\r\nb\r\n"):
        path.write_bytes(content)
        assert read_text(path) == "a\nb\n"


def test_recipes_names_and_presets_read_alike(tmp_path: Path) -> None:
    recipe, names, presets = (tmp_path / name for name in ("recipe.toml", "names.toml", "presets.txt"))
    for mark in (b"", MARK):
        recipe.write_bytes(
            mark + b'[optimizer]\r\nsteps = 7\r\n[dataset]\r\ndiscovery = "x"\r\n'.replace(b"[dataset]", b"#")
        )
        names.write_bytes(mark + b'[parts]\r\n0 = "head"\r\n')
        presets.write_bytes(mark + b"layout: 0%-10%\ncontent: 10%-100%\n")
        assert read_names(names).parts == {"0": "head"}
        assert list(read_presets(presets)) == ["layout", "content"]
        with pytest.raises(BestiaryError) as fault:
            read_recipe(recipe, {"optimizer.steps": "-1"}, model=TrainPartsSettings)
        assert "no valid TOML" not in str(fault.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 100_000, "nested too deeply|Invalid|Unclosed"),
        ("a = " + "{a=" * 100_000, "nested too deeply|Invalid|Unclosed"),
        (".".join("a" * 200_000) + " = 1", "keys with too many parts"),
        ("a = " + "9" * 500_000, "too long|Invalid"),
        ("#" * (LARGEST_TOML + 1), "characters, the limit is 1,048,576"),
        ("a = \0", "Illegal|Invalid|Cannot"),
    ],
)
def test_hostile_toml_is_refused_soon(text: str, message: str) -> None:
    begin = time.process_time()
    with pytest.raises(BestiaryError, match=message):
        parse_toml(text)
    assert time.process_time() - begin < 15
    # as a flag's value it is no TOML and stays text
    assert isinstance(parse_value(text[4:]), str)


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match="could not read .*gone.txt': No such file"):
        read_text(tmp_path / "gone.txt")
    with pytest.raises(BestiaryError, match="could not read .*: it is not a valid file name"):
        read_text("a\0b")
    with pytest.raises(BestiaryError, match="File name too long"):
        read_text(tmp_path / ("x" * 300))
    (tmp_path / "x.txt").write_bytes(b"a\xff")
    with pytest.raises(BestiaryError, match="x.txt is not UTF-8 text: invalid start byte at byte 1; save it as UTF-8"):
        read_text(tmp_path / "x.txt")
    with pytest.raises(BestiaryError, match="has 2 bytes; the limit is 1"):
        read_text(tmp_path / "x.txt", 1)
