"""From a picture and a mask to a subject: the mask cleaned, the colours of its edge freed from the old ground, cut to a tight box.

Edge colours: Forte, Approximate Fast Foreground Colour Estimation, ICIP 2021 ("blur fusion"). A half transparent pixel shows the
thing and the ground behind it; what it would show of the thing alone is estimated from both sides' colours nearby, first from afar,
then from close by.

Letters: (h, w) pixels of the picture, (y, x) of the cut-out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ..concepts.errors import BestiaryError
from .mask_pieces import holes_of, pieces_of
from .subject import PictureSource, Subject

RADII = (30, 6)
"""Pixels to each side over which colours are averaged, pass by pass."""
CORE = 0.5
"""From here on a pixel is more the thing than the ground."""
_SEEN = 0.1
"""From here on a pixel joins what lies on both sides of it."""
_LEAST_WEIGHT = 1e-5


@dataclass(frozen=True)
class CutoutOptions:
    """How a mask is cleaned. The defaults are for what a network gives; `AS_GIVEN` takes a mask at its word.

    Raises:
        BestiaryError: a number out of its range.
    """

    largest_only: bool = True
    """Keep only the largest connected piece."""
    least_piece: float = 0.0
    """Pieces smaller than this share 0..1 of the picture are left out, the largest excepted."""
    largest_hole: float = 0.002
    """Holes up to this share 0..1 of the subject are filled; larger ones, such as between legs, stay."""
    snap: float = 0.02
    """Opacities this close to 0 or 1 become 0 or 1; 0 to 0.4."""
    feather: float = 0.0
    """Pixels, standard deviation of the blur of the finished mask; 0 to 32."""
    edge_colours: bool = True
    """Estimate the colours of half transparent pixels; colours that are the thing's own already stay as they are without."""
    longest: int = 2048
    """Pixels of the longest side; larger cut-outs are made smaller. 16 to 8192."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name, low, high in (
            ("least_piece", 0, 1),
            ("largest_hole", 0, 1),
            ("snap", 0, 0.4),
            ("feather", 0, 32),
            ("longest", 16, 8192),
        ):
            if not low <= getattr(self, name) <= high:
                raise BestiaryError(f"{name} of a cut-out is {getattr(self, name)}, expected {low} to {high}")


AS_GIVEN = CutoutOptions(largest_only=False, largest_hole=0, snap=0)
"""For a mask that somebody made."""
OWN_COLOURS = CutoutOptions(largest_only=False, largest_hole=0, snap=0, edge_colours=False)
"""For the transparency of a file, whose colours are those of the thing alone."""


@dataclass(frozen=True)
class Cutout:
    """A thing without its ground."""

    pixels: NDArray[np.uint8]
    """`(y, x, 4)` RGB and straight alpha; no empty border."""
    box: tuple[int, int, int, int]
    """Left, top, width and height in the picture, in its pixels."""
    parts: NDArray[np.uint8] | None = None
    """`(y, x)` number of the part, 255 for none and outside the thing."""


def make_subject(
    name: str,
    picture: NDArray[np.uint8],
    mask: NDArray,
    options: CutoutOptions | None = None,
    *,
    words: str = "",
    size: float | str | None = None,
    support: str = "ground",
    parts: NDArray[np.uint8] | None = None,
    source: PictureSource | None = None,
) -> Subject:
    """Cut a subject out of a picture.

    Args:
        name: unique within a scene.
        picture: `(h, w, 3)` RGB; of `(h, w, 4)` the alpha is left aside.
        mask: `(h, w)`, 1 or 255 where the thing is, as `as_alpha` takes it.
        options: None for the defaults.
        words: as in `Subject`, like all that follow.
        size: as in `Subject`.
        support: as in `Subject`.
        parts: `(h, w)` of the whole picture.
        source: where the picture came from.

    Raises:
        BestiaryError: as `cut_out` and `Subject`.
    """
    try:
        cutout = cut_out(picture, mask, options or CutoutOptions(), parts)
    except BestiaryError as fault:
        raise BestiaryError(f"subject {name!r}: {fault}") from fault
    return Subject(name, cutout.pixels, words, size, support, cutout.parts, source or PictureSource())


def cut_out(
    picture: NDArray[np.uint8], mask: NDArray, options: CutoutOptions, parts: NDArray[np.uint8] | None = None
) -> Cutout:
    """The thing that a mask shows; arguments as of `make_subject`.

    Raises:
        BestiaryError: no picture of 8 bits, a mask or labels of another size, or a mask that is empty.
    """
    if picture.ndim != 3 or picture.shape[2] not in (3, 4) or picture.dtype != np.uint8 or 0 in picture.shape:
        raise BestiaryError(f"a picture is (h, w, 3) of uint8, not {picture.shape} of {picture.dtype}")
    alpha = cleaned(as_alpha(mask, picture.shape[:2]), options)
    if parts is not None and parts.shape != alpha.shape:
        raise BestiaryError(f"part labels are {parts.shape}, the picture {alpha.shape}")
    feathered = _feathered(alpha, options.feather)  # (h, w) uint8
    if not feathered.any():
        raise BestiaryError("its mask is empty: give one that is white where the subject is")
    # what is not near the thing plays no part in its colours
    left, top, right, bottom = _box(feathered > 0)
    margin = sum(RADII)
    area = (
        slice(max(0, top - margin), min(alpha.shape[0], bottom + margin)),
        slice(max(0, left - margin), min(alpha.shape[1], right + margin)),
    )
    colours, alpha, opacity = picture[area][..., :3], alpha[area], feathered[area]  # near the thing only
    labels = None if parts is None else parts[area]
    longest = max(right - left, bottom - top)
    if longest > options.longest:
        # a reduced edge may fall between two pixels, on either side
        scale = (options.longest - 2) / longest
        colours, alpha, opacity, labels = _smaller(colours, alpha, opacity, labels, scale, options.edge_colours)
        if not opacity.any():
            raise BestiaryError(f"its mask is so thin that nothing of it is left at {options.longest} pixels")
    if options.edge_colours:
        colours = edge_colours(colours, alpha)
    x0, y0, x1, y1 = _box(opacity > 0)
    tight = (slice(y0, y1), slice(x0, x1))
    pixels = np.dstack((colours[tight], opacity[tight]))  # (y, x, 4)
    if labels is not None:
        labels = np.where(opacity[tight] > 0, labels[tight], 255).astype(np.uint8)
    return Cutout(np.ascontiguousarray(pixels), (left, top, right - left, bottom - top), labels)


def cut_in_place(picture: NDArray[np.uint8], mask: NDArray, options: CutoutOptions) -> NDArray[np.uint8]:
    """The picture `(h, w, 4)` with the cleaned mask as its alpha and the colours of the thing along its edge.

    Args:
        picture: `(h, w, 3)` RGB.
        mask: `(h, w)`, as `as_alpha` takes it. One that is empty gives an empty alpha.
        options: how the mask is cleaned; `longest` does not count.

    Raises:
        BestiaryError: a mask of another size or with numbers out of range.
    """
    alpha = cleaned(as_alpha(mask, picture.shape), options)
    colours = edge_colours(picture[..., :3], alpha) if options.edge_colours and alpha.any() else picture[..., :3]
    return np.dstack((colours, _feathered(alpha, options.feather)))


def as_alpha(mask: NDArray, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A mask as opacity `(h, w)` in 0..1.

    Args:
        mask: `(h, w)`: true and false, whole numbers of 8 bits, or numbers in 0..1.
        shape: that of the picture.

    Raises:
        BestiaryError: another size, or numbers out of range.
    """
    if mask.shape != tuple(shape[:2]):
        size = f"{mask.shape[1]} x {mask.shape[0]}" if mask.ndim == 2 else f"of shape {mask.shape}"
        raise BestiaryError(
            f"the mask is {size}, its picture {shape[1]} x {shape[0]} pixels: give a mask of the picture's own size"
        )
    if mask.dtype == np.bool_:
        return mask.astype(np.float32)
    if mask.dtype == np.uint8:
        return mask.astype(np.float32) / np.float32(255)
    if mask.dtype.kind != "f" or not (np.isfinite(mask).all() and mask.min() >= 0 and mask.max() <= 1):
        raise BestiaryError(f"a mask of {mask.dtype} holds numbers that are not in 0..1")
    return mask.astype(np.float32)


def cleaned(alpha: NDArray[np.float32], options: CutoutOptions) -> NDArray[np.float32]:
    """An opacity `(h, w)` in 0..1 without what is not the subject, and with its small holes filled."""
    alpha = np.where(alpha < options.snap, 0, np.where(alpha > 1 - options.snap, 1, alpha)).astype(np.float32)
    if options.largest_only or options.least_piece:
        alpha = _without_pieces(alpha, options)
    if options.largest_hole:
        core = alpha >= CORE
        holes = holes_of(core)
        small = np.flatnonzero(holes.areas <= options.largest_hole * core.sum())
        alpha = np.where(np.isin(holes.labels, small), np.float32(1), alpha)
    return alpha


def _without_pieces(alpha: NDArray[np.float32], options: CutoutOptions) -> NDArray[np.float32]:
    """An opacity `(h, w)` with those of its k pieces that are meant."""
    # pieces hang together by what can be seen, and count by what is solid: cut at half opacity they would leave hard edges
    seen = pieces_of(alpha >= _SEEN)
    solid = np.bincount(seen.labels[alpha >= CORE], minlength=len(seen.areas))  # (k,) pixels
    if not solid.any():
        return alpha
    order = np.argsort(-solid, kind="stable")
    count = 1 if options.largest_only else max(1, int((solid >= options.least_piece * alpha.size).sum()))
    kept = np.isin(seen.labels, order[:count])
    alpha = np.where((seen.labels >= 0) & ~kept, np.float32(0), alpha)
    # faint edges stay where they hang on a piece that stays
    around = pieces_of(alpha > 0)
    return np.where(np.isin(around.labels, np.unique(around.labels[kept])), alpha, np.float32(0))


def edge_colours(picture: NDArray[np.uint8], alpha: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The colours of the thing alone, `(h, w, 3)`, where a picture shows it over its ground.

    Args:
        picture: `(h, w, 3)` RGB.
        alpha: `(h, w)` in 0..1. Where it is 1 colours stay exactly as they are; where it is 0 and the thing is near, its colours are
            continued, for whatever resamples the cut-out.
    """
    result = np.empty_like(picture)  # (h, w, 3)
    # the sums that averages are divided by; far from the thing there is nothing to average
    weights = [(_window_sum(alpha, r) + _LEAST_WEIGHT, _window_sum(1 - alpha, r) + _LEAST_WEIGHT) for r in RADII]
    for channel in range(3):
        shown = picture[..., channel].astype(np.float32)  # (h, w)
        thing = ground = shown
        for radius, (of_thing, of_ground) in zip(RADII, weights, strict=True):
            thing = _window_sum(thing * alpha, radius) / of_thing
            ground = _window_sum(ground * (1 - alpha), radius) / of_ground
            # what the two averages do not explain of the pixel is the thing's, as far as the thing shows
            thing = (thing + alpha * (shown - alpha * thing - (1 - alpha) * ground)).clip(0, 255)
        result[..., channel] = np.where(alpha == 1, shown, thing).round()
    return result


def _window_sum(values: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """Sum `(h, w)` over a square of `2 radius + 1` pixels around each; there is nothing outside the picture."""
    for axis in (0, 1):
        size = values.shape[axis]
        pads = [(0, 0), (0, 0)]
        pads[axis] = (1, 0)
        summed = np.pad(np.cumsum(values, axis=axis, dtype=np.float64), pads)
        place = np.arange(size)
        high, low = np.minimum(place + radius + 1, size), np.maximum(place - radius, 0)
        values = (summed.take(high, axis) - summed.take(low, axis)).astype(np.float32)
    return values


def _feathered(alpha: NDArray[np.float32], feather: float) -> NDArray[np.uint8]:
    """An opacity `(h, w)` in 0..1 as 8 bits `(h, w)`, blurred."""
    opacity = (alpha * 255).round().astype(np.uint8)
    if not feather:
        return opacity
    return np.asarray(Image.fromarray(opacity).filter(ImageFilter.GaussianBlur(feather)))


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is set in a mask `(h, w)`; the last two are one beyond."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _smaller(
    colours: NDArray[np.uint8],
    alpha: NDArray[np.float32],
    opacity: NDArray[np.uint8],
    labels: NDArray[np.uint8] | None,
    scale: float,
    over_ground: bool,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Colours `(h, w, 3)` and three `(h, w)` at a smaller size; colours of a thing alone count as far as it shows."""
    size = (max(1, round(colours.shape[1] * scale)), max(1, round(colours.shape[0] * scale)))
    smooth = Image.Resampling.BOX
    # over their ground, colours and opacity are averages of the same pixels already
    if over_ground:
        resized = np.asarray(Image.fromarray(np.ascontiguousarray(colours)).resize(size, smooth))
    else:
        resized = np.asarray(Image.fromarray(np.dstack((colours, opacity))).resize(size, smooth))[..., :3]
    return (
        resized,
        np.asarray(Image.fromarray(alpha).resize(size, smooth)).clip(0, 1),
        np.asarray(Image.fromarray(opacity).resize(size, smooth)),
        None if labels is None else np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)),
    )
