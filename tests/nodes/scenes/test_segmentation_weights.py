"""Tests of the menu of IS-Net weights, of the network behind it, and of masks made in a graph."""

from __future__ import annotations

import folder_paths
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.host.concept_folders import FOLDER
from bestiary.nodes.host.graph_progress import GraphProgress
from bestiary.nodes.scenes.cutting_out import cut_all
from bestiary.nodes.scenes.segmentation_weights import (
    AUTOMATIC,
    PLAIN_GROUND,
    find_segment,
    needed_segment,
    weights_menu,
)
from bestiary.scenes.cutout import CutoutOptions


@pytest.fixture
def weights_folder(tmp_path, monkeypatch):
    """The only folder in which weights are looked for; it is empty."""
    paths = dict(folder_paths.folder_names_and_paths)
    paths[FOLDER] = ([str(tmp_path)], {".safetensors"})
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", paths)
    (tmp_path / "segmentation").mkdir()
    return tmp_path / "segmentation"


@pytest.fixture
def on_white(ball_image) -> torch.Tensor:
    return ball_image[..., :3] * ball_image[..., 3:] + 1 - ball_image[..., 3:]


def test_the_menu_lists_what_reads_fastest_first(weights_folder):
    for name in ("b.onnx", "a.pth", "c.safetensors", "readme.txt"):
        (weights_folder / name).touch()
    assert weights_menu() == [AUTOMATIC, "c.safetensors", "a.pth", "b.onnx", PLAIN_GROUND]


def test_without_weights_the_three_ways_are_said(weights_folder):
    assert find_segment(AUTOMATIC) is None
    with pytest.raises(BestiaryError, match="bestiary import isnet.*pictures with alpha.*connect a MASK"):
        needed_segment(AUTOMATIC)


def test_broken_and_unknown_weights_are_refused_by_name(weights_folder):
    (weights_folder / "cut.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(BestiaryError, match="cut.safetensors"):
        find_segment("cut.safetensors")
    with pytest.raises(BestiaryError, match=r"no weights '\.\./secret' in models/bestiary/segmentation; choose"):
        find_segment("../secret")


def test_a_picture_on_plain_ground_is_cut_out_with_its_own_colours(on_white, ball_image):
    image = on_white
    cut, mask, report = cut_all(image, PLAIN_GROUND, CutoutOptions(), GraphProgress(None))
    alpha = ball_image[0, ..., 3]
    assert cut.shape == image.shape and mask.shape == (1, 40, 60)
    shared, joined = ((mask[0] > 0.5) & (alpha > 0.5)).sum(), ((mask[0] > 0.5) | (alpha > 0.5)).sum()
    assert shared / joined > 0.95
    # along the edge the picture shows white between, the cut-out the ball's own blue
    edge = (mask[0] > 0.2) & (mask[0] < 0.8)
    assert edge.any() and cut[0][edge][:, 0].mean() < image[0][edge][:, 0].mean() - 0.1
    assert report.startswith("picture 1: the subject covers ")


def test_doubts_are_said_and_a_ground_that_is_not_plain_is_refused(on_white):
    far = torch.nn.functional.pad(on_white, (0, 0, 300, 300, 300, 300), value=1.0)
    _, _, report = cut_all(far, PLAIN_GROUND, CutoutOptions(), GraphProgress(None))
    assert "look at it: " in report and "area" in report
    with pytest.raises(BestiaryError, match="its border is not plain"):
        cut_all(torch.rand(1, 64, 64, 3), PLAIN_GROUND, CutoutOptions(), GraphProgress(None))
