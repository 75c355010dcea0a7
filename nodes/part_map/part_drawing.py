"""Overlays of parts in colour over pictures, with a legend of their kinds."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.part_map.part_map import ABSENT
from ...concepts.pictures.part_overlay import LegendEntry, add_legend, draw_parts, enlarged
from .discovery_job import FoundParts
from .part_pictures import as_images, as_pictures
from .seen_parts import SeenParts

LegendText = Callable[[int, int], str]
"""(picture, part) -> text of the legend."""


def draw_overlays(images: Tensor, seen: SeenParts, text: LegendText) -> Tensor:
    """Images `(B, H, W, 3)` with their parts in colour and a legend below; small pictures are enlarged."""
    drawn = []
    for number, picture in enumerate(as_pictures(images)):
        large = enlarged(picture)
        areas = seen.areas(number, (large.height, large.width))  # (M, H', W')
        drawn.append(draw_parts(large, areas, seen.background, seen.colors()))
    # legends are laid out together, because all pictures of a batch must have one size
    legends = [legend(seen, number, text) for number in range(len(drawn))]
    return as_images(add_legend(drawn, legends))


def found_overlays(found: FoundParts) -> list[Tensor]:
    """One batch of overlays `(B, H, W, 3)` per entry of a discovery's pictures."""
    return [
        draw_overlays(images, seen, kind_text(found.codebook, seen))
        for images, seen in zip(found.images, found.seen, strict=True)
    ]


def legend(seen: SeenParts, picture: int, text: LegendText) -> list[LegendEntry]:
    """Legend of one picture: all parts except the background; absent parts are drawn faint."""
    codes = seen.maps.codes[picture]  # (M,)
    shown = [part for part in range(len(seen.part_names)) if part != seen.background]
    colors = seen.colors()
    return [LegendEntry(colors[part], text(picture, part), bool(codes[part] == ABSENT)) for part in shown]


def kind_text(codebook: PartCodebook, seen: SeenParts) -> LegendText:
    """Legend texts: "head: cardinal", "head: 3" for an unnamed kind, "head" for an absent part."""

    def text(picture: int, part: int) -> str:
        code = int(seen.maps.codes[picture, part])
        name = seen.part_names[part]
        return name if code == ABSENT else f"{name}: {kind_name(codebook, part, code)}"

    return text


def kind_name(codebook: PartCodebook, part: int, kind: int) -> str:
    """Name of a kind, or its number if it has none."""
    names = codebook.kind_names[part] if part < len(codebook.kind_names) else {}
    return names.get(kind, str(kind))
