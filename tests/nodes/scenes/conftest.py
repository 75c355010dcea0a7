"""Subjects that the tests of scenes share: an ellipse and a square with exact masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image


def _ball(width: int = 60, height: int = 40) -> np.ndarray:
    """Straight RGBA `(h, w, 4)` of an ellipse with a soft edge, on a canvas that is larger than it."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot((x - width / 2) / (width / 2 - 4), (y - height / 2) / (height / 2 - 4))
    alpha = ((1 - distance) * 12 + 0.5).clip(0, 1)
    picture = np.zeros((height, width, 4), np.uint8)
    picture[..., :3], picture[..., 3] = (40, 90, 200), np.round(alpha * 255)
    return picture


def _box(edge: int = 40) -> np.ndarray:
    """Straight RGBA `(h, w, 4)` of a square with some margin."""
    picture = np.zeros((edge, edge, 4), np.uint8)
    picture[..., :3] = (200, 60, 40)
    picture[5:-5, 8:-8, 3] = 255
    return picture


def _as_image(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture)[None].float() / 255


@pytest.fixture(scope="session")
def ball() -> np.ndarray:
    """Straight RGBA `(40, 60, 4)` of an ellipse with a soft edge."""
    return _ball()


@pytest.fixture(scope="session")
def box() -> np.ndarray:
    """Straight RGBA `(40, 40, 4)` of a square of 24 x 30 pixels."""
    return _box()


@pytest.fixture(scope="session")
def ball_image() -> torch.Tensor:
    """The ball as `(1, H, W, 4)` in 0..1."""
    return _as_image(_ball())


@pytest.fixture(scope="session")
def box_image() -> torch.Tensor:
    """The box likewise."""
    return _as_image(_box())


@pytest.fixture(scope="session")
def pair() -> object:
    """A ball and a box, by their own alpha: what a BESTIARY_SUBJECTS socket carries."""
    from bestiary.nodes.scenes.subject_making import added, subjects_of_images

    first = added(None, subjects_of_images(_as_image(_ball()), None, "ball", "blue ball", "medium", "ground"))
    return added(first, subjects_of_images(_as_image(_box()), None, "box", "", "medium", "ground"))


@pytest.fixture(scope="module")
def pair_files(server) -> list[str]:
    """The same two as files in the server's input folder."""
    for name, picture in (("ball.png", _ball()), ("box.png", _box())):
        Image.fromarray(picture).save(server.folder / "input" / name)
    return ["ball.png", "box.png"]
