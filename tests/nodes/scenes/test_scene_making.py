"""Tests of scenes in a graph: the library's own pixels, masks that fit together, ComfyUI's layers, subjects put back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.host.graph_progress import GraphProgress
from bestiary.nodes.host.socket_types import SceneLayouts
from bestiary.nodes.scenes import scene_making as making
from bestiary.nodes.scenes.scene_pictures import as_planes
from bestiary.scenes.backgrounds import make_background
from bestiary.scenes.collage import CollageOptions, compose
from bestiary.scenes.scene_layout import Placement, SceneLayout

OPTIONS = CollageOptions(0.5, 0.0, 3)


@pytest.fixture(scope="module")
def layouts() -> SceneLayouts:
    """Two layouts in which the box stands before the ball."""
    made = [
        SceneLayout(
            128, 96, (Placement("ball", 20 + x, 40, 52, 32, z=0), Placement("box", 55 + x, 50, 24, 30, z=1)), seed=x
        )
        for x in (0, 10)
    ]
    return SceneLayouts(tuple(made), {"ball": "blue ball", "box": "box"})


@pytest.fixture(scope="module")
def scenes(pair, layouts):
    return making.compose_all(pair, layouts, making.Scenery("noise"), OPTIONS, GraphProgress(None))


def test_scenes_are_those_of_the_library(pair, layouts, scenes):
    for scene, layout in zip(scenes, layouts.layouts, strict=True):
        behind = make_background("noise", 128, 96, layout.seed)
        theirs = compose(pair.subjects, layout, behind.pixels, OPTIONS)
        np.testing.assert_array_equal(scene.picture, theirs.picture)
    ours = as_planes(making.scene_images(scenes))
    np.testing.assert_array_equal(ours[1], scenes[1].picture)


def test_masks_are_one_where_the_subject_is(scenes):
    union, each, repaint = (
        making.subject_masks(scenes),
        making.masks_of_each(scenes),
        making.repaint_masks(scenes, 3, 0),
    )
    assert union.shape == repaint.shape == (2, 96, 128) and each.shape == (4, 96, 128)
    assert union[0, 65, 67] == 1 and union[0, 5, 5] == 0 and repaint[0, 5, 5] == 1 and repaint[0, 65, 67] == 0
    # where the box stands before the ball only the box is seen
    assert each[1, 65, 67] == 1 and each[0, 65, 67] == 0
    assert (each.reshape(2, 2, 96, 128).sum(1) - union).abs().max() <= 1.01 / 255
    np.testing.assert_array_equal(as_planes(repaint)[0], scenes[0].repaint)
    soft = making.repaint_masks(scenes, 3, 4)
    assert bool((soft >= repaint).all()) and bool(((soft > 0) & (soft < 1)).any())


def test_layers_laid_on_each_other_are_the_scene(scenes):
    document = making.layers_document(scenes[0])
    assert document["version"] == 1 and document["canvas"] == (128, 96)
    assert [layer["name"] for layer in document["layers"]] == ["background", "ball", "box"]
    canvas = document["layers"][0]["image"][0].clone()
    for layer in document["layers"][1:]:
        image, alpha = layer["image"][0], 1 - layer["mask"][0][..., None]
        rows, columns = slice(layer["y"], layer["y"] + len(image)), slice(layer["x"], layer["x"] + image.shape[1])
        canvas[rows, columns] = alpha * image + (1 - alpha) * canvas[rows, columns]
    assert (canvas * 255 - torch.from_numpy(scenes[0].picture)).abs().max() <= 2.5


def test_comfyui_s_compositor_makes_the_scene_of_the_layers(scenes):
    compositor = pytest.importorskip("comfy_extras.nodes_compositor", reason="this ComfyUI has no compositor")
    document = making.layers_document(scenes[0])
    frames = compositor.expand_item_frames(compositor.document_items(document))
    alphas = [compositor.frame_alpha(frame["tensor"], frame["mask"]) for frame in frames]
    state = compositor.state_from_items(frames, compositor.document_canvas(document))
    made = compositor.composite_from_state([frame["tensor"] for frame in frames], state, alphas)
    picture, _ = compositor.composite_outputs(made)
    # it mixes in linear light, we as PNG files are shown: where nothing is half transparent both give the same
    plain = np.all([(layer[..., 3] == 0) | (layer[..., 3] == 255) for layer in scenes[0].layers], axis=0)
    assert plain.mean() > 0.7
    assert np.abs(picture[0].numpy() * 255 - scenes[0].picture)[plain].max() <= 0.51


def test_a_photograph_is_fitted_to_the_canvas(pair, layouts):
    image = torch.rand(2, 300, 200, 3)
    scenes = making.compose_all(pair, layouts, making.Scenery("photo", image), OPTIONS, GraphProgress(None))
    assert scenes[0].background.shape == (96, 128, 3)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("photo", "background_mode 'photo' needs a picture of a place"),
        ("sky", "'sky' is not one of photo, blur, noise, plain"),
    ],
)
def test_backgrounds_that_cannot_be_are_refused(pair, layouts, mode, message):
    with pytest.raises(BestiaryError, match=message):
        making.compose_all(pair, layouts, making.Scenery(mode), OPTIONS, GraphProgress(None))


def test_a_layout_of_other_subjects_is_refused(pair, layouts):
    foreign = dataclasses.replace(layouts.layouts[0], placements=(Placement("dog", 1, 1, 20, 20),))
    with pytest.raises(BestiaryError, match="dog"):
        making.compose_all(pair, SceneLayouts((foreign,), {}), making.Scenery("noise"), OPTIONS, GraphProgress(None))


def test_subjects_come_back_to_the_last_bit(scenes):
    canvas, mask = making.scene_images(scenes), making.subject_masks(scenes)
    painted = torch.rand(4, 96, 128, 3)
    with pytest.raises(BestiaryError, match="4 decoded pictures for 2 canvases"):
        making.restore(painted, canvas, mask, 2, 0.0)
    ours = making.restore(painted[:2], canvas, mask, 2, 0.0)
    core = making.repaint_masks(scenes, 2, 0) == 0
    assert core.sum() > 500 and torch.equal(ours[core], canvas[core])
    assert torch.equal(ours[mask == 0], painted[:2][mask == 0])
    one = making.restore(painted, canvas[:1], mask[:1], 2, 0.0)
    assert len(one) == 4 and torch.equal(one[3][core[0]], canvas[0][core[0]])
    with pytest.raises(BestiaryError, match="the painted picture has 128 x 88 pixels, the canvas 128 x 96"):
        making.restore(painted[:2, :88], canvas, mask, 2, 0.0)
