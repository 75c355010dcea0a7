"""A procedural replica of the published trees: foregrounds as `mask / 255 * image` cut to 8 bits, masks 250 to 254 inside."""

import hashlib

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.import_gen4gen import (
    object_words,
    read_compositions,
    read_cutouts,
    read_photographs,
    straight_colors,
)
from PIL import Image

SCENE = "cat_cat_potted plant_3objs"


def soft_mask(size=64, inside=252):
    y, x = np.mgrid[:size, :size]
    distance = 20 - np.hypot(x - 30, y - 34)
    return (distance.clip(-2, 2) / 4 + 0.5) * inside


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels).astype(np.uint8)).save(path)


@pytest.fixture
def trees(tmp_path):
    color = np.full((64, 64, 3), (200, 120, 40), np.uint8)
    for name, stem in [("cat1", "a.b"), ("cat2", "a"), ("potted_plant", "x y"), ("dog", "empty")]:
        mask = soft_mask().astype(np.uint8) if name != "dog" else np.full((64, 64), 100, np.uint8)
        save(tmp_path / "s0" / SCENE / name / f"{stem}.jpg", color)
        base = tmp_path / "s1" / SCENE / name / stem
        save(base.with_name(f"{stem}_result_mask_isnet.png"), mask)
        save(base.with_name(f"{stem}_result_foreground_isnet.png"), mask[..., None] / 255 * color)
    place = tmp_path / "s2" / "3_cat+potted-plant"
    for number in (0, 101):
        save(place / f"img_{number:06d}.png", soft_mask()[..., None] / 255 * color)
        save(place / f"mask_{number:06d}.png", soft_mask())
    return tmp_path


def test_cutouts_keep_their_names_and_get_their_colours_back(trees):
    found, skipped = read_cutouts(trees / "s1", trees / "s0")
    assert [(scene, subject.name, subject.words) for scene, subject in found] == [
        (SCENE, "cat", "cat"),
        (SCENE, "cat 2", "cat"),
        (SCENE, "potted plant", "potted plant"),
    ]
    for _, subject in found:
        alpha = subject.cutout[..., 3].astype(int)
        # cut off to 8 bits by the reference, so a colour is known to 255 / alpha
        error = abs(subject.cutout[..., :3].astype(float) - (200, 120, 40)).max(axis=-1)
        assert (error[alpha > 0] <= 255 / alpha[alpha > 0] + 0.5).all()
        assert alpha.max() == 255 and (alpha >= 128).sum() == (soft_mask().astype(np.uint8) >= 128).sum()
        assert alpha[0].any() and alpha[-1].any() and alpha[:, 0].any() and alpha[:, -1].any()
    source = found[0][1].source
    assert source.file.endswith("cat1/a.b.jpg")
    assert source.sha256 == hashlib.sha256((trees / "s0" / SCENE / "cat1" / "a.b.jpg").read_bytes()).hexdigest()
    assert len(skipped) == 1 and "no pixel is half white or more" in skipped[0].reason


def test_without_photographs_the_cutout_is_the_source(trees):
    found, _ = read_cutouts(trees / "s1")
    assert found[0][1].source.file.endswith("a.b_result_foreground_isnet.png")


def test_photographs(trees):
    found = read_photographs(trees / "s0")
    assert [(photo.scene, photo.name, photo.words) for photo in found] == [
        (SCENE, "cat1", "cat"),
        (SCENE, "cat2", "cat"),
        (SCENE, "dog", "dog"),
        (SCENE, "potted_plant", "potted plant"),
    ]


def test_compositions(trees):
    found = list(read_compositions(trees / "s2"))
    assert [made.path.name for made in found] == ["img_000000.png", "img_000101.png"]
    assert found[0].names == ("cat", "potted plant") and found[0].picture.shape == (64, 64, 3)
    assert found[0].mask.dtype == bool and found[0].mask.sum() == (soft_mask().astype(np.uint8) >= 128).sum()


def test_straight_colors():
    alpha = np.array([[0, 128, 255]], np.uint8)
    assert straight_colors(np.full((1, 3, 3), 100, np.uint8), alpha)[0, :, 0].tolist() == [0, 199, 100]


@pytest.mark.parametrize(("name", "words"), [("cat1", "cat"), ("teddy_bear_2", "teddy bear"), ("7", "7")])
def test_object_words(name, words):
    assert object_words(name) == words


def test_broken_files_among_good_ones_are_skipped_with_a_reason(trees):
    place = trees / "s1" / SCENE / "cat1"
    (place / "a.b_result_mask_isnet.png").unlink()
    (trees / "s1" / SCENE / "cat2" / "a_result_foreground_isnet.png").write_bytes(b"no")
    save(trees / "s1" / SCENE / "potted_plant" / "x y_result_mask_isnet.png", np.zeros((5, 5)))
    found, skipped = read_cutouts(trees / "s1")
    assert found == [] and len(skipped) == 4
    assert "cannot be read" in skipped[0].reason and "is (5, 5) pixels" in skipped[3].reason


@pytest.mark.parametrize("read", [read_photographs, read_cutouts, lambda folder: list(read_compositions(folder))])
def test_folders_of_something_else(read, tmp_path):
    with pytest.raises(BestiaryError, match="give the folder of that stage of Gen4Gen"):
        read(tmp_path)


def test_a_composition_without_a_mask_of_its_size(trees):
    save(trees / "s2" / "3_cat+potted-plant" / "mask_000000.png", np.zeros((5, 5)))
    with pytest.raises(BestiaryError, match=r"is \(5, 5\) pixels, and its picture \(64, 64\)"):
        list(read_compositions(trees / "s2"))
