"""Whether a painted scene can be kept: subjects as they were, no seam around them, no empty place, nobody who was not asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..concepts.errors import BestiaryError
from .mask_pieces import pieces_of
from .soft_edges import soft_core

CORE = 3
"""Pixels inside a subject's edge from which on it is compared."""
MOST_FIDELITY = 99.0
"""dB for subjects that did not change at all."""
_HALF = 128
_NEAR = 2
_LEAST_STEP = 1 / 255

_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SceneLimits:
    """Limits that a painted scene must keep; None leaves a check out."""

    fidelity: float | None = 30.0
    """dB at least between subjects before and after (peak signal-to-noise ratio)."""
    seam: float | None = 4.0
    """Step of lightness across the subjects' edge at most, against the step that the collage has there."""
    empty: float | None = 0.02
    """Standard deviation of the place, 0..1, at least."""
    extra: float | None = 0.1
    """Area of a thing outside the subjects at most, as a share of all subjects'."""


@dataclass(frozen=True)
class JudgedScene:
    """What was measured, and why a scene is refused."""

    fidelity: float
    """dB."""
    seam: float
    empty: float
    extra: float
    faults: tuple[str, ...]
    """Empty where it is kept."""


def judge_scene(
    painted: _Floats,
    canvas: _Floats,
    mask: NDArray[np.uint8],
    limits: SceneLimits | None = None,
    things: NDArray[np.uint8] | None = None,
) -> JudgedScene:
    """Measure a painted scene against its collage.

    Args:
        painted: `(H, W, 3)` in 0..1, with subjects put back or not.
        canvas: `(H, W, 3)` in 0..1, the collage.
        mask: `(H, W)`, 255 where a subject is.
        limits: None for the defaults.
        things: `(H, W)`, 255 wherever a segmentation sees a thing in the painted picture; None leaves extra things unlooked for.

    Raises:
        BestiaryError: pictures or masks of different sizes, or no subject in the mask.
    """
    limits = limits or SceneLimits()
    shapes = {painted.shape[:2], canvas.shape[:2], mask.shape, mask.shape if things is None else things.shape}
    if len(shapes) > 1:
        sizes = ", ".join(f"{shape[1]} x {shape[0]}" for shape in sorted(shapes))
        raise BestiaryError(f"picture, canvas and masks differ in size ({sizes}): all must be equal")
    if not (mask >= _HALF).any():
        raise BestiaryError("the mask shows no subject: connect the output subjects of Compose Scene")
    place = mask == 0
    measured = {
        "fidelity": _fidelity(painted, canvas, mask),
        "seam": _step(painted, mask) / max(_step(canvas, mask), _LEAST_STEP),
        "empty": float(painted[place].std(axis=0).mean()) if place.any() else 1.0,
        "extra": 0.0 if things is None else _extra(things, mask),
    }
    return JudgedScene(**measured, faults=tuple(_faults(measured, limits)))


def _faults(measured: dict[str, float], limits: SceneLimits) -> list[str]:
    fidelity, seam, empty, extra = (measured[name] for name in ("fidelity", "seam", "empty", "extra"))
    checks = (
        (limits.fidelity, limits.fidelity is not None and fidelity < limits.fidelity,
         f"subjects changed: {fidelity:.1f} dB, at least {limits.fidelity} are wanted; put Restore Subjects before"),
        (limits.seam, limits.seam is not None and seam > limits.seam,
         f"seams: the edge of the subjects is {seam:.1f} times as hard as in the collage, at most {limits.seam} are allowed"),
        (limits.empty, limits.empty is not None and empty < limits.empty,
         f"empty: the place varies by {empty:.3f}, at least {limits.empty} is wanted"),
        (limits.extra, limits.extra is not None and extra > limits.extra,
         f"extra: something as large as {extra:.0%} of all subjects stands outside them"),
    )  # fmt: skip
    return [text for _, broken, text in checks if broken]


def _fidelity(painted: _Floats, canvas: _Floats, mask: NDArray[np.uint8]) -> float:
    core = soft_core(mask, CORE) == 1
    # subjects thinner than the inset are compared whole
    core = core if core.any() else mask >= _HALF
    error = float(((painted[core] - canvas[core]).astype(np.float64) ** 2).mean())
    return MOST_FIDELITY if error == 0 else min(MOST_FIDELITY, float(-10 * np.log10(error)))


def _step(picture: _Floats, mask: NDArray[np.uint8]) -> float:
    """Mean difference of lightness between both sides of the subjects' edge `(H, W)`, across rows and columns."""
    light, solid = picture.mean(axis=-1), mask >= _HALF
    steps = []
    for axis in (0, 1):
        one, other = (np.moveaxis(values, axis, 0) for values in (light, solid))
        count = len(one) - 2 * _NEAR
        edges = other[_NEAR - 1 : _NEAR - 1 + count] != other[_NEAR : _NEAR + count]
        steps.append(np.abs(one[:count] - one[2 * _NEAR :])[edges])
    together = np.concatenate(steps)
    return float(together.mean()) if len(together) else 0.0


def _extra(things: NDArray[np.uint8], mask: NDArray[np.uint8]) -> float:
    """Area of the largest piece of `(H, W)` outside the subjects against that of all of them."""
    outside = pieces_of((things >= _HALF) & (mask == 0)).areas
    return float(outside.max() / (mask >= _HALF).sum()) if len(outside) else 0.0
