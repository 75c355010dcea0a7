"""Thumbnails of many (part, kind) pairs in one WebP picture, kept as bytes inside a tensor."""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import BestiaryError

LARGEST_EDGE = 8_192
"""Pixels of the whole picture; WebP ends at 16,383, Pillow warns of pictures beyond 89 million pixels."""
QUALITY = 80


@dataclass(frozen=True)
class ThumbnailAtlas:
    """Square tiles in rows of `columns`, in the order of `index`."""

    webp: bytes
    """The picture, as a WebP file."""
    index: tuple[tuple[int, int], ...]
    """(part, kind) of every tile."""
    tile_size: int
    """Edge of a tile in pixels."""
    columns: int
    """Tiles in a row."""

    @classmethod
    def from_images(cls, images: Mapping[tuple[int, int], Image.Image], tile_size: int = 96) -> "ThumbnailAtlas":
        """Shrink pictures to tiles, centred on black; tiles become smaller if the picture would be too large.

        Raises:
            BestiaryError: no picture is given, or Pillow was built without WebP.
        """
        if not images:
            raise BestiaryError("an atlas needs at least one thumbnail; omit the atlas instead")
        # about as many rows as columns keeps both edges short
        columns = math.ceil(math.sqrt(len(images)))
        edge = min(tile_size, LARGEST_EDGE // columns)
        sheet = Image.new("RGB", (columns * edge, math.ceil(len(images) / columns) * edge))
        # smaller pictures are not enlarged
        for number, image in enumerate(images.values()):
            shrunk = image.convert("RGB")
            shrunk.thumbnail((edge, edge), Image.Resampling.LANCZOS)
            left = number % columns * edge + (edge - shrunk.width) // 2
            sheet.paste(shrunk, (left, number // columns * edge + (edge - shrunk.height) // 2))
        stream = io.BytesIO()
        try:
            sheet.save(stream, "WEBP", quality=QUALITY)
        except (KeyError, OSError) as fault:
            raise BestiaryError(f"the installed Pillow cannot write WebP ({fault}): update Pillow") from fault
        return cls(stream.getvalue(), tuple(images), edge, columns)

    def tile(self, part: int, kind: int) -> Image.Image | None:
        """RGB thumbnail of a pair, None if there is none.

        Raises:
            BestiaryError: the picture inside is broken.
        """
        if (part, kind) not in self._numbers:
            return None
        number, edge = self._numbers[part, kind], self.tile_size
        left, top = number % self.columns * edge, number // self.columns * edge
        return self._sheet.crop((left, top, left + edge, top + edge))

    def restricted_to(self, kept: Mapping[tuple[int, int], tuple[int, int]]) -> "ThumbnailAtlas | None":
        """The tiles of the pairs in `kept`, under their new pairs; None if no tile is left."""
        tiles = {new: tile for old, new in kept.items() if (tile := self.tile(*old)) is not None}
        return ThumbnailAtlas.from_images(tiles, self.tile_size) if tiles else None

    def to_tensors(self) -> dict[str, Tensor]:
        """`picture` (bytes,) uint8, `index` (T, 2) int32, `shape` (2,) int32: tile edge and columns."""
        return {
            "picture": torch.frombuffer(bytearray(self.webp), dtype=torch.uint8),
            "index": torch.tensor(self.index, dtype=torch.int32),
            "shape": torch.tensor([self.tile_size, self.columns], dtype=torch.int32),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "ThumbnailAtlas":
        """The inverse of `to_tensors`; checks sizes without decoding the picture.

        Raises:
            BestiaryError: a tensor is missing or the picture contradicts the index.
        """
        picture, index, shape = (tensors.get(name) for name in ("picture", "index", "shape"))
        if picture is None or index is None or shape is None or index.ndim != 2 or shape.numel() != 2:
            raise BestiaryError(f"the thumbnails are broken: expected picture, index and shape, got {sorted(tensors)}")
        pairs = tuple((part, kind) for part, kind in index[:, :2].tolist())
        edge, columns = shape.tolist()
        # only the header of the picture is read here: a bomb of pixels is never unpacked
        atlas = cls(bytes(picture.to(torch.uint8).numpy()), pairs, edge, columns)
        expected = (columns * edge, math.ceil(len(pairs) / max(columns, 1)) * edge)
        found = atlas._open().size
        if found != expected or not pairs or max(found) > LARGEST_EDGE:
            raise BestiaryError(
                f"the thumbnails are broken: the picture is {found[0]}x{found[1]} pixels, {len(pairs)} tiles of "
                f"{edge} pixels in {columns} columns need {expected[0]}x{expected[1]}"
            )
        return atlas

    @cached_property
    def _numbers(self) -> dict[tuple[int, int], int]:
        return {pair: number for number, pair in enumerate(self.index)}

    @cached_property
    def _sheet(self) -> Image.Image:
        try:
            return self._open().convert("RGB")
        except (OSError, ValueError, SyntaxError, EOFError, RuntimeError) as fault:
            raise BestiaryError("the thumbnails are broken: the picture in the file is damaged") from fault

    def _open(self) -> Image.Image:
        """The picture with only its header read."""
        try:
            # one format only: Pillow's other decoders are not offered to strangers' bytes
            return Image.open(io.BytesIO(self.webp), formats=("WEBP",))
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as fault:
            raise BestiaryError(
                f"the thumbnails are broken: {len(self.webp):,} bytes are not a WebP picture"
            ) from fault
