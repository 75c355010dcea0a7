"""Tests of captions, references, checks and sets of scenes that a graph made."""

from __future__ import annotations

import dataclasses

import folder_paths
import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.host.graph_progress import GraphProgress
from bestiary.nodes.host.socket_types import ComposedScenes, SceneLayouts, SceneSubjects
from bestiary.nodes.scenes import scene_sets as sets
from bestiary.nodes.scenes.scene_making import Scenery, compose_all, scene_images, subject_masks
from bestiary.scenes.collage import CollageOptions
from bestiary.scenes.reference_pictures import reference_picture
from bestiary.scenes.scene_captions import CaptionOptions
from bestiary.scenes.scene_gate import SceneLimits
from bestiary.scenes.scene_layout import Placement, SceneLayout
from bestiary.scenes.scene_set import replayed
from bestiary.scenes.set_verify import verify_set

OPTIONS = CollageOptions(0.5, 0.0, 3)


@pytest.fixture(scope="module")
def layouts() -> SceneLayouts:
    made = [
        SceneLayout(128, 96, (Placement("box", 70 + x, 50, 24, 30, z=1), Placement("ball", 5, 40, 52, 32)), seed=x)
        for x in (0, 7)
    ]
    return SceneLayouts(tuple(made), {"ball": "blue ball", "box": "box"}, "in a wood")


@pytest.fixture(scope="module")
def composed(pair, layouts) -> ComposedScenes:
    return ComposedScenes(tuple(compose_all(pair, layouts, Scenery("noise"), OPTIONS, GraphProgress(None))), OPTIONS)


def save(composed, folder, captions=("a", "b"), prompts=(), images=None, view="none"):
    texts = {"captions": captions, "prompts": prompts}
    return sets.save_set(composed, texts, "in a wood", images, folder, view, GraphProgress(None))


def test_captions_name_subjects_in_the_order_of_the_layout(pair, layouts):
    tokens = SceneSubjects(
        (dataclasses.replace(pair.subjects[0], words="<head:3> blue ball"), pair.subjects[1]), pair.others
    )
    plain, prompts = sets.captions_of(tokens, layouts, "", CaptionOptions(triggers={"box": "sks"}))
    assert plain == ["a photo of sks box and a blue ball in a wood"] * 2
    assert prompts == ["a photo of a box and a <head:3> blue ball in a wood"] * 2
    (told, _), _ = sets.captions_of(pair, layouts, "on a table", CaptionOptions(relations=True))
    assert told.startswith("a photo of a box and a blue ball on a table, ")


def test_a_layout_of_others_is_refused(pair, layouts):
    with pytest.raises(BestiaryError, match="the layout names 'box', and the subjects are 'ball'"):
        sets.captions_of(SceneSubjects(pair.subjects[:1]), layouts, "", CaptionOptions())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat", "trigger 'cat' is not understood: write a name"),
        ("cat = sks", "names no subject: the subjects are 'ball'"),
    ],
)
def test_triggers_that_cannot_be_are_refused(text, message):
    assert sets.triggers_of(" Ball = sks \n\n", ["ball"]) == {"ball": "sks"}
    with pytest.raises(BestiaryError, match=message):
        sets.triggers_of(text, ["ball"])


def test_references_are_other_pictures_where_there_are_some(pair, layouts):
    other = dataclasses.replace(pair.subjects[0], cutout=pair.subjects[0].cutout[:, ::-1].copy())
    pictures, text = sets.references(SceneSubjects(pair.subjects, (other,)), layouts, 64)
    assert text == "put the box of picture 1 and the blue ball of picture 2 in a wood"
    expected = [reference_picture(one.cutout, 64) for one in (pair.subjects[1], other)]
    assert pictures[0].shape == pictures[1].shape
    for picture, theirs in zip(pictures, expected, strict=True):
        margin = (picture.shape[1] - len(theirs)) // 2
        inner = (picture[0] * 255).round().numpy()[margin : margin + len(theirs), margin : margin + len(theirs)]
        np.testing.assert_array_equal(inner, theirs)


def test_a_set_is_whole_and_the_same_scenes_are_not_written_twice(composed, tmp_path):
    folder, count = save(composed, tmp_path / "pets")
    assert (folder, count) == (tmp_path / "pets", 2) and verify_set(folder) == []
    before = {path: path.stat().st_mtime_ns for path in (folder / "images").iterdir()}
    assert save(composed, folder)[1] == 2 and save(composed, folder, ("a", "c"))[1] == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before and verify_set(folder) == []
    np.testing.assert_array_equal(replayed(folder, "000001").picture, composed.scenes[0].picture)


def test_painted_pictures_stand_in_for_the_collages(composed, tmp_path):
    from PIL import Image

    painted = torch.rand(2, 96, 128, 3)
    folder, _ = save(composed, tmp_path / "painted", images=painted, view="kohya")
    assert folder == tmp_path / "painted" / "views" / "kohya" and verify_set(tmp_path / "painted", "kohya") == []
    saved = np.asarray(Image.open(tmp_path / "painted" / "images" / "000002.png"))
    np.testing.assert_array_equal(saved, (painted[1] * 255).round().byte().numpy())


def test_faults_of_a_set_say_what_is_wrong(composed, tmp_path):
    with pytest.raises(BestiaryError, match="1 captions for 2 scenes: connect one for each"):
        save(composed, tmp_path / "x", ("a",))
    with pytest.raises(BestiaryError, match="3 painted pictures for 2 scenes"):
        save(composed, tmp_path / "x", images=torch.rand(3, 96, 128, 3))
    with pytest.raises(BestiaryError, match="a caption is one line that says something"):
        save(composed, tmp_path / "x", ("a", " "))
    with pytest.raises(BestiaryError, match="no view for 'keras'"):
        save(composed, tmp_path / "x", view="keras")
    other = dataclasses.replace(composed, options=CollageOptions())
    with pytest.raises(BestiaryError, match="composed with different settings"):
        sets.joined_scenes([composed, other])
    assert len(sets.joined_scenes([composed, composed]).scenes) == 4


@pytest.mark.parametrize("name", ["../pets", "/tmp/pets", "a/b", "", "pets.png", "C:pets"])
def test_a_way_out_of_the_output_folder_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    assert sets.set_folder("pets", "output") == tmp_path.resolve() / "pets"
    with pytest.raises(BestiaryError):
        sets.set_folder(name, "output")
    with pytest.raises(BestiaryError, match="target 'temp' is not one of output, input"):
        sets.set_folder("pets", "temp")


def test_scenes_are_judged_one_by_one_and_the_good_ones_kept(composed):
    canvas, mask = scene_images(composed.scenes), subject_masks(composed.scenes)
    images = torch.stack([canvas[0], canvas[1] * 0.5])
    judged = sets.judge_all(images, canvas, mask, SceneLimits(), None)
    assert [bool(one.faults) for one in judged] == [False, True]
    assert torch.equal(sets.kept_pictures(images, judged), canvas[:1])
    assert torch.equal(sets.kept_pictures(images, judged[1:]), images)
    lines = sets.judged_text(judged).splitlines()
    assert lines[0].startswith("picture 1: kept (subjects 99.0 dB") and "rejected, subjects changed" in lines[1]
    with pytest.raises(BestiaryError, match="2 pictures for 3 canvases"):
        sets.judge_all(images, torch.cat([canvas, canvas[:1]]), torch.cat([mask, mask[:1]]), SceneLimits(), None)
