"""User-provided foreground masks: a folder of masks, or the transparency of the pictures themselves.

Letters: (H, W) pixels of a picture, (h, w) patch grid.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.part_map.part_areas import patch_shares
from ...concepts.pictures.square_fit import seen_box
from ..learning.pictures.companion_files import CompanionFolder
from ..learning.pictures.image_files import UnreadableImage, decoded, picture_size
from ..learning.pictures.mask_files import read_mask

logger = logging.getLogger("bestiary.discover")

_NEVER_TRANSPARENT = frozenset([".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm"])
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
_SHOWN = 5


@dataclass(frozen=True)
class ForegroundMasks:
    """The masks for the pictures of a folder, read one at a time."""

    pictures: Path
    companions: CompanionFolder | None = None
    """Folder of masks; None uses only the transparency of the pictures."""
    flipped: bool = False
    """True if the masks mark the background."""

    def on_grid(self, name: str, grid: tuple[int, int]) -> Tensor | None:
        """Foreground share of every patch `(h, w)` of a picture given by its relative path; None if it has no mask.

        Raises:
            BestiaryError: a mask that is ambiguous, cannot be read, or has another size than its picture.
        """
        mask = self._mask(name)
        if mask is None:
            return None
        shares = patch_shares(torch.from_numpy(mask), grid, seen_box(mask.shape[1], mask.shape[0]))  # (h, w)
        return 1 - shares if self.flipped else shares

    def _mask(self, name: str) -> np.ndarray | None:
        """The mask (H, W) in 0..1 of a picture."""
        picture = self.pictures / name
        if self.companions is None:
            return own_transparency(picture)
        file = self.companions.of(name)
        # masks and pictures may share a folder: a picture must not serve as its own mask
        if file is None or file.resolve() == picture.resolve():
            return own_transparency(picture)
        try:
            return read_mask(file, picture_size(picture))
        except UnreadableImage as fault:
            raise BestiaryError(f"the mask {file} of {name} cannot be read: {fault.reason}") from fault


def open_masks(folder: Path | None, pictures: Path, names: Sequence[str], *, flipped: bool = False) -> ForegroundMasks:
    """The masks of pictures given by their relative paths; unused files of the folder are logged.

    Args:
        flipped: the masks mark the background.

    Raises:
        BestiaryError: no such folder, no mask for any picture, or an ambiguous mask.
    """
    if folder is None:
        return ForegroundMasks(pictures, flipped=flipped)
    companions = CompanionFolder(folder, names, pictures_folder=pictures)
    lacking = [name for name in names if companions.of(name) is None]
    if len(lacking) == len(names):
        raise BestiaryError(
            f"no mask in {folder} belongs to any of {len(names)} pictures: name the mask of {names[0]} "
            f"{companions.names_for(names[0])}"
        )
    if lacking:
        logger.warning("%d of %d pictures have no mask in %s: %s", len(lacking), len(names), folder, _listed(lacking))
    if unused := companions.unused():
        logger.warning("%d masks in %s do not belong to any picture: %s", len(unused), folder, _listed(unused))
    return ForegroundMasks(pictures, companions, flipped)


def own_transparency(path: Path) -> np.ndarray | None:
    """Opacity `(H, W)` float32 in 0..1 of a picture with varying opacity; None for all others."""
    if path.suffix.lower() in _NEVER_TRANSPARENT:
        return None
    try:
        opacity = np.asarray(decoded(path, _opacity), dtype=np.float32) / 255  # (H, W)
    except UnreadableImage:
        return None
    return opacity if float(opacity.min()) < float(opacity.max()) else None


def _opacity(image: Image.Image) -> Image.Image:
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        return image.convert("RGBA").getchannel("A")
    return Image.new("L", image.size, 255)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
