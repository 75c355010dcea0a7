"""Views are read by the consumers where these can be installed, else by a re-creation of their file rules."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.text_file import parse_toml
from bestiary.scenes.scene_set import SceneSet
from bestiary.scenes.set_files import read_records
from bestiary.scenes.set_verify import verify_set
from bestiary.scenes.set_views import KINDS, export_view
from PIL import Image

STEMS = ["000001", "000002", "000003", "000004"]
CAPTION = "a photo of a cat and a bird in a wood"


@pytest.fixture
def pets(copy_set, tmp_path):
    return copy_set(tmp_path / "pets")


@pytest.mark.parametrize("kind", KINDS)
def test_every_view_is_right_and_can_be_written_again(pets, kind):
    out = export_view(pets, kind)
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert verify_set(out) == [] and verify_set(pets, kind) == []
    assert export_view(pets, kind) == out == pets / "views" / kind
    assert files == {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_pictures_are_hard_links(pets):
    out = export_view(pets, "kohya")
    assert os.path.samefile(out / "images/000001.png", pets / "images/000001.png")


def test_pictures_are_copied_where_there_are_no_links(pets, monkeypatch):
    def refused(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("bestiary.scenes.set_views.os.link", refused)
    out = export_view(pets, "comfyui")
    assert (out / "images/000001.png").read_bytes() == (pets / "images/000001.png").read_bytes()
    assert not os.path.samefile(out / "images/000001.png", pets / "images/000001.png") and verify_set(out) == []


def test_kohya(pets):
    """kohya-ss/sd-scripts@48d368f library/train_util.py:2455-2492, 2534-2539."""
    content = parse_toml((export_view(pets, "kohya") / "kohya.toml").read_text())
    subset = content["datasets"][0]["subsets"][0]
    pictures = sorted(Path(subset["image_dir"]).glob("*.png"))
    masks = sorted(Path(subset["conditioning_data_dir"]).glob("*.*"))
    assert [path.stem for path in pictures] == [path.stem for path in masks] == STEMS
    for picture, mask in zip(pictures, masks, strict=True):
        assert Image.open(picture).size == Image.open(mask).size
        assert picture.with_suffix(content["general"]["caption_extension"]).read_text().splitlines()[0] == CAPTION


def test_ai_toolkit(pets):
    """ostris/ai-toolkit@27a03a9 toolkit/data_loader.py:427-445: the folder is walked with all below it."""
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load((export_view(pets, "ai-toolkit") / "ai-toolkit.yaml").read_text())
    dataset = content["config"]["process"][0]["datasets"][0]
    walked = [path for path in Path(dataset["folder_path"]).rglob("*") if path.suffix in (".png", ".jpg", ".webp")]
    assert sorted(path.stem for path in walked) == STEMS and dataset["buckets"] is True
    for path in walked:
        assert path.with_suffix(f".{dataset['caption_ext']}").read_text().strip() == CAPTION
        assert (Path(dataset["mask_path"]) / path.name).is_file()


def test_onetrainer(pets):
    """Nerogar/OneTrainer@23df383 modules/dataLoader/mixin/DataLoaderText2ImageMixin.py:70-125."""
    concept = json.loads((export_view(pets, "onetrainer") / "concepts.json").read_text())[0]
    folder = Path(concept["path"])
    pictures = [path for path in folder.glob("*.png") if not path.stem.endswith(("-masklabel", "-condlabel"))]
    assert sorted(path.stem for path in pictures) == STEMS and concept["text"]["prompt_source"] == "sample"
    for path in pictures:
        assert path.with_suffix(".txt").read_text().splitlines() == [CAPTION, "a cat with a bird"]
        assert (folder / f"{path.stem}-masklabel.png").is_file()


def test_simpletuner(pets):
    """bghira/SimpleTuner@bc8e6ab documentation/DATALOADER.md."""
    backends = json.loads((export_view(pets, "simpletuner") / "multidatabackend.json").read_text())
    pictures, masks, text = backends
    assert pictures["conditioning_data"] == [masks["id"]] and text["default"] and pictures["repeats"] == 0
    labels = np.asarray(Image.open(pets / "instances/000001.png"))
    boxes = json.loads((Path(pictures["instance_data_dir"]) / "000001.bbox").read_text())
    for number, entry in enumerate(boxes, start=1):
        down, across = np.nonzero(labels == number)
        expected = [across.min() / 96, down.min() / 64, (across.max() + 1) / 96, (down.max() + 1) / 64]
        assert entry["bbox"] == pytest.approx(expected, abs=1e-6)
    assert [entry["label"] for entry in boxes] == ["cat", "bird"]


def test_musubi_and_edit_refer_to_another_photograph_where_there_is_one(pets):
    """kohya-ss/musubi-tuner@30c658c docs/dataset_config.md: `<stem>_0.png`, `<stem>_1.png` of the control folder."""
    musubi = export_view(pets, "musubi")
    content = parse_toml((musubi / "musubi.toml").read_text())["datasets"][0]
    controls = sorted(path.name for path in Path(content["control_directory"]).iterdir())
    assert controls == sorted(f"{stem}_{number}.png" for stem in STEMS for number in (0, 1))
    edit = export_view(pets, "edit")
    rows = [json.loads(line) for line in (edit / "metadata.jsonl").read_text().splitlines()]
    assert rows[0]["same_source"] == [False, True]  # two photographs of the cat, one of the bird
    assert rows[0]["text"] == "put the cat of picture 1 and the bird of picture 2 in a wood"
    # scene 1 shows the first cat (60 of green) and refers to the second (150), scene 2 the other way round
    greens = [np.asarray(Image.open(edit / row["references_file_names"][0]))[..., 1] for row in rows[:2]]
    assert [int(np.median(green[len(green) // 2, 14:20])) for green in greens] == [150, 60]
    first = Image.open(edit / rows[0]["references_file_names"][0]).size
    assert (
        Image.open(edit / rows[0]["cond_image_file_name"]).width
        == 2 * Image.open(edit / rows[0]["cond_image_file_name"]).height
    )
    assert first[0] == first[1]


def test_layers_give_the_picture(pets):
    out = export_view(pets, "layers")
    assert parse_toml((out / "layers.toml").read_text())["datasets"][0]["multiple_target"] is True
    canvas = Image.open(out / "images/000002_1.png")
    for number in (2, 3):
        canvas = Image.alpha_composite(canvas, Image.open(out / f"images/000002_{number}.png"))
    picture = np.asarray(Image.open(out / "images/000002.png")).astype(int)
    assert abs(np.asarray(canvas.convert("RGB")) - picture).max() <= 3


@pytest.mark.filterwarnings("ignore")
def test_diffusers(pets, tmp_path):
    datasets = pytest.importorskip("datasets")
    out = export_view(pets, "diffusers")
    table = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(table) == 4 and set(table.column_names) == {"image", "text"} and table[0]["text"] == CAPTION


def test_custom_diffusion_folders_hold_pictures_alone(pets):
    """huggingface/diffusers@58eb52c examples/custom_diffusion/train_custom_diffusion.py:200-210 opens every file."""
    concepts = json.loads((export_view(pets, "custom-diffusion") / "concepts_list.json").read_text())
    assert [concept["instance_prompt"] for concept in concepts] == ["a photo of <new1> cat and <new2> bird"]
    opened = [Image.open(path).size for path in Path(concepts[0]["instance_data_dir"]).iterdir()]
    assert opened == [(96, 64)] * 4


def test_comfyui_loads_the_pictures_and_their_captions_alone(pets):
    """comfyanonymous/ComfyUI@a125cd84 comfy_extras/nodes_train.py:309-336, on the set's own pictures, the view and its folder."""
    for folder in (pets / "images", export_view(pets, "comfyui"), export_view(pets, "comfyui") / "images"):
        endings, files = (".png", ".jpg", ".jpeg", ".webp"), []
        for item in sorted(os.listdir(folder)):
            path = os.path.join(folder, item)
            if item.lower().endswith(endings):
                files.append(path)
            elif os.path.isdir(path):
                files += [os.path.join(path, name) for name in os.listdir(path) if name.lower().endswith(endings)]
        captions = [Path(file.replace(os.path.splitext(file)[1], ".txt")).read_text().strip() for file in files]
        assert captions == [CAPTION] * 4


def test_coco(pets):
    coco = pytest.importorskip("pycocotools.coco").COCO(str(export_view(pets, "coco") / "annotations/instances.json"))
    assert len(coco.getImgIds()) == 4 and len(coco.getAnnIds()) == 8


def test_what_cannot_be_exported(pets, tmp_path):
    with pytest.raises(BestiaryError, match="no view for 'x': choose kohya"):
        export_view(pets, "x")
    with pytest.raises(BestiaryError, match="is not a set of scenes"):
        export_view(tmp_path, "kohya")
    with pytest.raises(BestiaryError, match=r"holds '\.png' in its path"):
        export_view(pets, "kohya", tmp_path / "my.pngs")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(BestiaryError, match="holds files that no export wrote"):
        export_view(pets, "kohya", tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").read_text() == "x"


def test_views_written_before_a_set_was_scored_stay_right(pets):
    views = {kind: export_view(pets, kind) for kind in KINDS}
    scored = SceneSet(pets)
    for record in list(read_records(pets)):
        scored.rescore(record, {"cp": 0.5, "ti": 0.2})
    scored.finish()
    assert verify_set(pets) == []
    assert {kind: [*verify_set(folder), *verify_set(pets, kind)] for kind, folder in views.items()} == {
        kind: [] for kind in KINDS
    }
