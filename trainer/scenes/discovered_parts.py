"""What a discovery says of pictures that scenes are made of: the foreground, and which part each pixel shows."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...concepts.pictures.square_fit import seen_box
from ...scenes.collage import NO_PART
from ..learning.discovery.discovery_folder import Discovery


class DiscoveredParts:
    """Part maps of a discovery by the picture's file."""

    def __init__(self, folder: Path) -> None:
        """Read a finished discovery.

        Raises:
            BestiaryError: as `Discovery.load`.
        """
        found = Discovery.load(folder, check_images=False)
        self._labels = found.maps.labels.numpy()  # (N, h, w)
        self._background = found.codebook.background
        self._rows = {path.resolve(): row for row, path in enumerate(found.image_paths)}

    def labels(self, path: Path, width: int, height: int) -> NDArray[np.uint8] | None:
        """Part of every pixel `(H, W)` of a picture, `NO_PART` where there is none; None for a picture it does not know."""
        grid = self._grid(path)
        if grid is None:
            return None
        parts = np.where(grid == self._background, NO_PART, grid).astype(np.uint8)  # (h, w)
        return _spread(Image.fromarray(parts), width, height, Image.Resampling.NEAREST, NO_PART)

    def foreground(self, path: Path, width: int, height: int) -> NDArray[np.float32] | None:
        """How far each pixel `(H, W)` in 0..1 belongs to a part; None for a picture it does not know."""
        grid = self._grid(path)
        if grid is None:
            return None
        inside = Image.fromarray(np.where(grid == self._background, 0, 255).astype(np.uint8))
        return _spread(inside, width, height, Image.Resampling.BILINEAR, 0).astype(np.float32) / np.float32(255)

    def _grid(self, path: Path) -> NDArray[np.uint8] | None:
        row = self._rows.get(path.resolve())
        return None if row is None else self._labels[row]


def _spread(grid: Image.Image, width: int, height: int, how: Image.Resampling, outside: int) -> NDArray[np.uint8]:
    """A patch grid over the centre square that a discovery looks at, as `(H, W)`; `outside` beside that square."""
    left, top, right, bottom = (round(edge) for edge in seen_box(width, height))
    canvas = Image.new("L", (width, height), outside)
    canvas.paste(grid.resize((right - left, bottom - top), how), (left, top))
    return np.asarray(canvas)
