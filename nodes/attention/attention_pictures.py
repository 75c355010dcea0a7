"""Heat maps for display: attention as colours over the dimmed picture, with its name and a colour scale below."""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from ...concepts.pictures.color_scale import scale_colors
from ...concepts.pictures.part_overlay import Font

LEAST_EDGE = 448
"""Shorter edge in pixels to which small pictures are enlarged, so that names are readable."""
OVERVIEW_EDGE = 352
"""Longer edge of a tile of an overview, in pixels."""
GAP = 12
PAPER, INK, FAINT, EDGE = (20, 19, 27), (240, 238, 245), (172, 168, 184), (70, 66, 84)
_STOPS = np.array(
    [[14, 11, 34], [72, 20, 92], [150, 34, 96], [222, 74, 62], [250, 152, 56], [253, 236, 160]], dtype=np.float32
)
"""Colour stops from no attention to the maximum, with increasing lightness."""


def stretched(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps `(F, h, w)` normalised to 0..1 individually, and their `(F,)` minima and maxima; constant maps become 0."""
    low, high = maps.flatten(1).amin(1), maps.flatten(1).amax(1)
    # without the mask, a constant map would turn into amplified rounding noise
    reach = (high - low).clamp(min=1e-12).view(-1, 1, 1)
    return (maps - low.view(-1, 1, 1)) / reach * (high > low).view(-1, 1, 1), low, high


def resized_weights(weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Weights `(F, h, w)` in 0..1 resized to (height, width) with bicubic interpolation."""
    larger = functional.interpolate(weights.unsqueeze(1), size, mode="bicubic", align_corners=False)  # (F, 1, H, W)
    return larger.squeeze(1).clamp(0, 1)


def picture_of(pixels: Tensor) -> Image.Image:
    """One picture `(H, W, 3)` in 0..1 of an IMAGE, enlarged if it is small."""
    array = (pixels[..., :3].detach().float().cpu().clamp(0, 1) * 255).round().byte().numpy()
    picture = Image.fromarray(array) if array.shape[-1] == 3 else Image.fromarray(array[..., 0]).convert("RGB")
    return _enlarged(picture)


def blank_picture(latent: tuple[int, int]) -> Image.Image:
    """A dark background with the aspect ratio of a latent (height, width), used if no picture is connected."""
    return _enlarged(Image.new("RGB", (latent[1] * 8, latent[0] * 8), (58, 56, 68)))


def _enlarged(picture: Image.Image) -> Image.Image:
    times = max(1.0, LEAST_EDGE / min(picture.size))
    return picture.resize([round(edge * times) for edge in picture.size], Image.Resampling.LANCZOS)


def heat_frame(
    picture: Image.Image, weights: Tensor, title: str, low: float, high: float, opacity: float
) -> Image.Image:
    """A picture with attention as colours over it, and a strip below with the title and the colour scale.

    Args:
        picture: the background.
        weights: `(h, w)` in 0..1, any size.
        title: name of the part.
        low, high: probabilities of the darkest and the brightest colour.
        opacity: 0 shows only the picture, 1 only the attention.
    """
    ground = np.asarray(picture, dtype=np.float32)  # (H, W, 3)
    smooth = resized_weights(weights[None], ground.shape[:2])[0].numpy()[..., None]  # (H, W, 1)
    # desaturate the picture with increasing opacity: its colours must not be mistaken for those of the scale
    grey = ground.mean(-1, keepdims=True)
    faded = ground + (grey - ground) * min(1.0, opacity)
    share = np.minimum(1.0, opacity * (0.75 + 0.5 * smooth)) * min(1.0, 0.3 + opacity)
    mixed = faded * (1 - share) + scale_colors(smooth[..., 0], _STOPS) * share
    return _with_strip(Image.fromarray(mixed.clip(0, 255).astype(np.uint8)), title, (low, high))


def plain_frame(picture: Image.Image, title: str) -> Image.Image:
    """The picture without attention, with the same strip, so that it has the size of the heat maps."""
    return _with_strip(picture, title, None)


def overview(frames: list[Image.Image]) -> Image.Image:
    """Frames in a grid, at most four per row, each at most 352 pixels long."""
    # frames are reduced to tiles, never enlarged
    times = min(1.0, OVERVIEW_EDGE / max(frames[0].size))
    width, height = (round(edge * times) for edge in frames[0].size)
    across = min(4, len(frames), math.ceil(math.sqrt(len(frames) * 1.4)))
    down = math.ceil(len(frames) / across)
    sheet = Image.new("RGB", (across * (width + GAP) + GAP, down * (height + GAP) + GAP), PAPER)
    for number, frame in enumerate(frames):
        row, column = divmod(number, across)
        small = frame.resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(small, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    return sheet


def _with_strip(picture: Image.Image, title: str, scale: tuple[float, float] | None) -> Image.Image:
    """The picture above a strip with its title and, if given, the colour scale from low to high."""
    width, unit = picture.width, max(18, round(min(picture.size) * 0.054))
    strip = round(unit * 3.5)
    framed = Image.new("RGB", (width, picture.height + strip), PAPER)
    framed.paste(picture, (0, 0))
    draw, top = ImageDraw.Draw(framed), picture.height + round(unit * 0.45)
    font, small = _font(unit), _font(round(unit * 0.78))
    draw.text((unit * 0.6, top), _fitting(draw, title, font, width - unit * 1.2), font=font, fill=INK)
    if scale is None:
        return framed
    # low, bar, high in one line under the title
    line = top + round(unit * 1.55)
    texts = [percent(value) for value in scale]
    first = unit * 0.6 + draw.textlength(texts[0], font=small) + unit * 0.5
    last = width - unit * 0.6 - draw.textlength(texts[1], font=small) - unit * 0.5
    draw.text((unit * 0.6, line), texts[0], font=small, fill=FAINT)
    draw.text((last + unit * 0.5, line), texts[1], font=small, fill=FAINT)
    row = np.linspace(0, 1, max(2, round(last - first)), dtype=np.float32)[None]  # (1, W)
    bar = scale_colors(row.repeat(round(unit * 0.5), 0), _STOPS)
    corner = (round(first), line + round(unit * 0.2))
    # outline: the darkest colour is almost that of the background
    draw.rectangle((corner[0] - 1, corner[1] - 1, corner[0] + bar.shape[1], corner[1] + bar.shape[0]), outline=EDGE)
    framed.paste(Image.fromarray(bar.astype(np.uint8)), corner)
    return framed


def percent(share: float) -> str:
    """A share of the attention as text in per cent."""
    return "under 0.01 %" if 0 < share < 1e-4 else f"{100 * share:.2g} %"


def _fitting(draw: ImageDraw.ImageDraw, text: str, font: Font, width: float) -> str:
    """The text, shortened with an ellipsis if it is wider than `width`."""
    if draw.textlength(text, font=font) <= width:
        return text
    kept = next(n for n in range(len(text), -1, -1) if not n or draw.textlength(text[:n] + "...", font=font) <= width)
    return text[:kept] + "..."


@functools.lru_cache(maxsize=8)
def _font(size: int) -> Font:
    return ImageFont.load_default(size)
