"""What goes wrong in graphs of scenes: odd files among good ones, a full disk, Cancel in the middle. One clear error, nothing lost."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import zlib
from pathlib import Path

import comfy.model_management as management
import folder_paths
import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.host.graph_progress import GraphProgress
from bestiary.nodes.host.socket_types import ComposedScenes, SceneLayouts
from bestiary.nodes.scenes import cutting_out, subject_folder
from bestiary.nodes.scenes import scene_sets as sets
from bestiary.nodes.scenes.scene_making import Scenery, compose_all
from bestiary.nodes.scenes.scene_scoring import SceneScorer, score_all
from bestiary.nodes.scenes.subject_making import subjects_of_images
from bestiary.scenes.collage import CollageOptions
from bestiary.scenes.cutout import CutoutOptions
from bestiary.scenes.scene_layout import Placement, SceneLayout
from bestiary.scenes.set_verify import verify_set
from PIL import Image

OPTIONS = CollageOptions(0.5, 0.0, 3)


class CancelledAfter(GraphProgress):
    """The user presses Cancel while the picture of this number is made."""

    def __init__(self, steps: int) -> None:
        super().__init__(None)
        self._left = steps

    def add(self, steps: int = 1) -> None:
        self._left -= steps
        if self._left < 0:
            management.interrupt_current_processing(True)
        super().add(steps)


@pytest.fixture
def pets(tmp_path, monkeypatch, ball):
    """A folder in an input folder with one good picture, without weights."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    monkeypatch.setattr(subject_folder, "find_segment", lambda choice: None)
    (tmp_path / "pets").mkdir()
    Image.fromarray(ball).save(tmp_path / "pets" / "ball.png")
    return tmp_path / "pets"


@pytest.fixture(scope="module")
def layouts() -> SceneLayouts:
    placed = [(Placement("box", 70 + x, 50, 24, 30, z=1), Placement("ball", 5, 40, 52, 32)) for x in (0, 7, 14)]
    made = tuple(SceneLayout(128, 96, some, seed=number) for number, some in enumerate(placed))
    return SceneLayouts(made, {"ball": "blue ball", "box": "box"})


@pytest.fixture(scope="module")
def composed(pair, layouts) -> ComposedScenes:
    return ComposedScenes(tuple(compose_all(pair, layouts, Scenery("noise"), OPTIONS, GraphProgress(None))), OPTIONS)


def read(limit: int = 8):
    return subject_folder.read_folder("pets", limit, GraphProgress(None))


def huge_png(edge: int) -> bytes:
    """A file of a few bytes that declares a square of `edge` pixels."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0")),
        (b"IEND", b""),
    )
    sealed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(sealed)


def test_a_photograph_of_20000_pixels_is_skipped_with_its_reason(pets):
    (pets / "huge.png").write_bytes(huge_png(20_000))
    subjects, report = read()
    assert [one.name for one in subjects.subjects] == ["ball"]
    (line,) = [line for line in report.splitlines() if line.startswith("huge.png")]
    assert "skipped, " in line and "too many" in line


def test_a_photograph_20000_pixels_wide_is_a_subject(pets):
    wide = np.zeros((40, 20_000, 4), np.uint8)
    wide[10:30, 5_000:15_000] = (40, 90, 200, 255)
    Image.fromarray(wide).save(pets / "wide.png", compress_level=1)
    subjects, report = read()
    image = torch.from_numpy(wide)[None] / 255
    (one,) = subjects_of_images(image, None, "wide", "", "", "ground")
    # cut-outs keep 2048 pixels of their longer side
    for found in (subjects.subjects[1], one):
        height, width = found.cutout.shape[:2]
        assert 2040 <= width <= 2048 and 3 <= height <= 5
    assert "wide.png: wide, 20" in report and "pixels by alpha" in report


def test_cmyk_16_bits_and_turned_pictures_are_read_upright_and_in_their_colours(pets):
    mask = np.zeros((60, 40), np.uint8)
    mask[10:50, 5:25] = 255
    color = np.zeros((60, 40, 3), np.uint8)
    color[:] = (200, 60, 40)
    Image.fromarray(color).convert("CMYK").save(pets / "cmyk.jpg", quality=100)
    Image.fromarray(np.full((60, 40), 200 * 257, np.uint16)).save(pets / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    # stored lying, to be turned a quarter clockwise
    Image.fromarray(np.rot90(color)).save(pets / "turned.jpg", exif=exif, quality=100)
    for stem in ("cmyk", "deep", "turned"):
        Image.fromarray(mask).save(pets / f"{stem}_mask.png")
    subjects = {one.name: one.cutout for one in read()[0].subjects}
    assert set(subjects) == {"ball", "cmyk", "deep", "turned"}
    for name, middle in (("cmyk", (200, 60, 40)), ("deep", (200, 200, 200)), ("turned", (200, 60, 40))):
        assert subjects[name].shape == (40, 20, 4), name
        assert np.abs(subjects[name][20, 10, :3].astype(int) - middle).max() <= 4, name


def save(composed, folder: Path, progress: GraphProgress | None = None):
    texts = {"captions": [f"scene {number}" for number in range(len(composed.scenes))], "prompts": []}
    return sets.save_set(composed, texts, "", None, folder, "none", progress or GraphProgress(None))


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("written", [0, 3, 9])
def test_a_full_disk_is_one_error_and_loses_no_scene(composed, tmp_path, monkeypatch, written):
    first = ComposedScenes(composed.scenes[:1], OPTIONS)
    folder, _ = save(first, tmp_path / "pets")
    before = hashes(folder)
    real, left = os.replace, [written]

    def full(source: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(BestiaryError, match="could not write .*No space left on device.*Free some disk space"):
            save(composed, folder)
    after = hashes(folder)
    assert {name: after[name] for name in before} == before
    # with space again the same queue ends as if nothing had happened
    assert save(composed, folder)[1] == 3 and verify_set(folder) == []
    save(composed, tmp_path / "whole" / "pets")
    assert hashes(folder) == hashes(tmp_path / "whole" / "pets")


def cancelled(call) -> None:
    """Runs what the user cancels; the flag is down afterwards, as ComfyUI takes it down."""
    with pytest.raises(management.InterruptProcessingException):
        call()
    assert not management.processing_interrupted()


def test_cancel_keeps_what_a_set_has_and_the_next_run_goes_on(composed, tmp_path):
    folder = tmp_path / "pets"
    save(ComposedScenes(composed.scenes[:1], OPTIONS), folder)
    before = hashes(folder)
    cancelled(lambda: save(composed, folder, CancelledAfter(2)))
    after = hashes(folder)
    assert {name: after[name] for name in before} == before and "images/000002.png" in after
    assert "images/000003.png" not in after
    written = (folder / "images" / "000002.png").stat().st_mtime_ns
    assert save(composed, folder)[1] == 3 and verify_set(folder) == []
    assert (folder / "images" / "000002.png").stat().st_mtime_ns == written


def test_cancel_stops_every_block_that_works_picture_by_picture(pair, layouts, pets, monkeypatch):
    cancelled(lambda: compose_all(pair, layouts, Scenery("noise"), OPTIONS, CancelledAfter(1)))
    Image.fromarray(np.full((40, 40, 4), 255, np.uint8)).save(pets / "other.png")
    cancelled(lambda: subject_folder.read_folder("pets", 8, CancelledAfter(1)))
    monkeypatch.setattr(
        cutting_out, "needed_segment", lambda weights: lambda picture: np.ones(picture.shape[:2], np.float32)
    )
    pictures = torch.rand(3, 16, 16, 3)
    cancelled(lambda: cutting_out.cut_all(pictures, "automatic", CutoutOptions(), CancelledAfter(1)))
    wide = torch.rand(3, 32, 64, 3)
    cancelled(lambda: score_all(wide, pair, "", SceneScorer("drawn world"), None, CancelledAfter(1)))
