"""Segmentation of the pictures of a graph by a codebook: features, labels, codes, and pixel areas.

Letters: B pictures, (H, W) pixels, (h, w) patch grid, M parts, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.features.patch_features import FeatureSource, PatchGrid
from ...concepts.name_search import choices_text, plain_name, same_names, shown_name, typed_number
from ...concepts.part_map.part_areas import part_areas
from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.part_map.part_map import PartMaps
from ...concepts.pictures.part_overlay import Color, part_color
from ...concepts.pictures.square_fit import SquareFit, seen_box
from .part_pictures import as_squares

FOREGROUND = "foreground"
"""Name for all parts except the background."""
_AT_ONCE = 8


@dataclass(frozen=True)
class SeenParts:
    """The parts of B pictures of one size: value of a BESTIARY_PART_MAPS socket."""

    part_names: tuple[str, ...]
    """M names."""
    background: int
    maps: PartMaps = field(repr=False)
    """Labels `(B, h, w)` and codes `(B, M)`."""
    size: tuple[int, int]
    """(H, W) of the pictures."""
    fit: SquareFit
    """Area of the pictures that the labels cover."""
    color_numbers: tuple[int, ...] = ()
    """Colour number of each of the M parts; empty for their own numbers."""

    def areas(self, picture: int, size: tuple[int, int] | None = None) -> Tensor:
        """Share of every part in every pixel `(M, H, W)` of one picture, at its own or another size."""
        height, width = size or self.size
        box = seen_box(width, height, self.fit)
        return part_areas(self.maps.labels[picture], len(self.part_names), self.background, (height, width), box)

    def colors(self) -> list[Color]:
        """Red, green and blue of every part, 0..255."""
        return [part_color(number) for number in self.color_numbers or range(len(self.part_names))]

    def find_parts(self, text: str) -> list[int]:
        """Indices of parts given by name or number, separated by commas; `foreground` is all except the background.

        Raises:
            BestiaryError: no name, or an unknown part; the message lists the valid ones.
        """
        found: list[int] = []
        for name in [piece.strip() for piece in text.split(",") if piece.strip()]:
            found += [part for part in self._find(name) if part not in found]
        if not found:
            raise BestiaryError(f"no part given in {text!r}: choose {self._choices('')}")
        return found

    def _find(self, name: str) -> list[int]:
        # precedence: a part may itself be named "foreground" or "3"
        found = same_names(name, self.part_names)
        if found:
            return found[:1]
        if plain_name(name) == FOREGROUND:
            return [part for part in range(len(self.part_names)) if part != self.background]
        number = typed_number(name)
        if number is not None and number in range(len(self.part_names)):
            return [number]
        raise BestiaryError(f"unknown part {shown_name(name)}: choose {self._choices(name)}")

    def _choices(self, wanted: str) -> str:
        return f"{choices_text(wanted, [*self.part_names, FOREGROUND])}, or a number of 0 to {len(self.part_names) - 1}"


def describe_images(
    images: Tensor, source: FeatureSource, fit: SquareFit, on_picture: Callable[[int], None] = lambda count: None
) -> PatchGrid:
    """Features of images `(B, H, W, 3)`, rounded as they are stored on the command line.

    Args:
        on_picture: called with the number of pictures of each finished batch.

    Raises:
        BestiaryError: features that are not finite.
    """
    pieces: list[PatchGrid] = []
    # in small batches: features of many pictures at once would fill the memory
    for some in images.split(_AT_ONCE):
        grid = source(as_squares(some, source.image_size, fit))
        if not bool(torch.isfinite(grid.features).all()):
            raise BestiaryError(
                f"the {source.name} features of the pictures are not finite numbers: choose another feature source"
            )
        pieces.append(grid.rounded())
        on_picture(len(some))
    return joined_grids(pieces)


def joined_grids(pieces: Sequence[PatchGrid]) -> PatchGrid:
    """Several grids concatenated to one `(B, h, w, D)`."""
    return PatchGrid.joined(pieces)


def see_parts(codebook: PartCodebook, grid: PatchGrid, size: tuple[int, int], fit: SquareFit) -> SeenParts:
    """Labels and codes of pictures of one size, from their features."""
    return seen_from_maps(codebook, codebook.segment(grid), size, fit)


def seen_from_maps(
    codebook: PartCodebook, maps: PartMaps, size: tuple[int, int], fit: SquareFit, color_numbers: tuple[int, ...] = ()
) -> SeenParts:
    """A `SeenParts` record from maps of a codebook."""
    return SeenParts(codebook.part_names, codebook.background, maps, size, fit, color_numbers)
