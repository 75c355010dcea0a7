import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files import atomic_file
from bestiary.scenes.coco_masks import decoded_mask
from bestiary.scenes.collage import CollageOptions, compose
from bestiary.scenes.scene_layout import Placement, SceneLayout
from bestiary.scenes.scene_set import SceneEntry, SceneSet, replayed
from bestiary.scenes.set_files import inside, png_bytes, read_record
from PIL import Image


def hashes(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_files_of_a_set(build, tmp_path):
    folder = build(tmp_path / "pets")
    stems = [{path.stem for path in (folder / name).glob(pattern)} for name, pattern in _PER_SCENE]
    assert all(names == {"000001", "000002", "000003", "000004"} for names in stems)
    assert (folder / "images/000001.txt").read_text() == "a photo of a cat and a bird in a wood\n"
    assert len(list((folder / "subjects").iterdir())) == 5 and len(list((folder / "backgrounds").iterdir())) == 4
    first = rows(folder)[0]
    assert first["prompt"] == "a photo of a cat and a <head:3> bird in a wood" and first["scores"] == {"hidden": 0.25}
    assert first["objects"]["class"] == ["cat", "bird"] and first["objects"]["token"] == ["cat", "<head:3> bird"]
    report = json.loads((folder / "provenance.json").read_text())
    assert all(hashes(folder)[name] == sha for name, sha in report["files"].items())
    card = (folder / "README.md").read_text()
    assert "| cat_0.jpg | CC0 | Ann \\| Bob |" in card


_PER_SCENE = [
    ("images", "*.png"), ("images", "*.txt"), ("masks", "*.png"), ("instances", "*.png"), ("layouts", "*.json"), ("parts", "*.png")
]  # fmt: skip


def test_boxes_and_areas_are_those_of_the_label_map(build, tmp_path):
    folder = build(tmp_path / "pets")
    coco = json.loads((folder / "annotations.coco.json").read_text())
    assert [category["name"] for category in coco["categories"]] == ["bird", "cat"]
    for annotation in coco["annotations"]:
        image = coco["images"][annotation["image_id"] - 1]
        labels = np.asarray(Image.open(folder / "instances" / Path(image["file_name"]).name))
        number = 1 + (annotation["subject"] == "wren")
        mask = labels == number
        assert (decoded_mask(annotation["segmentation"]) == mask).all() and annotation["area"] == mask.sum()
        down, across = np.nonzero(mask)
        left, top = across.min(), down.min()
        assert annotation["bbox"] == [left, top, across.max() + 1 - left, down.max() + 1 - top]
        entry = rows(folder)[annotation["image_id"] - 1]["objects"]
        assert entry["bbox"][number - 1] == annotation["bbox"] and entry["area"][number - 1] == annotation["area"]


def test_replay_gives_the_same_bytes(build, tmp_path):
    folder = build(tmp_path / "pets")
    for stem in ("000001", "000004"):
        scene = replayed(folder, stem)
        for name, pixels in {
            "images": scene.picture,
            "masks": scene.union,
            "instances": scene.labels,
            "parts": scene.parts,
        }.items():
            assert png_bytes(pixels) == (folder / name / f"{stem}.png").read_bytes()


def test_a_build_that_is_killed_between_files_ends_with_the_same_hashes(build, write_scene, tmp_path, monkeypatch):
    whole = hashes(build(tmp_path / "whole" / "pets"))
    replace = os.replace
    for stop in range(1, 40, 3):
        folder, count = tmp_path / f"killed_{stop}" / "pets", 0

        def stopped(source, target, stop=stop):
            nonlocal count
            count += 1
            if count == stop:
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(atomic_file.os, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            build(folder)
        monkeypatch.setattr(atomic_file.os, "replace", replace)
        (folder / "images").mkdir(exist_ok=True)
        assert hashes(build(folder)) == whole


def test_what_a_killed_process_left_half_written_goes_when_the_set_is_opened(build, tmp_path):
    folder = build(tmp_path / "pets", count=1)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (folder / f"images/.000002.png.{gone.stdout.strip()}-3.part").write_bytes(b"half")
    whole = hashes(build(tmp_path / "other" / "pets", count=1))
    SceneSet(folder)
    assert hashes(folder) == whole


def test_finished_scenes_are_not_made_again_and_damaged_ones_are(build, write_scene, tmp_path):
    folder = build(tmp_path / "pets")
    scene_set = SceneSet(folder)
    assert [write_scene(scene_set, index) for index in range(4)] == [False] * 4
    (folder / "masks/000002.png").write_bytes(b"x")
    (folder / "images/000003.txt").unlink()
    assert [write_scene(scene_set, index) for index in range(4)] == [False, True, True, False]


def test_a_shorter_plan_removes_what_it_does_not_hold_and_nothing_else(build, tmp_path):
    folder = build(tmp_path / "pets")
    (folder / "images/mine.png").write_bytes(b"mine")
    (folder / "subjects/mine.png").write_bytes(b"mine")
    build(folder, count=2)
    left = hashes(folder)
    for name in ("images/mine.png", "subjects/mine.png"):
        assert left.pop(name)
        (folder / name).unlink()
    assert left == hashes(build(tmp_path / "other" / "pets", count=2))


def test_rejected_scenes_are_listed_with_reasons(build, write_scene, tmp_path):
    folder = build(tmp_path / "pets")
    scene_set = SceneSet(folder)
    scene_set.reject("000002", "key", ["a third cat", "a seam"])
    assert scene_set.is_finished("000002", "key") and not scene_set.is_finished("000002", "other")
    assert scene_set.finish() == 3 and not (folder / "images/000002.png").exists()
    report = json.loads((folder / "provenance.json").read_text())
    assert report["rejected"] == [{"stem": "000002", "reasons": ["a third cat", "a seam"], "given_up": True}]
    # a later try that is good takes its place
    assert write_scene(scene_set, 1) and scene_set.finish() == 4
    assert json.loads((folder / "provenance.json").read_text())["rejected"] == []


def test_a_full_disk_leaves_no_half_scene(build, write_scene, tmp_path, monkeypatch):
    folder = build(tmp_path / "pets", count=1)

    def full(path, content):
        raise BestiaryError(f"could not write {path}: No space left on device")

    monkeypatch.setattr("bestiary.scenes.scene_set.write_bytes", full)
    with pytest.raises(BestiaryError, match="No space left"):
        write_scene(SceneSet(folder), 1)
    assert SceneSet(folder).finish() == 1


@pytest.mark.parametrize("name", ["..", "a/../..", "con", "x.png", "cats.webp.d", "a:b"])
def test_names_that_lead_elsewhere_are_refused(name, tmp_path):
    with pytest.raises(BestiaryError):
        from bestiary.scenes.set_files import checked_set_name

        checked_set_name(name)


@pytest.mark.parametrize("stem", ["../x", "a.png", "", "a b", "/x"])
def test_stems_that_lead_elsewhere_are_refused(stem, tmp_path, pool):
    with pytest.raises(BestiaryError, match="use 1 to 64 letters"):
        SceneSet(tmp_path / "pets").is_finished(stem, "")


@pytest.mark.parametrize("path", ["../x.png", "/etc/x", "a/../../x", "", "C:/x", "..\\x"])
def test_paths_in_records_stay_inside(path, tmp_path):
    with pytest.raises(BestiaryError, match="leads out of the set"):
        inside(tmp_path, path)


def test_what_cannot_be_written(pool, tmp_path):
    cat, wren = pool["cat"][0], pool["wren"][0]
    layout = SceneLayout(64, 64, (Placement("cat", 5, 5, 30, 24),))
    scene = compose([cat], layout, np.zeros((64, 64, 3), np.uint8), CollageOptions())
    scene_set = SceneSet(tmp_path / "pets")
    for entry, text in [
        (SceneEntry(scene, " "), "a caption is one line"),
        (SceneEntry(scene, "a\nb"), "a caption is one line"),
        (SceneEntry(scene, "a", picture=np.zeros((4, 4, 3), np.uint8)), "the repainted picture is"),
    ]:
        with pytest.raises(BestiaryError, match=text):
            scene_set.write("a", entry, "key")
    hidden = dataclasses.replace(layout, placements=(*layout.placements, Placement("wren", 200, 5, 30, 24)))
    scene = compose([cat, wren], hidden, np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(BestiaryError, match="no pixel of 'wren' is visible"):
        scene_set.write("a", SceneEntry(scene, "a cat and a bird"), "key")
    with pytest.raises(BestiaryError, match="is not a set of scenes"):
        scene_set.finish()


def test_broken_records_are_named(build, tmp_path):
    folder = build(tmp_path / "pets", count=1)
    path = folder / "layouts/000001.json"
    path.write_text("[1]")
    with pytest.raises(BestiaryError, match=r"000001\.json is not the record of a scene"):
        read_record(path)


@pytest.mark.filterwarnings("ignore")
def test_datasets_reads_the_folder(build, tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = build(tmp_path / "pets")
    table = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(table) == 4 and {"image", "text", "mask", "instances", "objects", "prompt"} <= set(table.column_names)
    row = table[1]
    assert row["text"] == "a photo of a cat and a bird in a wood" and row["image"].size == row["mask"].size == (96, 64)
    assert row["objects"]["class"] == ["cat", "bird"] and len(row["objects"]["bbox"][0]) == 4


def test_pycocotools_reads_the_annotations(build, tmp_path):
    coco = pytest.importorskip("pycocotools.coco").COCO(str(build(tmp_path / "pets") / "annotations.coco.json"))
    mask = pytest.importorskip("pycocotools.mask")
    for annotation in coco.loadAnns(coco.getAnnIds()):
        assert coco.annToMask(annotation).sum() == annotation["area"]
        assert mask.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]
