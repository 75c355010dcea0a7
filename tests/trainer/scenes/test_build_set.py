import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from bestiary.trainer.__main__ import main
from PIL import Image


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Two drawn subjects of four pictures each, the first transparent, the second with masks beside its pictures."""
    y, x = np.mgrid[:64, :80]
    inside = ((x - 40) / 30) ** 2 + ((y - 32) / 22) ** 2 < 1
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(4):
            pixels = np.full((64, 80, 3), (40 * number, 90, 200), np.uint8)
            mask = Image.fromarray(np.where(inside, 255, 0).astype(np.uint8))
            picture = Image.fromarray(pixels)
            if name == "cat":
                picture.putalpha(mask)
            else:
                mask.save(tmp_path / name / f"{number}_mask.png")
            picture.save(tmp_path / name / f"{number}.png")
    file = tmp_path / "pets.toml"
    file.write_text(
        'kind = "scenes"\ncount = 6\n[layout]\nwidth = 128\nheight = 96\n'
        + "".join(f'[[subjects]]\nname = "{name}"\nfolder = "{tmp_path / name}"\n' for name in ("cat", "dog"))
    )
    return file


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def build(recipe: Path, out: Path) -> int:
    return main(["scenes", "build", str(recipe), "--out", str(out), "--progress", "off"])


def test_a_set_is_built_and_verified_and_a_broken_mask_is_named(recipe, tmp_path, capsys, monkeypatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    out = tmp_path / "pets"
    assert build(recipe, out) == 0
    assert main(["scenes", "verify", str(out)]) == 0
    page = (out / "index.html").read_text()
    assert "subject cat" in page and "a photo of a" in page
    again = hashes(out)
    assert build(recipe, out) == 0
    assert hashes(out) == again and "0 of them new" in capsys.readouterr().out
    # a scene composed once more has the bytes of the set
    assert main(["scenes", "replay", str(out / "layouts/000002.json"), "--out", str(tmp_path / "r.png")]) == 0
    assert (tmp_path / "r.png").read_bytes() == (out / "images/000002.png").read_bytes()
    (out / "masks/000003.png").write_bytes(b"broken")
    capsys.readouterr()
    assert main(["scenes", "verify", str(out)]) == 1
    assert "masks/000003.png" in capsys.readouterr().out


@pytest.mark.parametrize("scenes", [1, 3, 5])
def test_a_killed_build_goes_on_to_the_same_hashes(recipe, tmp_path, scenes) -> None:
    whole, out = tmp_path / "whole" / "pets", tmp_path / "killed" / "pets"
    assert build(recipe, whole) == 0
    command = [sys.executable, "-m", "bestiary.trainer", "scenes", "build", str(recipe), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while process.poll() is None and len(list(out.glob("layouts/[!.]*.json"))) < scenes and time.monotonic() < until:
        time.sleep(0.002)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert build(recipe, out) == 0
    assert hashes(out) == hashes(whole)


def fails(recipe: Path, out: Path, capsys, *texts: str) -> None:
    assert build(recipe, out) == 2
    message = capsys.readouterr().err
    assert all(text in message for text in texts), message
    assert "Traceback" not in message


def test_faults_a_user_can_mend(recipe, tmp_path, capsys) -> None:
    text, out = recipe.read_text(), tmp_path / "out"
    recipe.write_text('kind = "scenes"\n')
    fails(recipe, out, capsys, "no subject")
    recipe.write_text(text.replace('"dog"', '"cat"'))
    fails(recipe, out, capsys, "two subjects are called 'cat'")
    recipe.write_text(text + '[background]\nmode = "photo"\n')
    fails(recipe, out, capsys, "background.folder")
    recipe.write_text(f'weights = "{recipe}"\n' + text)
    fails(recipe, out, capsys, "is no file of weights for IS-Net")


def test_an_unreadable_picture_is_skipped_with_its_reason(recipe, tmp_path, capsys) -> None:
    (tmp_path / "cat/broken.png").write_bytes(b"")
    assert build(recipe, tmp_path / "pets") == 0
    assert "1 pictures skipped" in capsys.readouterr().out
    assert json.loads((tmp_path / "pets/provenance.json").read_text())["files"]


def test_without_mask_and_weights_the_three_ways_are_told(recipe, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("bestiary.trainer.scenes.read_subjects.find_segment", lambda weights: None)
    (tmp_path / "dog/0_mask.png").unlink()
    fails(recipe, tmp_path / "pets", capsys, "_mask.png", "transparen", "segmentation")
