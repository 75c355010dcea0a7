"""Tests of subjects read from a folder below ComfyUI's input folder."""

from __future__ import annotations

import folder_paths
import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.host.graph_progress import GraphProgress
from bestiary.nodes.scenes import subject_folder
from bestiary.nodes.scenes.subject_folder import folder_stamp, read_folder
from PIL import Image


@pytest.fixture
def folder(tmp_path, monkeypatch, ball, box):
    """`pets` in an input folder, without weights: a transparent picture, one with a mask, a subfolder, and a broken file."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    monkeypatch.setattr(subject_folder, "find_segment", lambda choice: None)
    pets = tmp_path / "pets"
    (pets / "fish").mkdir(parents=True)
    Image.fromarray(ball).save(pets / "ball.png")
    Image.fromarray(box[..., :3]).save(pets / "red box.png")
    Image.fromarray(box[..., 3]).save(pets / "red box_mask.png")
    for number in (1, 2):
        Image.fromarray(ball[:, : 40 + number]).save(pets / "fish" / f"{number}.png")
    (pets / "broken.png").write_bytes(b"\x89PNG no")
    return pets


def read(name="pets", limit=8):
    return read_folder(name, limit, GraphProgress(None))


def test_pictures_and_subfolders_are_subjects_and_what_cannot_be_read_is_listed(folder):
    subjects, report = read()
    assert [one.name for one in subjects.subjects] == ["ball", "red box", "fish"]
    assert [one.name for one in subjects.others] == ["fish"]
    assert "ball.png: ball, 55 x 33 pixels by alpha" in report.splitlines()
    assert "red box.png: red box, 24 x 30 pixels by mask" in report.splitlines()
    assert "broken.png: skipped, " in report and "_mask" not in report
    np.testing.assert_array_equal(subjects.subjects[1].cutout[..., 3], 255)
    assert subjects.subjects[0].source.file == "ball.png" and len(subjects.subjects[0].source.sha256) == 64


def test_the_limit_counts_subjects(folder):
    assert len(read(limit=2)[0].subjects) == 2


@pytest.mark.parametrize("name", ["..", "/etc", "C:/Windows", "pets/../..", "\\\\host\\share"])
def test_a_way_out_of_the_input_folder_is_refused(folder, name):
    with pytest.raises(BestiaryError, match="leads out of ComfyUI's input folder|no folder"):
        read(name)


def test_faults_say_what_is_wrong(folder, box):
    with pytest.raises(BestiaryError, match="no folder 'cats' in ComfyUI's input folder"):
        read("cats")
    (folder / "photo.jpg").touch()
    Image.fromarray(box[..., :3]).save(folder / "photo.jpg")
    with pytest.raises(BestiaryError, match="photo.jpg"):
        read()
    empty = folder.parent / "empty"
    empty.mkdir()
    with pytest.raises(BestiaryError, match="folder 'empty' gives no subject \\(it holds no picture\\)"):
        read("empty")


def test_a_changed_picture_makes_the_graph_run_again(folder, ball):
    before = folder_stamp("pets")
    Image.fromarray(ball[:, ::-1]).save(folder / "ball.png")
    assert before and folder_stamp("pets") != before and folder_stamp("..") == ""
