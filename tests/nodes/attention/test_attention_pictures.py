"""Heat maps: bright where the token looked, the picture still to be seen, names and scales below."""

import numpy as np
import pytest
import torch
from bestiary.nodes.attention.attention_pictures import (
    LEAST_EDGE,
    OVERVIEW_EDGE,
    blank_picture,
    heat_frame,
    overview,
    percent,
    picture_of,
    plain_frame,
    resized_weights,
    stretched,
)
from PIL import Image


def corner(size: int = 8) -> torch.Tensor:
    weights = torch.zeros(size, size)
    weights[: size // 4, : size // 4] = 1
    return weights


GREY = Image.new("RGB", (64, 64), (90, 90, 90))


def shown(weights: torch.Tensor, opacity: float = 0.6, picture: Image.Image = GREY) -> np.ndarray:
    frame = heat_frame(picture, weights, "head", 0.0, 0.1, opacity)
    return np.asarray(frame)[: picture.height].astype(int)


def test_glow_is_where_the_weight_is():
    light = shown(corner()).mean(-1)
    assert light[:12, :12].mean() > light[32:, 32:].mean() + 80


def test_opacity_0_shows_the_picture_and_1_the_colours_alone():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), "RGB")
    assert abs(shown(corner(), 0.0, noise) - np.asarray(noise)).max() <= 1
    first, second = shown(torch.ones(8, 8), 1.0, noise), shown(torch.ones(8, 8), 1.0, GREY)
    assert abs(first - second).max() <= 1


def test_the_picture_shows_through():
    half = Image.new("RGB", (64, 64), (20, 20, 20))
    half.paste((230, 230, 230), (0, 0, 32, 64))
    light = shown(torch.zeros(8, 8), 0.6, half).mean(-1)
    assert light[:, :30].mean() > light[:, 34:].mean() + 40


def test_colours_grow_lighter_with_the_weight():
    ramp = torch.linspace(0, 1, 64).expand(64, 64)
    light = shown(ramp, 1.0) @ np.array([0.3, 0.59, 0.11])
    assert (np.diff(light.mean(0)) > -0.5).all()


def test_stretched_maps_reach_from_0_to_1_each():
    maps = torch.stack((corner() * 0.02 + 0.01, torch.full((8, 8), 0.3), corner()))
    weights, low, high = stretched(maps)
    assert weights.amin((1, 2)).tolist() == [0, 0, 0]
    assert weights.amax((1, 2)).tolist() == pytest.approx([1, 0, 1])
    assert low.tolist() == pytest.approx([0.01, 0.3, 0])
    assert high.tolist() == pytest.approx([0.03, 0.3, 1])


def test_resized_weights_stay_weights():
    weights = resized_weights(corner()[None], (30, 50))
    assert weights.shape == (1, 30, 50)
    assert weights.min() >= 0 and weights.max() <= 1
    assert weights[0, :5, :9].mean() > 0.9


def test_small_pictures_are_enlarged_and_large_ones_kept():
    assert min(picture_of(torch.zeros(100, 128, 3)).size) == LEAST_EDGE
    assert picture_of(torch.zeros(600, 500, 3)).size == (500, 600)
    assert blank_picture((16, 32)).size == (2 * LEAST_EDGE, LEAST_EDGE)


def test_pictures_keep_their_colours_and_lose_their_alpha():
    pixels = torch.zeros(500, 500, 4)
    pixels[..., 0], pixels[..., 1] = 1.5, 0.5
    assert picture_of(pixels).getpixel((9, 9)) == (255, 128, 0)
    assert picture_of(torch.ones(500, 500, 1)).getpixel((9, 9)) == (255, 255, 255)


def test_the_strip_names_the_part_and_shows_the_scale():
    frames = [heat_frame(GREY.resize((448, 448)), corner(), title, 0.0, 0.1, 0.6) for title in ("head", "wing")]
    below = [np.asarray(frame)[448:].astype(int) for frame in frames]
    assert below[0].shape == below[1].shape
    assert abs(below[0] - below[1]).max() > 100
    # the brightest colour of the scale is there
    assert (abs(below[0] - [253, 236, 160]).max(-1) < 8).any()
    plain = np.asarray(plain_frame(GREY.resize((448, 448)), "picture"))[448:].astype(int)
    assert plain.shape == below[0].shape
    assert not (abs(plain - [253, 236, 160]).max(-1) < 8).any()


def test_long_names_are_cut():
    frames = [np.asarray(plain_frame(GREY.resize((448, 448)), "w" * length)) for length in (100, 200)]
    assert (frames[0] == frames[1]).all()
    # nothing is written on the right margin
    assert frames[0][448:, -10:].max() < 60


def test_an_overview_holds_all_frames_in_rows():
    frames = [Image.new("RGB", (448, 500), (number * 20, 0, 0)) for number in range(6)]
    sheet = overview(frames)
    across = round(448 * OVERVIEW_EDGE / 500)
    assert sheet.width == 3 * (across + 12) + 12
    centres = [
        sheet.getpixel((12 + across // 2 + c * (across + 12), 100 + r * 364))[0] for r in (0, 1) for c in (0, 1, 2)
    ]
    assert centres == [0, 20, 40, 60, 80, 100]
    assert overview(frames[:1]).width == across + 24


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0 %"), (0.0243, "2.4 %"), (2e-8, "under 0.01 %"), (0.0004, "0.04 %")]
)
def test_shares_are_written_plainly(share, text):
    assert percent(share) == text
