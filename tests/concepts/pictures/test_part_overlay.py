"""Tests of overlays: fixed distinct colours, soft edges, legends that fit."""

import numpy as np
import pytest
import torch
from bestiary.concepts.pictures.part_overlay import LegendEntry, add_legend, draw_parts, enlarged, part_color
from PIL import Image


def halves(width: int, height: int) -> torch.Tensor:
    """Areas (3, H, W): part 0 left, part 1 right, background 2 nowhere."""
    areas = torch.zeros(3, height, width)
    areas[0, :, : width // 2], areas[1, :, width // 2 :] = 1, 1
    return areas


def test_colours_of_parts_are_fixed_and_distinct():
    colors = [part_color(part) for part in range(14)]
    assert colors[:2] == [(230, 85, 60), (64, 130, 214)]
    distances = [np.abs(np.subtract(a, b)).sum() for i, a in enumerate(colors) for b in colors[:i]]
    assert min(distances) >= 24
    assert min(distances[: 10 * 9 // 2]) >= 60
    assert all(0 <= channel <= 255 for part in range(300) for channel in part_color(part))


def test_parts_wear_their_colour_over_a_grey_picture():
    green = Image.new("RGB", (20, 10), (0, 200, 0))
    shown = np.asarray(draw_parts(green, halves(20, 10), 2)).astype(int)
    light = 0.587 * 200
    for part, column in ((0, 3), (1, 16)):
        expected = 0.45 * light + 0.55 * np.array(part_color(part))
        assert np.abs(shown[5, column] - expected).max() <= 1


def test_the_background_is_faded_and_has_no_colour():
    areas = torch.zeros(3, 10, 20)
    areas[2] = 1
    shown = np.asarray(draw_parts(Image.new("RGB", (20, 10), (200, 20, 20)), areas, 2)).astype(int)
    assert np.ptp(shown, axis=2).max() == 0 and shown.min() > 170


def test_an_edge_lies_between_its_two_parts():
    areas = torch.zeros(3, 1, 3)
    areas[:, 0] = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0], [0, 0, 0]])
    shown = np.asarray(draw_parts(Image.new("RGB", (3, 1)), areas, 2)).astype(int)[0]
    mixed = (shown[0] + shown[2]) / 2
    assert np.abs(shown[1] - (mixed * 0.45 + 255 * 0.55)).max() <= 2  # with the pale seam over it


@pytest.mark.parametrize(
    ("size", "expected"),
    [((128, 128), (512, 512)), ((100, 60), (600, 360)), ((512, 300), (512, 300)), ((1, 1), (512, 512))],
)
def test_small_pictures_are_enlarged_by_whole_factors(size, expected):
    assert enlarged(Image.new("RGB", size)).size == expected


def test_the_legend_leaves_the_picture_as_it_is():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 512, 3), dtype=np.uint8))
    (sheet,) = add_legend([picture], [[LegendEntry(part_color(0), "head")]])
    assert sheet.width == 512 and sheet.height > 300
    assert sheet.crop((0, 0, 512, 300)).tobytes() == picture.tobytes()
    strip = np.asarray(sheet.crop((0, 300, 512, sheet.height))).reshape(-1, 3)
    assert (strip == part_color(0)).all(axis=1).any()  # the swatch
    assert (strip.max(axis=1) < 60).any()  # the name


def test_legends_of_a_batch_have_one_size():
    pictures = [Image.new("RGB", (512, 512))] * 2
    long = [LegendEntry(part_color(part), f"a rather long name {part}") for part in range(9)]
    sheets = add_legend(pictures, [long[:1], long])
    assert sheets[0].size == sheets[1].size
    single = add_legend(pictures[:1], [long[:1]])[0]
    assert single.height < sheets[0].height


def test_what_is_not_shown_is_an_empty_swatch_and_names_are_cut():
    def ink(entry: LegendEntry) -> int:
        (sheet,) = add_legend([Image.new("RGB", (512, 64))], [[entry]])
        return int((np.asarray(sheet)[64:] == entry.color).all(axis=2).sum())

    assert ink(LegendEntry((230, 85, 60), "head", faint=True)) < ink(LegendEntry((230, 85, 60), "head")) / 2
    long = [
        add_legend([Image.new("RGB", (512, 64))], [[LegendEntry((0, 0, 0), "x" * n)]])[0].tobytes() for n in (60, 80)
    ]
    assert long[0] == long[1]


def test_no_entries_leave_a_narrow_strip():
    (sheet,) = add_legend([Image.new("RGB", (512, 64))], [[]])
    assert 64 < sheet.height < 80
