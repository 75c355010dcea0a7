"""`bestiary import gen4gen` on procedural replicas of the published trees."""

from pathlib import Path

import numpy as np
import pytest
from bestiary.trainer.__main__ import main
from PIL import Image

COLOR = np.full((64, 64, 3), (200, 120, 40), np.uint8)
SCENE = "cat_houseplant_2objs"


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def trees(tmp_path: Path) -> Path:
    y, x = np.mgrid[:64, :64]
    mask = ((20 - np.hypot(x - 30, y - 34)).clip(-2, 2) / 4 + 0.5) * 252
    root = tmp_path / "gen4gen"
    for name, stem in (("cat1", "a.b"), ("cat1", "c"), ("houseplant", "x y")):
        save(root / "s0_source_images" / SCENE / name / f"{stem}.jpg", COLOR)
        base = root / "s1_segmented_foreground" / SCENE / name
        save(base / f"{stem}_result_mask_isnet.png", mask)
        save(base / f"{stem}_result_foreground_isnet.png", mask[..., None] / 255 * COLOR)
    place = root / "s2_object_compositions/3_cat+houseplant"
    save(place / "img_000101.png", mask[..., None] / 255 * COLOR)
    save(place / "mask_000101.png", mask)
    return root


def run(source: Path, out: Path) -> int:
    return main(["import", "gen4gen", str(source), "--out", str(out)])


def test_all_stages_become_subjects_a_recipe_and_compositions(trees, tmp_path, capsys) -> None:
    out = tmp_path / "mine"
    assert run(trees, out) == 0
    assert "3 cut-outs, 1 compositions" in capsys.readouterr().out
    files = sorted(path.relative_to(out / SCENE).as_posix() for path in (out / SCENE).rglob("*.png"))
    assert files == ["cat1/a b.png", "cat1/c.png", "houseplant/x y.png"]
    cutout = np.asarray(Image.open(out / SCENE / "cat1/c.png"))
    solid = cutout[..., 3] == 255
    # colours that were multiplied by alpha are straight again
    assert solid.any() and abs(cutout[solid][:, :3].astype(int) - (200, 120, 40)).max() <= 2
    composition = np.asarray(Image.open(out / "compositions/3_cat+houseplant/img_000101.png"))
    assert composition.shape == (64, 64, 4) and set(np.unique(composition[..., 3])) == {0, 255}
    assert (out / "compositions/3_cat+houseplant/img_000101.txt").read_text() == "a photo of a cat and a houseplant\n"
    # the recipe builds a set at once
    built = ["scenes", "build", str(out / f"{SCENE}.toml"), "--out", str(tmp_path / "set"), "--count", "2"]
    assert main([*built, "--progress", "off"]) == 0
    assert (tmp_path / "set/images/000001.txt").read_text() in (
        "a photo of a cat and a houseplant\n",
        "a photo of a houseplant and a cat\n",
    )
    assert main(["scenes", "verify", str(tmp_path / "set")]) == 0


@pytest.mark.parametrize(
    ("stage", "recipes"), [("s0_source_images", 1), ("s1_segmented_foreground", 1), ("s2_object_compositions", 0)]
)
def test_one_stage_alone_is_known_by_its_tree(trees, tmp_path, stage, recipes) -> None:
    out = tmp_path / "mine"
    assert run(trees / stage, out) == 0
    assert len(list(out.glob("*.toml"))) == recipes
    assert bool(list(out.glob("compositions/**/*.png"))) is (stage == "s2_object_compositions")
    if stage == "s0_source_images":
        assert str(trees / stage / SCENE / "cat1") in (out / f"{SCENE}.toml").read_text()


def test_faults_of_the_import(trees, tmp_path, fails, capsys) -> None:
    out = tmp_path / "mine"
    (tmp_path / "empty").mkdir()
    fails(["import", "gen4gen", str(tmp_path / "empty"), "--out", str(out)], "is not a folder of Gen4Gen")
    fails(["import", "gen4gen", str(tmp_path / "none")], "no folder")
    cat = trees / "s1_segmented_foreground" / SCENE / "cat1"
    (cat / "c_result_mask_isnet.png").write_bytes(b"x")
    assert run(trees, out) == 0
    assert "c_result_foreground_isnet.png" in capsys.readouterr().err
    fails(["import", "gen4gen", str(trees), "--out", str(out)], "is not empty")
