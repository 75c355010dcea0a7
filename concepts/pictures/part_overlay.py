"""Overlays of parts: every part in its own colour, the background faded, names below."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Color = tuple[int, int, int]
"""RGB 0..255."""

_COLORS: tuple[Color, ...] = (
    (230, 85, 60),
    (64, 130, 214),
    (244, 178, 40),
    (74, 168, 92),
    (160, 98, 204),
    (38, 182, 178),
    (232, 120, 176),
    (150, 112, 62),
    (150, 190, 48),
    (86, 92, 178),
)
_PALE = 235.0
_PAPER, _INK, _FAINT = (250, 250, 250), (32, 34, 40), (140, 143, 150)
_LONGER_EDGE = 512
_LINE = 0.048  # height of a legend line in widths of the picture
_LONGEST_NAME = 28


@dataclass(frozen=True)
class LegendEntry:
    """One line of a legend."""

    color: Color
    text: str
    faint: bool = False
    """True for entries that the picture does not show."""


def part_color(part: int) -> Color:
    """Colour of a part, the same in all drawings."""
    if part < len(_COLORS):
        return _COLORS[part]
    red, green, blue = colorsys.hsv_to_rgb((part * 0.618) % 1, 0.6, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_parts(
    picture: Image.Image, areas: Tensor, background: int, colors: Sequence[Color] | None = None
) -> Image.Image:
    """A picture (H, W) with the areas `(M, H, W)` of its parts in colour over its grey copy; without M colours, in their own."""
    # in grey: the picture's colours would mix with those of the parts
    light = np.asarray(picture.convert("L"), dtype=np.float32)  # (H, W)
    shares = areas.cpu().numpy()  # (M, H, W)
    # parts are 0.45 of the grey and 0.55 of their colour, the background 0.35 and 0.65 of a pale tone
    own = [part_color(part) for part in range(len(shares))] if colors is None else colors
    tones = np.array(own, np.float32) * 0.55  # (M, 3)
    tones[background] = 0.65 * _PALE
    tint = shares.reshape(len(shares), -1).T @ tones  # (H * W, 3)
    shown = (light * (0.45 - 0.1 * shares[background]))[..., None] + tint.reshape(*light.shape, 3)
    # a thin pale seam where no part owns the pixel
    seam = np.clip(2.2 - 2.2 * shares.max(axis=0), 0, 1)[..., None] * np.float32(0.55)  # (H, W, 1)
    shown += (255 - shown) * seam
    return Image.fromarray((shown + 0.5).clip(0, 255).astype(np.uint8))


def enlarged(picture: Image.Image) -> Image.Image:
    """A small picture enlarged by an integer factor, so that outlines and names on it are readable."""
    scale = max(1, -(-_LONGER_EDGE // max(picture.size)))
    size = (picture.width * scale, picture.height * scale)
    return picture if scale == 1 else picture.resize(size, Image.Resampling.BICUBIC)


def add_legend(pictures: Sequence[Image.Image], legends: Sequence[Sequence[LegendEntry]]) -> list[Image.Image]:
    """Pictures of one size with a legend below each; all results have the same size, for any legends."""
    width, height = pictures[0].size
    # text scales with the picture, and stays readable on small ones
    line = max(14, round(_LINE * min(max(width, height), 1.5 * width)))
    font = ImageFont.load_default(size=round(line * 0.62))
    placed = [_place_entries(legend, width, line, font) for legend in legends]
    rows = max((row for places in placed for _, row, _ in places), default=-1) + 1
    strip = rows * line + round(line * 0.5)
    results = []
    for picture, places in zip(pictures, placed, strict=True):
        sheet = Image.new("RGB", (width, height + strip), _PAPER)
        sheet.paste(picture, (0, 0))
        _draw_entries(ImageDraw.Draw(sheet), places, height + round(line * 0.25), line, font)
        results.append(sheet)
    return results


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
"""Pillow's default font: scalable if Pillow was built with FreeType."""
_Placed = tuple[int, int, LegendEntry]
"""Left edge in pixels, row, entry."""


def _place_entries(legend: Sequence[LegendEntry], width: int, line: int, font: Font) -> list[_Placed]:
    """Entries side by side, in as many rows as they need."""
    margin = round(line * 0.4)
    places, left, row = [], margin, 0
    # a line that is full goes on below
    for entry in legend:
        wide = round(line * 1.6 + font.getlength(_short(entry.text)))
        if left > margin and left + wide > width:
            left, row = margin, row + 1
        places.append((left, row, entry))
        left += wide
    return places


def _draw_entries(draw: ImageDraw.ImageDraw, places: Sequence[_Placed], top: int, line: int, font: Font) -> None:
    edge = round(line * 0.56)
    for left, row, entry in places:
        middle = top + row * line + line // 2
        swatch = (left, middle - edge // 2, left + edge, middle + edge // 2)
        outline = tuple(entry.color)
        # hollow and pale for what the picture does not show
        draw.rounded_rectangle(
            swatch, radius=edge // 4, fill=None if entry.faint else outline, outline=outline, width=2
        )
        draw.text(
            (left + round(line * 0.8), middle),
            _short(entry.text),
            fill=_FAINT if entry.faint else _INK,
            font=font,
            anchor="lm",
        )


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"
