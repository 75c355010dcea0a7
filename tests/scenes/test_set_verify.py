import json
import shutil

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.scene_set import SceneSet
from bestiary.scenes.set_verify import verify_set
from bestiary.scenes.set_views import export_view
from PIL import Image


def png(path, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_rows(folder, change):
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    change(rows)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def stray_label(folder):
    labels = np.asarray(Image.open(folder / "instances/000002.png")).copy()
    labels[0, 0] = 7
    png(folder / "instances/000002.png", labels)


def moved_box(folder, index=0):
    edit_json(
        folder / "layouts/000002.json",
        lambda record: record["objects"][0]["bbox"].__setitem__(index, record["objects"][0]["bbox"][index] + 1),
    )


FAULTS = {
    "missing mask": ("masks/000002.png", "the mask of images/000002.png is missing", lambda f: (f / "masks/000002.png").unlink()),
    "extra mask": ("masks/x.png", "this mask has no picture", lambda f: png(f / "masks/x.png", np.zeros((64, 96)))),
    "wrong size": ("masks/000002.png", "the mask is 8 x 8 pixels, its picture 96 x 64", lambda f: png(f / "masks/000002.png", np.zeros((8, 8)))),
    "empty caption": ("images/000002.txt", "the caption is empty", lambda f: (f / "images/000002.txt").write_text("\n")),
    ".caption ending": ("images/000002.caption", "captions end with .txt", lambda f: (f / "images/000002.txt").rename(f / "images/000002.caption")),
    "missing caption": ("images/000002.txt", "the caption of this picture is missing", lambda f: (f / "images/000002.txt").unlink()),
    "mask under pictures": ("images/masks/000002.png", "a picture lies below the pictures", lambda f: shutil.copytree(f / "masks", f / "images/masks")),
    "caption without picture": ("images/x.txt", "this caption has no picture", lambda f: (f / "images/x.txt").write_text("x")),
    "caption of two lines": ("images/000002.txt", "has several lines", lambda f: (f / "images/000002.txt").write_text("a\nb\n")),
    "[trigger]": ("images/000002.txt", "holds [trigger]", lambda f: (f / "images/000002.txt").write_text("a [trigger]")),
    "other caption": ("images/000002.txt", "is not the text of its row", lambda f: (f / "images/000002.txt").write_text("a dog")),
    "box off by one": ("layouts/000002.json", "the box of 'cat' is", moved_box),
    "area": ("layouts/000002.json", "the area of 'cat' is 3", lambda f: edit_json(f / "layouts/000002.json", lambda r: r["objects"][0].update(area=3))),
    "broken picture": ("images/000002.png", "cannot be read as a picture", lambda f: (f / "images/000002.png").write_bytes(b"\x89PNG")),
    "changed picture": ("images/000002.png", "was changed after it was written", lambda f: png(f / "images/000002.png", np.zeros((64, 96, 3)))),
    "strange label": ("instances/000002.png", "it shows subject 7, and the scene has 2", stray_label),
    "missing label map": ("instances/000002.png", "the label map of images/000002.png is missing", lambda f: (f / "instances/000002.png").unlink()),
    "black mask": ("masks/000002.png", "pixels show a subject and are black", lambda f: png(f / "masks/000002.png", np.zeros((64, 96)))),
    "missing record": ("layouts/000002.json", "the record of images/000002.png is missing", lambda f: (f / "layouts/000002.json").unlink()),
    "broken record": ("layouts/000002.json", "is not the record of a scene", lambda f: (f / "layouts/000002.json").write_text("{}")),
    "missing picture": ("images/000002.png", "the picture of this scene is missing", lambda f: [(f / f"{d}/000002.png").unlink() for d in ("images", "masks", "instances")] + [(f / "images/000002.txt").unlink()]),
    "missing cut-out": ("subjects/", "is missing", lambda f: next(iter(sorted((f / "subjects").iterdir()))).unlink()),
    "missing row": ("metadata.jsonl", "no row for images/000002.png", lambda f: edit_rows(f, lambda rows: rows.pop(1))),
    "row without text": ("metadata.jsonl", "the text of images/000002.png is empty", lambda f: edit_rows(f, lambda rows: rows[1].update(text=" "))),
    "row elsewhere": ("metadata.jsonl", "mask_file_name '../x.png' leads out of the set", lambda f: edit_rows(f, lambda rows: rows[1].update(mask_file_name="../x.png"))),
    "row of no file": ("metadata.jsonl", "file_name 'images/9.png' is not a file of the set", lambda f: edit_rows(f, lambda rows: rows[1].update(file_name="images/9.png"))),
    "tokens for others": ("metadata.jsonl", "holds tokens that other trainers read as letters", lambda f: edit_rows(f, lambda rows: rows[1].update(text="a <head:3> bird"))),
    "COCO box": ("annotations.coco.json", "the box of annotation 3 is", lambda f: edit_json(f / "annotations.coco.json", lambda c: c["annotations"][2]["bbox"].__setitem__(2, 1))),
    "COCO mask": ("annotations.coco.json", "the mask of annotation 3 cannot be read", lambda f: edit_json(f / "annotations.coco.json", lambda c: c["annotations"][2]["segmentation"].update(counts="12"))),
    "COCO category": ("annotations.coco.json", "annotation 3 is of a picture or category that is not listed", lambda f: edit_json(f / "annotations.coco.json", lambda c: c["annotations"][2].update(category_id=9))),
    "card without header": ("README.md", "its header does not list the pictures", lambda f: (f / "README.md").write_text("# pets")),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_seeded_faults_are_found_by_name(copy_set, tmp_path, name):
    file, reason, damage = FAULTS[name]
    folder = copy_set(tmp_path / "pets", count=2)
    damage(folder)
    found = [str(fault) for fault in verify_set(folder)]
    assert any(text.startswith(file) and reason in text for text in found), found


def test_a_right_set_has_no_fault(copy_set, tmp_path):
    assert verify_set(copy_set(tmp_path / "pets")) == []


def test_a_picture_ending_in_a_folder_name_is_found(copy_set, tmp_path):
    folder = copy_set(tmp_path / "pets", count=1).rename(tmp_path / "my.png.set")
    assert "a folder's name holds '.png'" in str(verify_set(folder)[0]) and verify_set(folder)[0].file == "my.png.set"


def test_photographs_of_the_evaluation_must_not_be_trained_on(copy_set, tmp_path):
    folder = copy_set(tmp_path / "pets", count=2)
    copy_set(folder / "eval", count=2)
    SceneSet(folder).finish()
    assert "split: test" in (folder / "README.md").read_text()
    faults = verify_set(folder)
    assert {fault.file for fault in faults} == {"eval"} and len(faults) == 3
    assert "is in training and in evaluation" in faults[0].reason
    (folder / "eval/masks/000001.png").unlink()
    assert "eval/masks/000001.png" in {fault.file for fault in verify_set(folder)}


VIEW_FAULTS = {
    "kohya": [
        ("masks/000001.png", "mask of images/000001.png is missing", lambda f: (f / "masks/000001.png").unlink()),
        ("kohya.toml", "caption_extension is not .txt", lambda f: (f / "kohya.toml").write_text((f / "kohya.toml").read_text().replace(".txt", ".caption"))),
    ],
    "ai-toolkit": [("images/deep/a.png", "a picture lies below", lambda f: ((f / "images/deep").mkdir(), png(f / "images/deep/a.png", np.zeros((4, 4)))))],
    "onetrainer": [
        ("pictures/000001-masklabel.png", "is missing", lambda f: (f / "pictures/000001-masklabel.png").unlink()),
        ("pictures/000001.txt", "the caption is missing or empty", lambda f: (f / "pictures/000001.txt").write_text("")),
    ],
    "simpletuner": [("images/000001.bbox", "is not left, top, right, bottom", lambda f: edit_json(f / "images/000001.bbox", lambda c: c[0].update(bbox=[5, 5, 60, 60])))],
    "musubi": [("control/000001_0.png", "has no control picture", lambda f: (f / "control/000001_0.png").unlink())],
    "diffusers": [("metadata.jsonl", "", lambda f: (f / "train/metadata.jsonl").unlink())],
    "custom-diffusion": [("instances/001/a.txt", "every file here is read as a picture", lambda f: (f / "instances/001/a.txt").write_text("x"))],
    "coco": [("annotations/instances.json", "the area of annotation 1", lambda f: edit_json(f / "annotations/instances.json", lambda c: c["annotations"][0].update(area=1)))],
    "comfyui": [("masks/a.png", "the loader takes this for a picture", lambda f: ((f / "masks").mkdir(), png(f / "masks/a.png", np.zeros((4, 4)))))],
    "edit": [("conditions/000001.png", "this file of the view is missing", lambda f: (f / "conditions/000001.png").unlink())],
    "layers": [("images/000001_2.png", "a layer has an alpha channel", lambda f: ((f / "images/000001_2.png").unlink(), png(f / "images/000001_2.png", np.zeros((64, 96, 3)))))],
}  # fmt: skip


@pytest.mark.parametrize("kind", VIEW_FAULTS)
def test_seeded_faults_of_views(copy_set, tmp_path, kind):
    folder = copy_set(tmp_path / "pets", count=1)
    for file, reason, damage in VIEW_FAULTS[kind]:
        out = export_view(folder, kind)
        damage(out)
        found = [str(fault) for fault in verify_set(folder, kind)]
        assert any(file in text and reason in text for text in found), found
        assert verify_set(folder) == []
        shutil.rmtree(out)


def test_a_moved_view_is_told_by_its_configuration(copy_set, tmp_path):
    out = export_view(copy_set(tmp_path / "pets", count=1), "kohya").rename(tmp_path / "moved")
    assert "export the view again where it is now" in str(verify_set(out)[0])


def test_what_cannot_be_verified(copy_set, tmp_path):
    folder = copy_set(tmp_path / "pets", count=1)
    with pytest.raises(BestiaryError, match="has no view for kohya: export it first"):
        verify_set(folder, "kohya")
    with pytest.raises(BestiaryError, match="no view for 'x'"):
        verify_set(folder, "x")
    with pytest.raises(BestiaryError, match="is not a set of scenes"):
        verify_set(tmp_path)
    with pytest.raises(BestiaryError, match="is a view for coco, not for kohya"):
        verify_set(export_view(folder, "coco"), "kohya")
