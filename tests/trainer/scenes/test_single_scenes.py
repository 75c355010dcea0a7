"""`bestiary scenes layout`, `compose` and `caption` on files of their own."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from bestiary.scenes.scene_layout import SceneLayout
from bestiary.trainer.__main__ import main
from PIL import Image


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A red cat of 40 x 20 pixels, opaque in its middle, and a blue dog of 20 x 40."""
    for name, color, size in (("cat", (220, 30, 30), (40, 20)), ("dog", (30, 30, 220), (20, 40))):
        picture = Image.new("RGBA", (size[0] + 8, size[1] + 8), (0, 0, 0, 0))
        picture.paste((*color, 255), (4, 4, 4 + size[0], 4 + size[1]))
        picture.save(tmp_path / f"{name}.png")
    return tmp_path


def paths(files: Path) -> list[str]:
    return [str(files / "cat.png"), str(files / "dog.png")]


def solve(files: Path, *options: str) -> int:
    return main(
        ["scenes", "layout", *paths(files), "--width", "128", "--height", "96", "--out", str(files / "l"), *options]
    )


def read(path: Path) -> SceneLayout:
    return SceneLayout.from_json(path.read_text())


def test_layouts_are_solved_numbered_and_never_overwritten(files, capsys) -> None:
    assert solve(files, "--count", "2", "--seed", "7", "--size", "dog=2", "--size", "cat=1", "--perspective", "0") == 0
    assert solve(files, "--seed", "7", "--size", "dog=2", "--size", "cat=1", "--perspective", "0") == 0
    first, second, third = (read(files / f"l/00000{number}.json") for number in (1, 2, 3))
    assert first == third != second and (first.width, first.height) == (128, 96)
    assert first.placed("dog").height == pytest.approx(2 * first.placed("cat").width)
    assert "wrote" in capsys.readouterr().out


def test_a_layout_is_read_from_text_and_from_the_input(files, monkeypatch, capsys) -> None:
    text = json.dumps(
        {"canvas": [64, 48], "objects": [{"id": "dog", "box": [2, 2, 10, 20]}, {"id": "cat", "box": [30, 20, 20, 10]}]}
    )
    (files / "answer.txt").write_text(f"Here you are:\n```json\n{text}\n```")
    assert solve(files, "--text", str(files / "answer.txt")) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert solve(files, "--text", "-") == 0
    layout = read(files / "l/000001.json")
    assert layout == read(files / "l/000002.json") and layout.made_by == "text"
    # each name has its own box, scaled from 64 x 48
    dog = layout.placed("dog")
    assert (dog.x, dog.y, dog.width, dog.height) == pytest.approx((4, 4, 20, 40))
    capsys.readouterr()
    assert solve(files, "--ask", "--place", "in a garden") == 0
    asked = capsys.readouterr().out
    assert "in a garden" in asked and "cat" in asked and "Answer with JSON" in asked


def test_a_scene_is_composed_with_all_its_masks(files, capsys) -> None:
    assert solve(files) == 0
    layout, out = files / "l/000001.json", files / "scene"
    command = [
        "scenes",
        "compose",
        str(layout),
        *paths(files),
        "--background",
        "plain",
        "--color",
        "#00ff00",
        "--shadow",
        "0",
    ]
    assert main([*command, "--out", str(out)]) == 0
    names = {"picture", "mask", "labels", "repaint", "background", "alpha cat", "alpha dog", "layer cat", "layer dog"}
    assert {path.stem for path in out.glob("*.png")} == names
    labels = np.asarray(Image.open(out / "labels.png"))
    picture = np.asarray(Image.open(out / "picture.png"))
    order = [placement.subject for placement in read(layout).placements]
    assert (picture[labels == order.index("cat") + 1][:, 0] > 120).all() and (picture[labels == 0][:, 1] > 120).all()
    assert read(out / "layout.json") == read(layout)
    # the same again is the same bytes; a folder with files is left alone
    assert main([*command, "--out", str(files / "again")]) == 0
    assert all((files / "again" / path.name).read_bytes() == path.read_bytes() for path in out.iterdir())
    assert main([*command, "--out", str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_photograph_behind_a_scene_is_a_file_or_a_folder(files) -> None:
    assert solve(files) == 0
    (files / "places").mkdir()
    Image.new("RGB", (200, 100), (9, 90, 9)).save(files / "places/wood.jpg")
    for number, background in enumerate((files / "places", files / "places/wood.jpg")):
        command = ["scenes", "compose", str(files / "l/000001.json"), *paths(files), "--background", str(background)]
        assert main([*command, "--out", str(files / f"s{number}")]) == 0
    assert (files / "s0/picture.png").read_bytes() == (files / "s1/picture.png").read_bytes()
    assert np.asarray(Image.open(files / "s0/background.png"))[0, 0, 1] in range(80, 100)


def test_captions_of_a_layout(files, capsys) -> None:
    assert solve(files) == 0
    capsys.readouterr()
    layout = str(files / "l/000001.json")
    options = ["--place", "in a wood", "--words", "cat=old owl", "--trigger", "dog=sks"]
    assert main(["scenes", "caption", layout, *options]) == 0
    first, _ = (placement.subject for placement in read(files / "l/000001.json").placements)
    wanted = ["an old owl", "sks dog"] if first == "cat" else ["sks dog", "an old owl"]
    assert capsys.readouterr().out == f"a photo of {' and '.join(wanted)} in a wood\n"
    assert main(["scenes", "caption", layout, "--relations", "--template", "{subjects} {x}", "--prefix", "zzz"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("zzz a ") and "{x}" in said and ("left of" in said or "front of" in said)


def test_the_caption_of_a_scene_in_a_set_is_that_of_the_set(recipe, tmp_path, build, capsys) -> None:
    assert build(recipe, tmp_path / "pets") == 0
    capsys.readouterr()
    assert main(["scenes", "caption", str(tmp_path / "pets/layouts/000001.json")]) == 0
    assert capsys.readouterr().out == (tmp_path / "pets/images/000001.txt").read_text()


def test_faults_of_single_scenes(files, fails, monkeypatch) -> None:
    monkeypatch.setattr("bestiary.trainer.scenes.read_subjects.weights_in", lambda folder: None)
    layout = ["scenes", "layout", *paths(files), "--out", str(files / "l")]
    fails([*layout, "--size", "horse=2"], "--size 'horse' is not one of the subjects", "cat")
    fails([*layout, "--size", "dog=-2"], "size '-2'", "a number above 0")
    fails([*layout, "--support", "dog=on:horse"], "no subject is called so")
    fails([*layout, "--coverage", "2"], "coverage 2.0 must be above 0")
    fails([*layout, "--coverage", "0.00001"], "the limit is coverage")
    fails([*layout, "--words", "cat"], "write name=value")
    fails([*layout, "--text", str(files / "none.txt")], "no file", "none.txt")
    (files / "code.txt").write_text("__import__('os').system('touch ran')")
    fails([*layout, "--text", str(files / "code.txt")], "what looks like program code", "never run")
    (files / "blank.txt").write_text(" ")
    fails([*layout, "--text", str(files / "blank.txt")], "is empty")
    Image.new("RGB", (64, 64)).save(files / "photo.jpg")
    fails(
        ["scenes", "layout", str(files / "photo.jpg")], "photo.jpg: there is no mask for its subject", "photo_mask.png"
    )
    (files / "broken.png").write_bytes(b"no picture")
    fails(["scenes", "layout", str(files / "broken.png")], "broken.png")
    Image.new("RGBA", (64, 64)).save(files / "clear.png")
    fails(["scenes", "layout", str(files / "clear.png")], "clear.png: empty")
    assert solve(files) == 0
    compose = ["scenes", "compose", str(files / "l/000001.json"), *paths(files), "--out", str(files / "s")]
    fails(
        [*compose, "--background", "moon"], "background 'moon' is not a picture, a folder of pictures, noise or plain"
    )
    fails([*compose, "--color", "red"], "--color 'red' is not a colour")
    fails([*compose, "--shadow", "2"], "shadow 2.0 is out of range")
    fails([*compose[:4], "--out", str(files / "s")], "dog")
    (files / "bad.json").write_text("{}")
    fails(["scenes", "compose", str(files / "bad.json"), *paths(files)], "bad.json: this JSON is not a layout")
    fails(["scenes", "caption", str(files / "l/000001.json"), "--trigger", "horse=x"], "--trigger 'horse'")
    fails(["scenes", "caption", str(files / "l/000001.json"), "--template", "x"], "{subjects}")
    fails(["scenes", "caption", str(files / "l/000001.json"), "--caption-url", "http://a/v1"], "the folder of a set")
    assert not (files / "s").exists() and not (files / "ran").exists() and not Path("ran").exists()
