"""Upsampling of part maps: from labels on a patch grid to soft areas over all pixels.

Letters: N pictures, M parts, (h, w) patch grid, (H, W) pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pictures.square_fit import Box

_EDGE = 24.0
"""Sharpness of boundaries: the share rises from 1/4 to 3/4 within about a tenth of a patch."""


def part_areas(labels: Tensor, num_parts: int, background: int, size: tuple[int, int], box: Box) -> Tensor:
    """Share of every part in every pixel `(M, H, W)` float 0..1, summing to 1, of one picture.

    Args:
        labels: `(h, w)` on a grid that covers the box.
        background: part that owns all pixels outside the box.
        size: (H, W) of the picture.
        box: the part of the picture that the grid covers (`square_fit.seen_box`).
    """
    one_hot = F.one_hot(labels.long(), num_parts).permute(2, 0, 1).float()  # (M, h, w)
    left, top, right, bottom = box
    rows, row_inside = _cubic(labels.shape[0], size[0], (top, bottom), labels.device)  # (h, H), (H,)
    columns, column_inside = _cubic(labels.shape[1], size[1], (left, right), labels.device)  # (w, W), (W,)
    # patches as smooth hills: a pixel belongs to the part that is highest there, softly where two meet
    hills = rows.T @ (one_hot @ columns)  # (M, H, W)
    # nothing is left to parts that the labels do not name
    absent = ~one_hot.flatten(1).any(dim=1).view(-1, 1, 1)
    areas = torch.softmax(hills.mul_(_EDGE).masked_fill_(absent, -torch.inf), dim=0)  # (M, H, W)
    inside = row_inside[:, None] & column_inside  # (H, W)
    outside = F.one_hot(torch.tensor(background), num_parts).view(-1, 1, 1).to(areas)  # (M, 1, 1)
    return areas if bool(inside.all()) else torch.where(inside, areas, outside)


def patch_shares(mask: Tensor, grid: tuple[int, int], box: Box) -> Tensor:
    """Inverse of the above: share of a mask `(H, W)` 0..1 in every patch `(h, w)` of a grid that covers the box."""
    h, w = grid
    left, top, right, bottom = box
    # each patch is the mean over 8 x 8 points inside it
    x = left + (torch.arange(w * 8) + 0.5) / (w * 8) * (right - left)
    y = top + (torch.arange(h * 8) + 0.5) / (h * 8) * (bottom - top)
    columns = x.long().clamp(0, mask.shape[1] - 1)
    rows = y.long().clamp(0, mask.shape[0] - 1)
    points = mask[rows[:, None], columns[None, :]].float()  # (8 h, 8 w)
    return F.avg_pool2d(points[None], 8)[0]  # (h, w)


def _cubic(cells: int, pixels: int, span: tuple[float, float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Cubic interpolation along one axis whose cells cover a span of pixels.

    Returns:
        weights `(cells, pixels)` of every cell in every pixel, held at the borders, and which pixels `(pixels,)` lie inside.
    """
    start, end = span
    place = (torch.arange(pixels, device=device) + 0.5 - start) / (end - start) * 2 - 1  # -1..1 across the cells
    grid = torch.stack([place, torch.zeros_like(place)], dim=-1)[None, None]  # (1, 1, pixels, 2)
    # every cell alone as a picture one row high
    alone = torch.eye(cells, device=device)[None, :, None]  # (1, cells, 1, cells)
    weights = F.grid_sample(alone, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return weights[0, :, 0], place.abs() <= 1
