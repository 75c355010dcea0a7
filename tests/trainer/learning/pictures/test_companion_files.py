"""Which file belongs to which picture: by relative path with ending, never by the bare stem."""

from pathlib import Path

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.pictures.companion_files import CompanionFolder, companion_of, masks_among


def _made(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # each step of the rule wins over those after it
        (["a/b.jpg.png", "a/b_mask.png", "a/b.jpg", "a/b.png"], "a/b.jpg.png"),
        (["a/b.jpg_mask.png", "a/b_mask.png", "a/b.jpg", "a/b.png"], "a/b.jpg_mask.png"),
        (["a/b_mask.png", "a/b.jpg", "a/b.png"], "a/b_mask.png"),
        (["a/b.jpg", "a/b.png"], "a/b.jpg"),
        (["a/b.PNG"], "a/b.PNG"),
        # the same name in another subfolder, and longer names, are of other pictures
        (["b.png", "c/b.png", "a/b.2.png", "a/bb.png", "a/b.txt"], None),
    ],
)
def test_the_first_step_that_finds_a_file_decides(files: list[str], expected: str | None, tmp_path: Path) -> None:
    found = companion_of("a/b.jpg", _made(tmp_path, *files))
    assert found == (None if expected is None else tmp_path / expected)


def test_pictures_of_one_stem_keep_their_own_files(tmp_path: Path) -> None:
    pictures = ["a/b.jpg", "a/b.png", "c/b.jpg", "d.jpg"]
    found = CompanionFolder(_made(tmp_path, "a/b.jpg.png", "a/b.png", "c/b.png", "d.webp", "e.png"), pictures)
    assert [found.of(name) for name in pictures] == [
        tmp_path / name for name in ("a/b.jpg.png", "a/b.png", "c/b.png", "d.webp")
    ]
    assert found.unused() == ["e.png"]
    # a name that fits two pictures is nobody's
    captions = CompanionFolder(_made(tmp_path / "captions", "a/b.txt"), pictures, [".txt"], called="caption")
    with pytest.raises(BestiaryError, match=r"^the caption a/b\.txt in .* could belong to a/b\.jpg or to a/b\.png: "):
        captions.of("a/b.jpg")
    assert captions.names_for("a/b.jpg") == "a/b.jpg.txt" and captions.names_for("d.jpg") == "d.jpg.txt or d.txt"


def test_two_files_for_one_picture_are_refused(tmp_path: Path) -> None:
    _made(tmp_path, "b.png", "b.webp")
    with pytest.raises(
        BestiaryError, match=r"^b\.png and b\.webp in .* could both be the mask of b\.jpg: keep one of them$"
    ):
        companion_of("b.jpg", tmp_path)
    with pytest.raises(
        BestiaryError, match="^caption folder .*none does not exist: give the folder that contains the captions$"
    ):
        companion_of("b.jpg", tmp_path / "none", [".txt"], called="caption")


def test_captions_are_no_masks(tmp_path: Path) -> None:
    _made(tmp_path, "b_mask.txt")
    assert companion_of("b.jpg", tmp_path, [".txt"], called="caption") is None
    assert companion_of("b.jpg", tmp_path, [".txt"]) == tmp_path / "b_mask.txt"


def test_masks_may_lie_among_their_pictures(tmp_path: Path) -> None:
    _made(tmp_path, "a.jpg", "a_mask.png", "b.jpg", "b.jpg.png", "c_mask.png", "d.png")
    names = ["a.jpg", "a_mask.png", "b.jpg", "b.jpg.png", "c_mask.png", "d.png"]
    # c_mask.png has no picture, so it is one
    assert masks_among(names) == {"a_mask.png", "b.jpg.png"}
    pictures = [name for name in names if name not in masks_among(names)]
    found = CompanionFolder(tmp_path, pictures, pictures_folder=tmp_path)
    assert found.of("a.jpg") == tmp_path / "a_mask.png" and found.of("d.png") == tmp_path / "d.png"
    # one picture alone: the file beside it before the picture itself
    _made(tmp_path, "e.jpg", "e.png")
    assert CompanionFolder(tmp_path, ["e.jpg"], pictures_folder=tmp_path).of("e.jpg") == tmp_path / "e.png"


def test_accents_are_one_or_two_characters(tmp_path: Path) -> None:
    _made(tmp_path, "caf\u00e9.png")
    assert companion_of("cafe\u0301.jpg", tmp_path) == tmp_path / "caf\u00e9.png"
