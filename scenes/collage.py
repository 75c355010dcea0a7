"""Subjects laid over a place, back to front, and every mask of the result: what shows whom, how much is hidden, what to repaint.

Alpha-over in float with straight alpha (Porter and Duff 1984); colours are multiplied by their alpha only while they are
resampled. Subjects keep their colours: no colour transfer, no gradient cloning, which change what they are.
Numpy's elementwise operations and Pillow alone, so that the same input gives the same bytes on any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..concepts.errors import BestiaryError
from .contact_shadow import contact_shadow
from .scene_layout import Placement, SceneLayout
from .subject import Subject

SOLID = 128
"""Alpha from which a pixel belongs to its subject: half."""
NO_PART = 255
"""In part labels: a pixel that shows no part."""
MOST_SUBJECTS = 255
"""Of one scene: its label map is uint8, and 0 is the background."""

Plane = NDArray[np.uint8]
_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class CollageOptions:
    """How subjects are laid over their place.

    Raises:
        BestiaryError: a number out of its range.
    """

    shadow: float = 0.5
    """Darkness of the contact shadow where it is deepest, 0 (none) to 1."""
    lightness: float = 0.0
    """How far a subject's lightness goes to that of the place around it, 0 (not at all) to 1; hue stays."""
    inset: int = 5
    """Pixels of a subject's edge that are repainted with the background, 0 or more."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("shadow", "lightness"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise BestiaryError(f"{name} {value} is out of range: give 0 to 1")
        if not (isinstance(self.inset, int) and 0 <= self.inset <= 512):
            raise BestiaryError(f"inset {self.inset} is out of range: give 0 to 512 whole pixels")


@dataclass(frozen=True)
class Scene:
    """A picture made of subjects, and what it shows where; k counts its subjects from 1 in the order of the layout."""

    layout: SceneLayout
    subjects: tuple[Subject, ...]
    """Those in the picture, in the order of the layout's placements."""
    picture: Plane
    """`(H, W, 3)` RGB."""
    background: Plane
    """`(H, W, 3)` the place without anybody."""
    union: Plane
    """`(H, W)` how much of a pixel shows any subject, 255 = all of it."""
    labels: Plane
    """`(H, W)` the subject that a pixel shows, 0 for the background."""
    alphas: tuple[Plane, ...]
    """One `(H, W)` per subject: its own alpha, as if nobody stood in front."""
    layers: tuple[Plane, ...]
    """One `(H, W, 4)` per subject: straight RGBA with its contact shadow, to be laid over the background in the order of z."""
    parts: Plane
    """`(H, W)` number of the part that the visible subject shows there, `NO_PART` elsewhere."""
    repaint: Plane
    """`(H, W)` 255 where the picture may be painted anew: everything but the subjects, less an inset."""
    occlusion: tuple[float, ...]
    """Share of each subject's pixels that the picture does not show: behind others or beyond the canvas, 0 to 1."""

    @property
    def painting_order(self) -> tuple[int, ...]:
        """Indices of the subjects from back to front."""
        return painting_order(self.layout)

    def box(self, index: int) -> tuple[int, int, int, int]:
        """Left, top, width and height in pixels of what is visible of a subject; all 0 where nothing is."""
        return visible_box(self.labels, index + 1)

    def area(self, index: int) -> int:
        """Visible pixels of a subject."""
        return int((self.labels == index + 1).sum())


@dataclass(frozen=True)
class _Placed:
    """A subject resampled to the canvas, within a window of it."""

    left: int
    top: int
    color: _Floats
    """`(h, w, 3)` RGB 0 to 255 multiplied by alpha."""
    alpha: _Floats
    """`(h, w)` 0 to 1."""
    parts: Plane
    """`(h, w)`."""

    def window(self, width: int, height: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Rows and columns of a canvas that it covers, and those of its own that fall on them."""
        rows, own_rows = _overlap(self.top, self.alpha.shape[0], height)
        columns, own_columns = _overlap(self.left, self.alpha.shape[1], width)
        return (rows, columns), (own_rows, own_columns)


def compose(
    subjects: Sequence[Subject], layout: SceneLayout, background: Plane, options: CollageOptions | None = None
) -> Scene:
    """Lay the subjects of a layout over a background.

    Args:
        subjects: at least those that the layout names; others are not shown.
        background: `(H, W, 3)` uint8 of the layout's size.

    Raises:
        BestiaryError: the layout names nobody, somebody who is not there or too many; the background has another size.
    """
    options = options or CollageOptions()
    shown = _shown(subjects, layout)
    size = (layout.height, layout.width)
    if background.shape != (*size, 3) or background.dtype != np.uint8:
        raise BestiaryError(
            f"the background is {background.shape} of {background.dtype}, and the layout's canvas {(*size, 3)} of uint8: "
            "fit the picture to the canvas first"
        )
    canvas = background.astype(np.float32)  # (H, W, 3)
    labels, parts = np.zeros(size, np.uint8), np.full(size, NO_PART, np.uint8)
    clear = np.ones(size, np.float32)  # how much of the background shows
    alphas, layers, wholes = {}, {}, {}
    for index in painting_order(layout):
        subject = shown[index]
        placed = _place(subject, layout.placements[index])
        placed = _lit(placed, canvas, options.lightness)
        alpha, color = _on_canvas(placed, size)
        shadow = np.zeros(size, np.float32)
        # what flies touches nothing
        if options.shadow and subject.support != "sky":
            shadow = contact_shadow(alpha, options.shadow)
        window = _touched(alpha, shadow)
        through = (1 - alpha[window]) * (1 - shadow[window])
        canvas[window] = color[window] + canvas[window] * through[..., None]
        clear[window] *= 1 - alpha[window]
        alphas[index] = _bytes(alpha * 255)
        solid = alphas[index] >= SOLID
        labels[solid] = index + 1
        parts[solid] = _parts_on_canvas(placed, size)[solid]
        layers[index] = np.zeros((*size, 4), np.uint8)
        layers[index][window] = _layer(color[window], alpha[window], shadow[window])
        wholes[index] = int((_bytes(placed.alpha * 255) >= SOLID).sum())
    union = _bytes((1 - clear) * 255)
    seen = np.bincount(labels.ravel(), minlength=len(shown) + 1)
    everyone = range(len(shown))
    return Scene(
        layout=layout,
        subjects=shown,
        picture=_bytes(canvas),
        background=background,
        union=union,
        labels=labels,
        alphas=tuple(alphas[index] for index in everyone),
        layers=tuple(layers[index] for index in everyone),
        parts=parts,
        repaint=repaint_mask(union, options.inset),
        # a subject without a single solid pixel is not to be seen
        occlusion=tuple(1 - int(seen[index + 1]) / wholes[index] if wholes[index] else 1.0 for index in everyone),
    )


def painting_order(layout: SceneLayout) -> tuple[int, ...]:
    """Indices of a layout's placements from back to front; equal z in the order of the layout."""
    return tuple(sorted(range(len(layout.placements)), key=lambda index: layout.placements[index].z))


def visible_alphas(scene: Scene) -> tuple[Plane, ...]:
    """One `(H, W)` per subject: how much of a pixel shows it, 255 = all of it; together they are the union."""
    clear = np.ones(scene.union.shape, np.float32)  # what no nearer subject hides
    shares: dict[int, Plane] = {}
    for index in reversed(scene.painting_order):
        alpha = scene.alphas[index].astype(np.float32) / np.float32(255)
        shares[index] = _bytes(alpha * clear * np.float32(255))
        clear = clear * (1 - alpha)
    return tuple(shares[index] for index in range(len(scene.alphas)))


def repaint_mask(union: Plane, inset: int = 5) -> Plane:
    """255 where a picture may be painted anew: outside the subjects `(H, W)`, and `inset` pixels into them.

    Where the canvas cuts a subject, its border does not count as the subject's edge.
    """
    return 255 - _eroded(union, inset)


def visible_box(labels: Plane, label: int) -> tuple[int, int, int, int]:
    """Left, top, width and height in pixels of a label in a map `(H, W)`; all 0 where it is nowhere."""
    mask = labels == label
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


def _shown(subjects: Sequence[Subject], layout: SceneLayout) -> tuple[Subject, ...]:
    named = {}
    for subject in subjects:
        if named.setdefault(subject.name, subject) is not subject:
            raise BestiaryError(f"two subjects are called {subject.name!r}: give one of them another name")
    if not layout.placements:
        raise BestiaryError("the layout places nobody: a scene needs a subject at least")
    if len(layout.placements) > MOST_SUBJECTS:
        raise BestiaryError(f"the layout places {len(layout.placements)} subjects, and a scene holds {MOST_SUBJECTS}")
    for placement in layout.placements:
        if placement.subject not in named:
            raise BestiaryError(
                f"the layout places {placement.subject!r}, and the subjects are {', '.join(map(repr, named)) or 'none'}: "
                "give that subject, or take it out of the layout"
            )
    return tuple(named[placement.subject] for placement in layout.placements)


def _place(subject: Subject, placement: Placement) -> _Placed:
    """Scale, flip and turn a cut-out; its colours, alpha and part labels go through one map."""
    # edges on whole pixels keep an upright cut-out as sharp as it is
    left, top = round(placement.x), round(placement.y)
    width = max(1, round(placement.x + placement.width) - left)
    height = max(1, round(placement.y + placement.height) - top)
    cutout, parts = subject.cutout, subject.parts
    if placement.flip:
        cutout, parts = cutout[:, ::-1], None if parts is None else parts[:, ::-1]
    alpha: _Floats = cutout[..., 3].astype(np.float32) / np.float32(255)  # (h, w)
    color = cutout[..., :3].astype(np.float32) * alpha[..., None]
    planes: list[_Floats] = [color[..., 0], color[..., 1], color[..., 2], alpha]
    bands = [_scaled(plane, width, height) for plane in planes]
    labels: Plane = np.full(cutout.shape[:2], NO_PART, np.uint8) if parts is None else parts
    rows, columns = labels.shape[0], labels.shape[1]
    source = Image.fromarray(np.ascontiguousarray(labels))
    if placement.turn % 360:
        middle = (left + width / 2, top + height / 2)
        left, top, turned_width, turned_height = _turned_window(middle, width, height, placement.turn)
        size, origin = (turned_width, turned_height), (left - middle[0], top - middle[1])
        bands = [_turned(band, size, origin, placement.turn) for band in bands]
        scale = (columns / width, rows / height)
        matrix = _backward(placement.turn, origin, scale, (columns / 2, rows / 2))
        moved = source.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=NO_PART)
    else:
        moved = source.resize((width, height), Image.Resampling.NEAREST)
    # filters that sharpen overshoot: the colour keeps its ratio to the alpha
    alpha = bands[3].clip(0, 1)
    straight = np.stack(bands[:3], axis=-1) / np.maximum(bands[3], np.float32(1e-3))[..., None]
    color = straight.clip(0, 255) * alpha[..., None]
    return _Placed(left, top, color, alpha, np.asarray(moved))


def _scaled(band: _Floats, width: int, height: int) -> _Floats:
    """A plane `(H, W)` at another size; when it shrinks, every source pixel counts."""
    if band.shape == (height, width):
        return band
    return np.asarray(Image.fromarray(np.ascontiguousarray(band)).resize((width, height), Image.Resampling.BICUBIC))


def _turned(band: _Floats, size: tuple[int, int], origin: tuple[float, float], turn: float) -> _Floats:
    """A plane `(h, w)` turned about its origin, on a canvas `(H, W)` of `size`."""
    # a transparent rim lets edges fade instead of stopping at a pixel
    rim = 2
    padded = Image.fromarray(np.pad(band, rim))
    middle = (padded.width / 2, padded.height / 2)
    matrix = _backward(turn, origin, (1.0, 1.0), middle)
    return np.asarray(padded.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC))


def _backward(
    turn: float, origin: tuple[float, float], scale: tuple[float, float], middle: tuple[float, float]
) -> tuple[float, ...]:
    """Pillow's six numbers from a pixel of the window to one of the source: back by `turn` degrees clockwise, then scaled."""
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    x, y = origin  # of the window's corner, from the middle of the turn
    row_x = (cos * scale[0], sin * scale[0], (cos * x + sin * y) * scale[0] + middle[0])
    row_y = (-sin * scale[1], cos * scale[1], (-sin * x + cos * y) * scale[1] + middle[1])
    return (*row_x, *row_y)


def _turned_window(middle: tuple[float, float], width: int, height: int, turn: float) -> tuple[int, int, int, int]:
    """Left, top, width and height of the whole pixels that a turned box touches, with a pixel to spare."""
    cos, sin = abs(math.cos(math.radians(turn))), abs(math.sin(math.radians(turn)))
    half_width, half_height = (width * cos + height * sin) / 2 + 1, (width * sin + height * cos) / 2 + 1
    left, top = math.floor(middle[0] - half_width), math.floor(middle[1] - half_height)
    return left, top, math.ceil(middle[0] + half_width) - left, math.ceil(middle[1] + half_height) - top


def _lit(placed: _Placed, canvas: _Floats, strength: float) -> _Placed:
    """The subject made lighter or darker as the place `(H, W, 3)` behind it is: one factor for red, green and blue."""
    on_canvas, own = placed.window(canvas.shape[1], canvas.shape[0])
    behind, alpha = canvas[on_canvas], placed.alpha[own]
    if not strength or not alpha.any():
        return placed
    weights = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    mine = float((placed.color[own] * weights).sum() / alpha.sum())
    theirs = float((behind * weights).sum(axis=-1).mean())
    # beyond these factors a night cat has no drawing left
    factor = min(1.6, max(0.6, (theirs + 1) / (mine + 1))) ** strength
    color = np.minimum(placed.color * np.float32(factor), placed.alpha[..., None] * 255)
    return _Placed(placed.left, placed.top, color, placed.alpha, placed.parts)


def _on_canvas(placed: _Placed, size: tuple[int, int]) -> tuple[_Floats, _Floats]:
    """Alpha `(H, W)` and color `(H, W, 3)` of a subject on an empty canvas."""
    alpha, color = np.zeros(size, np.float32), np.zeros((*size, 3), np.float32)
    on_canvas, own = placed.window(size[1], size[0])
    alpha[on_canvas], color[on_canvas] = placed.alpha[own], placed.color[own]
    return alpha, color


def _parts_on_canvas(placed: _Placed, size: tuple[int, int]) -> Plane:
    """Part labels `(H, W)` of a subject on an empty canvas."""
    parts = np.full(size, NO_PART, np.uint8)
    on_canvas, own = placed.window(size[1], size[0])
    parts[on_canvas] = placed.parts[own]
    return parts


def _overlap(start: int, length: int, limit: int) -> tuple[slice, slice]:
    """What of `start ... start + length` lies in `0 ... limit`, seen from there and from its own beginning."""
    first, last = min(max(start, 0), limit), min(max(start + length, 0), limit)
    return slice(first, last), slice(first - start, last - start)


def _touched(alpha: _Floats, shadow: _Floats) -> tuple[slice, slice]:
    """Rows and columns that a subject or its shadow, `(H, W)` each, changes."""
    changed = (alpha > 0) | (shadow > 0)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _layer(color: _Floats, alpha: _Floats, shadow: _Floats) -> Plane:
    """Straight RGBA of a subject over its black shadow."""
    whole: _Floats = (alpha + shadow * (1 - alpha)).astype(np.float32, copy=False)  # (H, W)
    straight: _Floats = (color / np.maximum(whole, np.float32(1e-6))[..., None]).astype(np.float32, copy=False)
    return np.dstack([_bytes(straight), _bytes((whole * np.float32(255)).astype(np.float32, copy=False))])


def _eroded(mask: Plane, inset: int) -> Plane:
    """Least value of a mask `(H, W)` within `inset` pixels along rows and columns; beyond the border the last one goes on."""
    for axis in (0, 1):
        padding = [(inset, inset) if axis == other else (0, 0) for other in (0, 1)]
        padded, result = np.pad(mask, padding, mode="edge"), mask
        for step in range(2 * inset + 1):
            window = padded[step : step + len(mask)] if axis == 0 else padded[:, step : step + mask.shape[1]]
            result = np.minimum(result, window)
        mask = result
    return mask


def _bytes(values: _Floats) -> Plane:
    """Values `(H, W)` or `(H, W, 3)` rounded to 0 ... 255, halves up."""
    return (values + np.float32(0.5)).clip(0, 255).astype(np.uint8)
