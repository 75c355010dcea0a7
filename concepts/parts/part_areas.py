"""Part maps brought back to the picture: from labels on a patch grid to soft areas over all pixels.

Letters: N pictures, M parts, (h, w) patch grid, (H, W) pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..square_fit import Box

_EDGE = 24.0
"""How sharply areas meet: about a tenth of a patch lies between a quarter and three quarters."""


def part_areas(labels: Tensor, num_parts: int, background: int, size: tuple[int, int], box: Box) -> Tensor:
    """Share of every part in every pixel `(M, H, W)` float 0..1, summing to 1, of one picture.

    Args:
        labels: `(h, w)` on a grid that covers the box.
        background: part that owns all pixels outside the box.
        size: (H, W) of the picture.
        box: the part of the picture that the grid covers (`square_fit.seen_box`).
    """
    one_hot = F.one_hot(labels.long(), num_parts).permute(2, 0, 1).float()  # (M, h, w)
    places, inside = _places(size, box, labels.device)
    # patches as smooth hills: a pixel belongs to the part that is highest there, softly where two meet
    hills = F.grid_sample(one_hot[None], places[None], mode="bicubic", padding_mode="border", align_corners=False)[0]
    areas = torch.softmax(hills * _EDGE, dim=0)  # (M, H, W)
    # the softmax leaves a little even to parts that the labels do not name: it is taken from them
    present = one_hot.flatten(1).any(dim=1).view(-1, 1, 1)
    areas = areas * present / (areas * present).sum(dim=0)
    outside = F.one_hot(torch.tensor(background), num_parts).view(-1, 1, 1).to(areas)  # (M, 1, 1)
    return torch.where(inside, areas, outside)


def patch_shares(mask: Tensor, grid: tuple[int, int], box: Box) -> Tensor:
    """The other way: share of a mask `(H, W)` 0..1 in every patch `(h, w)` of a grid that covers the box."""
    h, w = grid
    left, top, right, bottom = box
    # each patch is the mean over 8 x 8 points inside it
    x = left + (torch.arange(w * 8) + 0.5) / (w * 8) * (right - left)
    y = top + (torch.arange(h * 8) + 0.5) / (h * 8) * (bottom - top)
    columns = x.long().clamp(0, mask.shape[1] - 1)
    rows = y.long().clamp(0, mask.shape[0] - 1)
    points = mask[rows[:, None], columns[None, :]].float()  # (8 h, 8 w)
    return F.avg_pool2d(points[None], 8)[0]  # (h, w)


def _places(size: tuple[int, int], box: Box, device: torch.device) -> tuple[Tensor, Tensor]:
    """Place of every pixel's centre on the grid (H, W, 2), -1..1 across the box, and which lie inside it (H, W)."""
    height, width = size
    left, top, right, bottom = box
    x = (torch.arange(width, device=device) + 0.5 - left) / (right - left) * 2 - 1
    y = (torch.arange(height, device=device) + 0.5 - top) / (bottom - top) * 2 - 1
    places = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)  # (H, W, 2), x first
    return places, (places.abs() <= 1).all(dim=-1)
