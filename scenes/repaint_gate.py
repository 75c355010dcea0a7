"""Whether a repainted scene is fit for a training set: something was painted, nobody else appeared, and no seam shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ..concepts.errors import BestiaryError
from .mask_pieces import pieces_of

Plane = NDArray[np.uint8]
FindThings = Callable[[Plane], Plane]
"""Picture `(H, W, 3)` -> mask `(H, W)`, 255 on whatever stands out of its place."""

_NEAR, _FAR = 3, 9
"""Pixels outside the subjects where a seam would show, and where the place is as the model meant it."""
_REACH = 8
"""Pixels around a subject that belong to its own edge and shadow."""
_SOLID = 128
_SPECK = 0.001
"""Share of the picture below which a piece is no thing."""


@dataclass(frozen=True)
class RepaintLimits:
    """What a repainted scene must keep."""

    least_change: float = 0.02
    """Mean change of the repainted place, 0 to 1: below it the model painted nothing. 0 switches the check off."""
    least_detail: float = 0.004
    """Spread of the repainted place, 0 to 1: below it the place is empty. 0 switches the check off."""
    most_seam: float = 0.25
    """Largest step in colour along the subjects' edges, 0 to 1. 1 switches the check off."""
    most_extra: float = 0.01
    """Largest share of the picture that things outside the subjects may take, 0 to 1. 1 switches the check off."""

    def __post_init__(self) -> None:
        """Raises BestiaryError for a limit outside 0 to 1."""
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise BestiaryError(f"{name} {value:g} is out of range: give 0 to 1")


@dataclass(frozen=True)
class RepaintVerdict:
    """What was seen of a repainted scene."""

    scores: dict[str, float]
    """`psnr` in dB of the subjects before they were put back, `change`, `detail`, `seam` and, where it was looked for, `extra`."""
    reasons: tuple[str, ...]
    """Why it is refused; none where it is fit."""


def judge_repaint(
    painted: Plane,
    restored: Plane,
    canvas: Plane,
    union: Plane,
    limits: RepaintLimits | None = None,
    find_things: FindThings | None = None,
) -> RepaintVerdict:
    """Look at a repainted scene.

    Args:
        painted: `(H, W, 3)` as the model gave it.
        restored: `(H, W, 3)` with the subjects put back.
        canvas: `(H, W, 3)` the collage.
        union: `(H, W)`, 255 where a subject is.
        limits: None for the defaults.
        find_things: a cut-out network; without one nobody looks for further subjects.

    Raises:
        BestiaryError: pictures or a mask of different sizes.
    """
    if not painted.shape == restored.shape == canvas.shape or union.shape != canvas.shape[:2]:
        sizes = ", ".join(f"{one.shape[1]} x {one.shape[0]}" for one in (painted, restored, canvas, union))
        raise BestiaryError(f"painted, restored and original picture and the mask have {sizes} pixels: give one size")
    limits, place = limits or RepaintLimits(), union == 0
    scores = {"psnr": subject_psnr(painted, canvas, union)}
    if place.any():
        change = np.abs(restored.astype(np.float32) - canvas)[place].mean() / 255
        scores |= {
            "change": float(change),
            "detail": float(restored[place].astype(np.float32).std(axis=0).mean() / 255),
        }
    scores["seam"] = seam(restored, union)
    if find_things is not None:
        scores["extra"] = extra_share(find_things(restored), union)
    faults = (
        (scores.get("change", 1) < limits.least_change, "change", "the model painted nothing new", "least_change"),
        (
            scores.get("detail", 1) < limits.least_detail,
            "detail",
            "the place around the subjects is empty",
            "least_detail",
        ),
        (scores["seam"] > limits.most_seam, "seam", "a seam shows around the subjects", "most_seam"),
        (scores.get("extra", 0) > limits.most_extra, "extra", "another subject was painted", "most_extra"),
    )
    reasons = [
        f"{words} ({name} {scores[name]:.3f}, {limit} {getattr(limits, limit):g})"
        for wrong, name, words, limit in faults
        if wrong
    ]
    return RepaintVerdict({name: round(value, 4) for name, value in scores.items()}, tuple(reasons))


def subject_psnr(painted: Plane, canvas: Plane, union: Plane) -> float:
    """Peak signal-to-noise ratio in dB of `(H, W, 3)` against the collage where subjects are whole; 100 where they are equal."""
    whole = union == 255
    if not whole.any():
        return 100.0
    error = float(np.square(painted[whole].astype(np.float64) - canvas[whole]).mean())
    return 100.0 if error == 0 else min(100.0, 10 * float(np.log10(255**2 / error)))


def seam(picture: Plane, union: Plane) -> float:
    """How far the place right at the subjects' edges differs in colour from the place a few pixels on, 0 to 1.

    The 90th percentile along the edges of `(H, W, 3)`; a halo of the old background around `union` `(H, W)` is such a step, and
    texture of the place is not, since both sides are smoothed.
    """
    body = union >= _SOLID
    if not body.any() or body.all():
        return 0.0
    near = _grown(body, _NEAR) & ~_grown(body, 1)
    far = _grown(body, _FAR) & ~_grown(body, _NEAR + 1)
    if not near.any() or not far.any():
        return 0.0
    pixels = np.divide(picture, 255, dtype=np.float32)
    beside, beyond = _local_mean(pixels, near), _local_mean(pixels, far)
    edge = near & np.isfinite(beside).all(-1) & np.isfinite(beyond).all(-1)
    return float(np.percentile(np.abs(beside - beyond)[edge].mean(-1), 90)) if edge.any() else 0.0


def extra_share(things: Plane, union: Plane) -> float:
    """Share of the picture that things take which no subject of `union` `(H, W)` explains; specks do not count."""
    explained = _grown(union > 0, _REACH)
    areas = pieces_of((things >= _SOLID) & ~explained).areas
    return float(areas[areas >= _SPECK * things.size].sum() / things.size)


def _grown(mask: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """A mask `(H, W)` and what is within `reach` pixels of it."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * reach + 1))) > 0


def _local_mean(pixels: NDArray[np.float32], where: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Mean colour `(H, W, 3)` of the chosen pixels within reach of each; NaN where there is none."""
    weight = _box_sum(where[..., None].astype(np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight > 0.5, _box_sum(pixels * where[..., None]) / weight, np.nan)


def _box_sum(values: NDArray) -> NDArray[np.float64]:
    """Sum `(H, W, c)` over the square of `_FAR` pixels around each pixel, within the picture."""
    for axis in (0, 1):
        room = [(0, 0)] * values.ndim
        room[axis] = (_FAR + 1, _FAR)
        total = np.cumsum(np.pad(values, room), axis=axis, dtype=np.float64)
        width = values.shape[axis]
        values = np.take(total, range(2 * _FAR + 1, 2 * _FAR + 1 + width), axis) - np.take(total, range(width), axis)
    return values
