"""Mirrored crops as second views of some pictures, so that learned parts do not depend on position, size and direction of
the object.

Letters: V views, N pictures, S edge in pixels, (h, w) patch grid, D channels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.patch_features import FeatureSource, PatchGrid

MOST_VIEWS = 128
_SMALLEST, _LARGEST = 0.6, 0.9
"""Edge of a crop, as a share of the edge of its picture."""
_AT_ONCE = 8


@dataclass(frozen=True)
class SampleViews:
    """Views of pictures, with the origin of each of their patches."""

    grid: PatchGrid
    """Features `(V, h, w, D)`."""
    picture: Tensor
    """`(V,)` long: the picture each view is of."""
    place: Tensor
    """`(V, h, w)` long, 0 to h * w - 1: the patch of the picture at each patch of the view."""

    def carried(self, maps: Tensor) -> Tensor:
        """Values of the pictures' maps `(N, h, w)` at the patches of the views, `(V, h, w)`."""
        return maps.flatten(1)[self.picture].gather(1, self.place.flatten(1)).view(self.place.shape)


def viewed_pictures(count: int) -> list[int]:
    """Which of `count` pictures get a second view: at most `MOST_VIEWS`, evenly spread."""
    return torch.linspace(0, count - 1, min(count, MOST_VIEWS)).round().long().tolist()


def look_again(pictures: Iterable[tuple[int, Tensor]], source: FeatureSource, *, seed: int) -> SampleViews | None:
    """Describe a window of every picture, mirrored, as large as the picture itself; None of no picture.

    Args:
        pictures: number and image `(3, S, S)` in 0..1 of each.
        seed: of the windows; each has 60 to 90 % of its picture's edge.
    """
    generator = torch.Generator().manual_seed(seed)
    waiting: list[Tensor] = []
    grids: list[PatchGrid] = []
    numbers: list[int] = []
    windows: list[tuple[float, float, float]] = []
    for number, image in pictures:
        size = image.shape[-1]
        share, y, x = torch.rand(3, generator=generator).tolist()
        edge = round(size * (_SMALLEST + (_LARGEST - _SMALLEST) * share))
        top, left = round(y * (size - edge)), round(x * (size - edge))
        window = image[:, top : top + edge, left : left + edge].flip(-1)
        waiting.append(F.interpolate(window[None], size=(size, size), mode="bicubic", antialias=True)[0].clamp(0, 1))
        numbers.append(number)
        windows.append((top / size, left / size, edge / size))
        if len(waiting) == _AT_ONCE:
            grids.append(source(torch.stack(waiting)).rounded())
            waiting = []
    if waiting:
        grids.append(source(torch.stack(waiting)).rounded())
    if not grids:
        return None
    grid = PatchGrid.joined(grids)
    h, w = grid.features.shape[1:3]
    places = torch.stack([_places(*window, h, w) for window in windows])
    return SampleViews(grid, torch.tensor(numbers), places)


def _places(top: float, left: float, edge: float, h: int, w: int) -> Tensor:
    """Patches of a picture `(h, w)` long under the middles of the patches of its mirrored window."""
    rows = ((top + edge * (torch.arange(h) + 0.5) / h) * h).long().clamp(0, h - 1)
    columns = ((left + edge * (torch.arange(w) + 0.5) / w) * w).long().clamp(0, w - 1)
    return rows.unsqueeze(1) * w + columns.flip(0)
