"""Heat maps: bright where the token looked, dim elsewhere, whatever the scale of the weights."""

import numpy as np
import torch
from bestiary.trainer.learning.pictures.heat_maps import heat_map
from PIL import Image


def _corner_map() -> torch.Tensor:
    weights = torch.zeros(8, 8)
    weights[:2, :2] = 1
    return weights


def test_glow_is_where_the_weight_is():
    shown = np.asarray(heat_map(Image.new("RGB", (64, 64), (90, 90, 90)), _corner_map(), size=64)).mean(-1)
    assert shown.shape == (64, 64)
    assert shown[:12, :12].mean() > shown[32:, 32:].mean() + 60


def test_scale_and_offset_of_the_weights_do_not_matter():
    picture = Image.new("RGB", (64, 64), (90, 90, 90))
    ours = np.asarray(heat_map(picture, _corner_map(), 64)).astype(int)
    scaled = np.asarray(heat_map(picture, _corner_map() * 1e-4 + 3e-4, 64)).astype(int)
    assert abs(ours - scaled).max() <= 2


def test_even_weights_glow_nowhere():
    shown = np.asarray(heat_map(Image.new("RGB", (32, 32), (90, 90, 90)), torch.full((8, 8), 0.3), 32))
    assert (shown == shown[0, 0]).all()
