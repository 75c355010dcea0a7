"""Contact sheets: a grid of pictures with captions."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ....concepts.errors import BestiaryError

PAPER = (250, 247, 240)
INK = (60, 54, 46)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
"""Font of the texts on a sheet; Pillow without FreeType only has its bitmap font."""
PREVIEW_TILE = 160
"""Edge of a tile of training previews in pixels."""
_MARGIN = 12
_LINE = 15
_FONT_SIZE = 12
_MOST_LINES = 4


def contact_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str],
    *,
    columns: int | None = None,
    tile: int | None = None,
) -> Image.Image:
    """All pictures on one sheet, left to right and top to bottom.

    Args:
        images: at least one picture, of any sizes.
        captions: one text per picture; long ones are wrapped and cut after four lines.
        columns: pictures per row; None makes the sheet about square.
        tile: edge of a picture on the sheet in pixels; None uses the largest edge of the pictures, 160 to 384.

    Raises:
        BestiaryError: no pictures, or another number of captions.
    """
    if not images or len(images) != len(captions):
        raise BestiaryError(f"a contact sheet needs one caption per picture, got {len(images)} and {len(captions)}")
    # captions make tiles taller than wide: slightly more columns than rows give a square sheet
    columns = columns or max(1, min(len(images), round((len(images) * 1.25) ** 0.5)))
    tile = tile or min(384, max(160, *(max(image.size) for image in images)))
    font: Font = ImageFont.load_default(_FONT_SIZE)
    # all captions get the height of the longest, so that rows stay aligned
    wrapped = [wrap_text(caption, font, tile) for caption in captions]
    text_height = _LINE * max(len(lines) for lines in wrapped)
    rows = -(-len(images) // columns)
    width = columns * (tile + _MARGIN) + _MARGIN
    height = rows * (tile + text_height + 2 * _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (image, lines) in enumerate(zip(images, wrapped, strict=True)):
        left = _MARGIN + place % columns * (tile + _MARGIN)
        top = _MARGIN + place // columns * (tile + text_height + 2 * _MARGIN)
        # pictures of other shapes are centred in their tile
        fitted = _fitted(image, tile)
        sheet.paste(fitted, (left + (tile - fitted.width) // 2, top + (tile - fitted.height) // 2))
        draw.multiline_text((left, top + tile + 4), "\n".join(lines), INK, font, spacing=3)
    return sheet


def to_image(image: Tensor) -> Image.Image:
    """`(3, H, W)` in 0..1 -> Pillow."""
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).contiguous().numpy())


def wrap_text(text: str, font: Font, width: int) -> list[str]:
    """At most four lines of at most `width` pixels; words that are too long and the remaining text are cut with …"""
    lines: list[str] = []
    rest = text.split()
    # as many words as fit into a line, at least one
    while rest and len(lines) < _MOST_LINES:
        count = 1
        while count < len(rest) and font.getlength(" ".join(rest[: count + 1])) <= width:
            count += 1
        line, rest = " ".join(rest[:count]), rest[count:]
        lines.append(_cut(line, font, width))
    if rest:
        lines[-1] = _cut(lines[-1] + " …", font, width)
    return lines


def _cut(line: str, font: Font, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"


def _fitted(image: Image.Image, tile: int) -> Image.Image:
    scale = tile / max(image.size)
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
