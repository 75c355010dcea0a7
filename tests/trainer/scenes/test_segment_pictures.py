"""`bestiary scenes segment`: cut-outs of folders as people have them."""

import json
from pathlib import Path

import numpy as np
import pytest
from bestiary.trainer.__main__ import main
from bestiary.trainer.scenes import read_subjects
from PIL import Image


def disc(size: tuple[int, int] = (64, 48)) -> Image.Image:
    y, x = np.mgrid[: size[1], : size[0]]
    inside = np.hypot(x - size[0] / 2, y - size[1] / 2) < min(size) / 3
    return Image.fromarray(np.where(inside, 255, 0).astype(np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def looked(monkeypatch) -> list[tuple[int, int]]:
    """IS-Net that takes a disc in the middle for the subject; the sizes of the pictures it saw."""
    seen = []

    class Network:
        sha256 = "0" * 64

        def __call__(self, picture):
            seen.append(picture.shape[:2])
            return np.asarray(disc((picture.shape[1], picture.shape[0])), np.float32) / 255

    monkeypatch.setattr(read_subjects, "find_network", lambda weights, bf16=False: Network())
    return seen


def segment(photos: Path, out: Path, *options: str) -> int:
    return main(["scenes", "segment", str(photos), "--out", str(out), "--progress", "off", *options])


def test_every_picture_has_its_own_cut_out_whatever_its_name_and_kind(photos, tmp_path, looked, capsys) -> None:
    photo = Image.new("RGB", (64, 48), (10, 120, 200))
    photo.save(photos / "a.jpg")
    clear = Image.new("RGB", (64, 48), (200, 1, 1))
    clear.putalpha(disc())
    clear.save(photos / "a.png")
    photo.save(photos / "a.b.png")
    photo.save(photos / "größe 1.webp")
    photo.convert("CMYK").save(photos / "print.jpg")
    Image.fromarray(np.full((48, 64), 30000, np.uint16)).save(photos / "deep.png")
    photo.convert("L").save(photos / "grey.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    photo.save(photos / "turned.jpg", exif=turned)
    photo.save(photos / "masked.png")
    disc().save(photos / "masked_mask.png")
    out = tmp_path / "cut"
    assert segment(photos, out) == 0
    assert "9 cut-outs, 0 pictures skipped" in capsys.readouterr().out
    names = {"a", "a 2", "a b", "größe 1", "print", "deep", "grey", "turned", "masked"}
    assert {path.stem for path in out.glob("*.png")} == names
    # upright when the network sees it; masks and transparency need no network
    assert (64, 48) in looked and len(looked) == 7
    red = [path for path in out.glob("a*.png") if tuple(np.asarray(Image.open(path))[16, 16, :3]) == (200, 1, 1)]
    assert len(red) == 1
    for path in out.glob("*.png"):
        picture = Image.open(path)
        assert picture.mode == "RGBA" and picture.size in {(31, 31), (32, 32), (33, 33)}
        assert picture.getchannel("A").getpixel((16, 16)) == 255
    sources = [Path(entry["source"]).name for entry in json.loads((out / "cutouts.json").read_text())["cutouts"]]
    assert len(set(sources)) == 9 and "größe 1.webp" in sources
    # what was cut is a folder of subjects for a set
    assert main(["scenes", "build", str(out), "--out", str(tmp_path / "set"), "--count", "1", "--progress", "off"]) == 0


def test_nothing_is_cut_twice_and_hand_work_stays(photos, tmp_path, looked, capsys) -> None:
    for number in range(3):
        Image.new("RGB", (64, 48), (10, 120, 60 * number)).save(photos / f"{number}.png")
    out = tmp_path / "cut"
    assert segment(photos, out) == 0 and len(looked) == 3
    Image.new("RGBA", (9, 9), (1, 2, 3, 255)).save(out / "1.png")
    mine = (out / "1.png").read_bytes()
    (out / "2.png").unlink()
    Image.new("RGB", (64, 48), (250, 120, 0)).save(photos / "0.png")
    assert segment(photos, out) == 0 and len(looked) == 4
    assert "kept" in capsys.readouterr().err and (out / "1.png").read_bytes() == mine and (out / "2.png").is_file()
    assert np.asarray(Image.open(out / "0.png"))[16, 16, 0] == 250
    # other rules cut anew, a damaged cut-out too
    assert segment(photos, out, "--feather", "2") == 0 and len(looked) == 7
    next((out / ".cutouts").glob("*.png")).write_bytes(b"x")
    assert segment(photos, out, "--feather", "2") == 0 and len(looked) == 8


def test_masks_that_cannot_be_trusted_are_skipped_with_a_reason(photos, tmp_path, capsys, monkeypatch) -> None:
    class Network:
        sha256 = "0" * 64

        def __call__(self, picture):
            kind = int(picture[0, 0, 0])
            mask = np.zeros(picture.shape[:2], np.float32)
            if kind == 1:
                mask[:] = 1
            elif kind == 2:
                mask[5:20, 5:20] = mask[25:40, 40:55] = 1
            elif kind == 3:
                mask[:20, :60] = 1
            elif kind == 4:
                mask[10:40, 10:50] = 1
            return mask

    monkeypatch.setattr(read_subjects, "find_network", lambda weights, bf16=False: Network())
    for kind, name in enumerate(("nothing", "all", "two", "cut off", "good")):
        Image.new("RGB", (64, 48), (kind, 0, 0)).save(photos / f"{name}.png")
    out = tmp_path / "cut"
    assert segment(photos, out) == 0
    shown = capsys.readouterr()
    assert "1 cut-outs, 4 pictures skipped" in shown.out
    for name, reason in (
        ("nothing", "empty"),
        ("all", "whole frame"),
        ("two", "several pieces"),
        ("cut off", "touches the border"),
    ):
        assert f"{name}.png: {reason}" in shown.err
    page = (out / "index.html").read_text()
    assert "touches the border" in page and 'src="good.png"' in page
    # a check can be switched off
    assert segment(photos, out, "--set", "gate.border=false") == 0
    assert "2 cut-outs, 3 pictures skipped" in capsys.readouterr().out


def test_a_plain_ground_is_cut_by_name_and_warns(photos, tmp_path, caplog, fails) -> None:
    picture = Image.new("RGB", (64, 48), (200, 200, 200))
    picture.paste((200, 20, 20), mask=disc())
    picture.save(photos / "drawing.png")
    assert segment(photos, tmp_path / "cut", "--backend", "border") == 0
    assert "look at every cut-out" in caplog.text
    Image.effect_noise((64, 48), 90).convert("RGB").save(photos / "photo.png")
    command = ["scenes", "segment", str(photos), "--out", str(tmp_path / "cut"), "--progress", "off"]
    fails([*command, "--backend", "border"], "photo.png: its border is not plain")


def test_faults_of_segmenting(photos, tmp_path, fails, monkeypatch) -> None:
    command = ["scenes", "segment", str(photos), "--out", str(tmp_path / "cut"), "--progress", "off"]
    fails(command, "photos holds no picture")
    fails([*command[:2], str(tmp_path / "none"), *command[3:]], "no folder", "none")
    Image.new("RGB", (64, 48)).save(photos / "a.png")
    with monkeypatch.context() as patch:
        patch.setattr(read_subjects, "weights_in", lambda folder: None)
        fails(command, "a.png: there is no mask for its subject", "a_mask.png", "bestiary import isnet")
    for name, content, told in (
        ("damaged.safetensors", b"\x80" * 99, "damaged.safetensors"),
        ("other.onnx", b"hello", "other.onnx"),
        ("pickle.pth", b"hello", "pickle.pth"),
    ):
        (tmp_path / name).write_bytes(content)
        fails([*command, "--weights", str(tmp_path / name)], told)
    (tmp_path / "notes.txt").write_text("x")
    fails([*command, "--weights", str(tmp_path / "notes.txt")], "not a file of IS-Net weights")
    fails([*command, "--weights", str(tmp_path / "no.onnx")], "no weights file")
    Image.new("L", (20, 20), 255).save(photos / "a_mask.png")
    fails(command, "a.png", "a_mask.png has 20 x 20 pixels, its picture 64 x 48")
    Image.new("L", (64, 48)).save(photos / "a_mask.png")
    fails(command, "no picture of", "a.png: empty")
    (photos / "a_mask.png").write_bytes(b"no mask")
    fails(command, "its mask", "a_mask.png cannot be read")
    fails([*command, "--rounds", "9"], "cutout.rounds = 9")
    fails([*command, "--backend", "parts"], "cutout.discovery")
    (photos / "a_mask.png").unlink()
    (photos / "a.png").write_bytes(b"")
    fails(command, "no picture of", "a.png: the file is empty")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("mine")
    fails([*command[:4], str(tmp_path / "site"), *command[5:]], "an index.html of another command")
