"""Pictures of things with the file that says where the thing is: transparency of their own, or a mask beside them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .companion_files import CompanionFolder
from .image_files import decoded, read_image


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """A picture `(h, w, 3)` uint8 RGB, or `(h, w, 4)` with straight alpha where the file is transparent somewhere.

    Raises:
        UnreadableImage: as `read_image`.
    """
    layer = decoded(path, _layer)
    return np.asarray(layer if layer.mode == "RGBA" else read_image(path))


def with_masks(names: Sequence[str], folder: Path, masks: Path | None) -> list[tuple[str, Path | None]]:
    """Pictures of a folder, each with the file of its mask or None.

    Raises:
        BestiaryError: there is no such folder of masks, or a mask could belong to several pictures.
    """
    beside = CompanionFolder(masks or folder, names)
    pictures = frozenset((folder / name).resolve() for name in names)
    found = [(name, beside.of(name)) for name in names]
    # in the pictures' own folder a picture has its own name, which does not make it its mask
    return [(name, None if mask is None or mask.resolve() in pictures else mask) for name, mask in found]


def _layer(image: Image.Image) -> Image.Image:
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    return image.convert("RGBA") if has_alpha else image
