"""Small subjects with exact alpha; a small set of drawn scenes, and what it is made of."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bestiary.scenes.backgrounds import make_background
from bestiary.scenes.collage import CollageOptions, compose
from bestiary.scenes.scene_captions import scene_caption, token_caption
from bestiary.scenes.scene_layout import Placement, SceneLayout
from bestiary.scenes.scene_set import SceneEntry, SceneSet, scene_key
from bestiary.scenes.subject import PictureSource, Subject

STEMS = ("000001", "000002", "000003", "000004")
Maker = Callable[..., Subject]


@pytest.fixture(scope="session")
def make_subject() -> Maker:
    """Makes an opaque rectangle with a name and an aspect; its longer side has 40 pixels."""

    def make(name: str, aspect: float = 1.0, **fields: object) -> Subject:
        height, width = round(40 * min(1.0, 1 / aspect)), round(40 * min(1.0, aspect))
        return Subject(name, np.full((height, width, 4), 255, np.uint8), **fields)

    return make


def _drawn(name, words, color, width, height, photo):
    y, x = np.mgrid[: height * 4, : width * 4] + 0.5
    inside = ((x / width / 2 - 1) ** 2 + (y / height / 2 - 1) ** 2 <= 1).reshape(height, 4, width, 4).mean(axis=(1, 3))
    cutout = np.zeros((height, width, 4), np.uint8)
    cutout[..., :3], cutout[..., 3] = color, np.round(inside * 255)
    parts = np.where(np.arange(width) < width // 2, 0, 1)[None].repeat(height, 0).astype(np.uint8)
    source = PictureSource(f"{name}_{photo}.jpg", f"{name[0]}{photo}" * 32, "CC0", "Ann | Bob")
    return Subject(name, cutout, words, parts=parts if name == "cat" else None, source=source)


@pytest.fixture
def pool():
    """Two pictures of a cat (with parts), one of a bird with tokens."""
    return {
        "cat": [_drawn("cat", "", (200, 60 + 90 * photo, 40), 30, 24 + 4 * photo, photo) for photo in (0, 1)],
        "wren": [_drawn("wren", "<head:3> bird", (30, 80, 200), 20, 26, 0)],
    }


@pytest.fixture
def write_scene(pool):
    """Writes scene number `index` into an open set, unless it is there; returns whether it was made."""

    def write(scene_set: SceneSet, index: int) -> bool:
        subjects = [pool["cat"][index % 2], pool["wren"][0]]
        left, right = Placement("cat", 8 + index, 20, 30, 24), Placement("wren", 34, 24, 20, 26, z=1, turn=5 * index)
        layout = SceneLayout(96, 64, (left, right), seed=index)
        background = make_background("noise", 96, 64, 5, index=index)
        options = CollageOptions()
        key = scene_key(subjects, layout, background.pixels, options, {"place": "in a wood"})
        if scene_set.is_finished(STEMS[index], key):
            return False
        text, prompt = scene_caption(subjects, "in a wood"), token_caption(subjects, "in a wood")
        scene = compose(subjects, layout, background.pixels, options)
        entry = SceneEntry(scene, text, options, prompt, ("a cat with a bird",), "in a wood", scores={"hidden": 0.25})
        scene_set.write(STEMS[index], entry, key)
        return True

    return write


@pytest.fixture
def copy_set(build, tmp_path_factory):
    """Copies a set that was built once to a folder; returns the folder."""

    def copy(folder: Path, count: int = len(STEMS)) -> Path:
        if count not in _BUILT:
            _BUILT[count] = build(tmp_path_factory.mktemp("built") / "pets", count)
        shutil.copytree(_BUILT[count], folder)
        return folder

    return copy


_BUILT: dict[int, Path] = {}


@pytest.fixture
def build(write_scene):
    """Builds the whole set in a folder; returns the folder."""

    def build(folder: Path, count: int = len(STEMS)) -> Path:
        scene_set = SceneSet(folder)
        for index in range(count):
            write_scene(scene_set, index)
        scene_set.finish(STEMS[:count])
        return folder

    return build
