"""Positions of patches relative to the object: centred, in units of its size, with all objects facing the same way.

Letters: B pictures, (h, w) patch grid, D channels, F entries of a facing template.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_TEMPLATE_EDGE = 12
_TEMPLATE_REACH = 2.2
_TEMPLATE_CHANNELS = 16
_TEMPLATE_MASK_WEIGHT = 2.0
_SIGN_ROUNDS = 10


@dataclass(frozen=True)
class ObjectFrame:
    """Centre and size of the object in every picture, in patches."""

    row: Tensor
    """`(B,)`."""
    column: Tensor
    """`(B,)`."""
    size: Tensor
    """`(B,)`: standard deviation of its patches along one axis."""


def object_frame(mask: Tensor) -> ObjectFrame:
    """Frame of each mask `(B, h, w)`; pictures without foreground use all patches."""
    # a little weight everywhere: an empty mask gets the picture's centre
    weight = mask.float() + 1e-6
    weight = weight / weight.sum(dim=(1, 2), keepdim=True)
    rows, columns = _rows_and_columns(mask)
    row, column = (weight * rows).sum(dim=(1, 2)), (weight * columns).sum(dim=(1, 2))  # (B,)
    squared = (rows - row.view(-1, 1, 1)).square() + (columns - column.view(-1, 1, 1)).square()
    return ObjectFrame(row, column, ((weight * squared).sum(dim=(1, 2)) / 2).sqrt().clamp_min(0.5))


def places_in_frame(mask: Tensor, facing: Tensor) -> Tensor:
    """Position `(B, h, w, 2)` of every patch relative to the mask of its picture: down and forward, in units of its size.

    Args:
        mask: `(B, h, w)`.
        facing: `(B,)`, 1 or -1 for pictures that face the other way.
    """
    frame = object_frame(mask)
    rows, columns = _rows_and_columns(mask)
    size = frame.size.view(-1, 1, 1)
    down = (rows - frame.row.view(-1, 1, 1)) / size
    forward = (columns - frame.column.view(-1, 1, 1)) / size * facing.view(-1, 1, 1)
    return torch.stack([down, forward], dim=-1)


def asymmetry(features: Tensor, mask: Tensor) -> Tensor:
    """Values `(B, F)` that change sign with mirroring: the framed mask and leading channels minus their mirror image.

    Args:
        features: `(B, h, w, D)`, leading channels first.
        mask: `(B, h, w)`.
    """
    h, w = mask.shape[1:]
    shown = mask.float().unsqueeze(-1)  # (B, h, w, 1)
    # what the template compares: the silhouette, and what lies inside it
    maps = torch.cat([_TEMPLATE_MASK_WEIGHT * shown, features[..., :_TEMPLATE_CHANNELS] * shown], dim=-1)
    frame = object_frame(mask)
    line = torch.linspace(-_TEMPLATE_REACH, _TEMPLATE_REACH, _TEMPLATE_EDGE, device=mask.device)
    y, x = torch.meshgrid(line, line, indexing="ij")  # (e, e)
    # sampling points around each thing, in units of its size
    rows = frame.row.view(-1, 1, 1) + y * frame.size.view(-1, 1, 1)
    columns = frame.column.view(-1, 1, 1) + x * frame.size.view(-1, 1, 1)
    # grid_sample counts -1 to 1 between the picture's outer edges, x first
    grid = torch.stack([(2 * columns + 1) / w - 1, (2 * rows + 1) / h - 1], dim=-1)  # (B, e, e, 2)
    framed = F.grid_sample(maps.permute(0, 3, 1, 2), grid, align_corners=False)  # (B, C, e, e)
    return (framed - framed.flip(-1)).flatten(1)  # (B, F)


def fit_facing(asymmetries: Tensor) -> tuple[Tensor, Tensor]:
    """Find directions so that mirrored objects of one kind face the same way.

    The signs that maximise the norm of the sum of all asymmetries are approximated by those of the leading eigenvector of
    their Gram matrix, then refined one picture at a time. Which direction is forward is arbitrary.

    Args:
        asymmetries: `(B, F)`.

    Returns:
        the template `(F,)` and each picture's sign `(B,)`.
    """
    gram = (asymmetries @ asymmetries.T).double()  # (B, B)
    signs = _signs(torch.linalg.eigh(gram).eigenvectors[:, -1].to(asymmetries.dtype))
    # which way is forward is arbitrary: the first picture's
    signs = signs * signs[0]
    own = asymmetries.square().sum(dim=1)  # (B,)
    for _ in range(_SIGN_ROUNDS):
        # each picture against the sum of all others: its own share is taken off
        template = (signs.unsqueeze(1) * asymmetries).sum(dim=0)
        better = _signs(asymmetries @ template - signs * own)
        if torch.equal(better, signs):
            break
        signs = better
    template = (signs.unsqueeze(1) * asymmetries).mean(dim=0)
    return template / template.norm().clamp_min(1e-9), signs


def facing_of(features: Tensor, mask: Tensor, template: Tensor) -> Tensor:
    """Direction of each picture of `(B, h, w, D)`, 1 or -1 `(B,)`, by a template `(F,)` of `fit_facing`."""
    return _signs(asymmetry(features, mask) @ template)


def _signs(values: Tensor) -> Tensor:
    """1 or -1 for each value, in the shape of `values`; 0 counts as 1."""
    return torch.where(values >= 0, 1.0, -1.0).to(values.dtype)


def _rows_and_columns(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column number of every patch, each `(h, w)`, of masks `(B, h, w)`."""
    h, w = mask.shape[1:]
    rows, columns = torch.meshgrid(
        torch.arange(h, device=mask.device).float(), torch.arange(w, device=mask.device).float(), indexing="ij"
    )
    return rows, columns
