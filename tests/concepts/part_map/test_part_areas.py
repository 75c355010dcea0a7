"""Tests of part areas: they lie over the patches they come from, wherever the grid lies in the picture."""

import pytest
import torch
import torch.nn.functional as F
from bestiary.concepts.part_map.part_areas import part_areas, patch_shares
from bestiary.concepts.pictures.square_fit import seen_box


def quarters() -> torch.Tensor:
    """Labels (8, 8): parts 0 and 1 above, 2 and 3 below."""
    labels = torch.zeros(8, 8, dtype=torch.uint8)
    labels[:4, 4:], labels[4:, :4], labels[4:, 4:] = 1, 2, 3
    return labels


def test_areas_of_every_pixel_sum_to_one():
    labels = torch.randint(0, 4, (8, 8), generator=torch.Generator().manual_seed(1))
    areas = part_areas(labels, 5, 4, (50, 70), seen_box(70, 50))
    assert areas.shape == (5, 50, 70)
    assert torch.allclose(areas.sum(0), torch.ones(50, 70), atol=1e-5)
    assert areas.min() >= 0 and areas.max() <= 1


def test_areas_of_a_square_lie_over_their_patches():
    areas = part_areas(quarters(), 5, 4, (64, 64), seen_box(64, 64))
    assert torch.equal(areas.argmax(0), quarters().repeat_interleave(8, 0).repeat_interleave(8, 1).long())
    assert areas.amax(0)[10:20, 10:20].min() > 0.999
    middle = areas[:, 16, 31]
    assert 0.5 < middle[0] < 0.98 and middle[0] + middle[1] > 0.99  # soft where two meet


def test_the_middle_of_an_edge_is_where_both_are_half():
    areas = part_areas(quarters(), 4, 0, (63, 63), seen_box(63, 63))
    assert torch.allclose(areas[0, 10, 31], torch.tensor(0.5), atol=1e-4)
    assert torch.allclose(areas[0], areas[1].flip(1), atol=1e-4)


@pytest.mark.parametrize(("size", "inside"), [((64, 100), (slice(None), slice(18, 82))), ((100, 64), (slice(18, 82),))])
def test_what_the_centre_square_leaves_out_is_background(size, inside):
    areas = part_areas(quarters(), 5, 4, size, seen_box(size[1], size[0]))
    square = part_areas(quarters(), 5, 4, (64, 64), seen_box(64, 64))
    assert torch.allclose(areas[(slice(None), *inside)], square, atol=1e-5)
    outside = torch.ones(size, dtype=torch.bool)
    outside[inside] = False
    assert (areas[4][outside] == 1).all() and (areas[:4, outside] == 0).all()


def test_a_whole_picture_is_covered_to_its_edges():
    areas = part_areas(quarters(), 5, 4, (64, 128), seen_box(128, 64, "whole picture"))
    owner = areas.argmax(0)
    assert [int(owner[0, 0]), int(owner[0, 127]), int(owner[63, 0]), int(owner[63, 127])] == [0, 1, 2, 3]
    assert (owner[:, :64] % 2 == 0).all() and (owner[:, 64:] % 2 == 1).all()


@pytest.mark.parametrize(("size", "fit"), [((45, 61), "centre square"), ((70, 33), "whole picture")])
def test_interpolation_axis_by_axis_is_that_of_the_plane(size, fit):
    labels = torch.randint(0, 3, (6, 6), generator=torch.Generator().manual_seed(2))
    left, top, right, bottom = seen_box(size[1], size[0], fit)
    x = (torch.arange(size[1]) + 0.5 - left) / (right - left) * 2 - 1
    y = (torch.arange(size[0]) + 0.5 - top) / (bottom - top) * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[None]  # (1, H, W, 2)
    hills = F.grid_sample(
        F.one_hot(labels, 3).permute(2, 0, 1)[None].float(),
        grid,
        mode="bicubic",
        padding_mode="border",
        align_corners=False,
    )
    theirs = torch.softmax(24 * hills[0], dim=0)
    inside = (grid[0].abs() <= 1).all(-1)
    ours = part_areas(labels, 4, 3, size, seen_box(size[1], size[0], fit))
    assert torch.allclose(ours[:3, inside], theirs[:, inside], atol=1e-5)


def test_a_part_that_is_not_there_has_no_pixel():
    areas = part_areas(torch.zeros(8, 8, dtype=torch.uint8), 3, 2, (32, 32), seen_box(32, 32))
    assert (areas[0] == 1).all() and (areas[1:] == 0).all()


def test_shares_of_a_mask_are_means_over_the_patches():
    mask = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    ours = patch_shares(mask, (8, 8), seen_box(64, 64))
    theirs = torch.nn.functional.avg_pool2d(mask[None], 8)[0]
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_shares_look_at_the_same_area_as_the_grid():
    mask = torch.zeros(64, 128)
    mask[:, 64:] = 1
    assert patch_shares(mask, (4, 4), seen_box(128, 64)).tolist() == [[0, 0, 1, 1]] * 4
    mask[:, :32] = 1  # outside the centre square
    assert patch_shares(mask, (4, 4), seen_box(128, 64)).tolist() == [[0, 0, 1, 1]] * 4
    assert patch_shares(mask, (4, 4), seen_box(128, 64, "whole picture")).tolist() == [[1, 0, 1, 1]] * 4
