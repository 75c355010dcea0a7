"""Whether a mask can be trusted, and one line for each reason against it.

Letters: (h, w) pixels, k pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .cutout import CORE, as_alpha
from .mask_pieces import pieces_of

WHOLE = 0.98
"""Share of the picture from which on a mask shows all of it."""
_SHARP = 4.0
_CLEAR, _SOLID = 0.1, 0.9


@dataclass(frozen=True)
class CutoutLimits:
    """Limits that a mask must keep to be accepted; `None` leaves a check out."""

    least_area: float | None = 0.005
    """Share 0..1 of the picture that the subject covers at least."""
    most_area: float | None = 0.9
    """And at most."""
    second_piece: float | None = 0.2
    """Area of the second largest piece, as a share of the largest: from here on it is unclear which of them is meant."""
    border: float | None = 0.02
    """Share of the picture's border that is subject: from here on it is cut off."""
    edge: float | None = 0.06
    """Mean width of the half transparent edge, as a share of the subject's edge length if it were a square; 4 pixels always pass."""


LIMITS_AS_GIVEN = CutoutLimits(most_area=None, second_piece=None, border=None, edge=None)
"""For transparency and masks that somebody made: a tight box, several pieces and glass are meant."""


def faults_of(mask: NDArray, limits: CutoutLimits | None = None) -> tuple[str, ...]:
    """Why a mask, before it is cleaned, cannot be trusted; empty where it can.

    Args:
        mask: `(h, w)`, as `as_alpha` takes it.
        limits: None for the defaults.
    """
    alpha, limits = as_alpha(mask, mask.shape), limits or CutoutLimits()
    core = alpha >= CORE
    share = float(core.mean())
    if not core.any():
        # nothing else can be said of it
        return (f"empty: nothing in it is more than half opaque (at most {float(alpha.max(initial=0)):.0%})",)
    if share >= WHOLE and limits.most_area is not None:
        return (f"whole frame: {share:.1%} of the picture would be subject",)
    pieces = pieces_of(core)
    checks = (
        _area_fault(share, limits),
        _piece_fault(pieces.areas, limits.second_piece),
        _border_fault(core, limits.border),
        _edge_fault(alpha, core, limits.edge),
    )
    return tuple(fault for fault in checks if fault)


def _area_fault(share: float, limits: CutoutLimits) -> str:
    if limits.least_area is not None and share < limits.least_area:
        return f"area out of range: {share:.2%} of the picture, at least {limits.least_area:.2%}"
    if limits.most_area is not None and share > limits.most_area:
        return f"area out of range: {share:.1%} of the picture, at most {limits.most_area:.0%}"
    return ""


def _piece_fault(areas: NDArray[np.int64], most: float | None) -> str:
    """The reason, if any, why pieces of areas `(k,)`, falling, leave open which one is meant."""
    if most is None or len(areas) < 2 or areas[1] < most * areas[0]:
        return ""
    count = int((areas >= most * areas[0]).sum())
    return f"several pieces: {count}, the second has {areas[1] / areas[0]:.0%} of the first one's area"


def _border_fault(core: NDArray[np.bool_], most: float | None) -> str:
    """The reason, if any, why a mask `(h, w)` may be cut off by the frame."""
    sides = {"top": core[0], "bottom": core[-1], "left": core[:, 0], "right": core[:, -1]}
    share = float(np.concatenate(list(sides.values())).mean())
    if most is None or share <= most:
        return ""
    where = ", ".join(name for name, side in sides.items() if side.any())
    return f"touches the border: {share:.1%} of it ({where}), at most {most:.1%}"


def _edge_fault(alpha: NDArray[np.float32], core: NDArray[np.bool_], most: float | None) -> str:
    """The reason, if any, why the edge of an opacity `(h, w)` is not sharp enough; `core` `(h, w)` is what is solid."""
    # the outline: solid pixels with a neighbour that is not
    inside = np.pad(core, 1)
    surrounded = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    outline = int((core & ~surrounded).sum())
    width = float(((alpha > _CLEAR) & (alpha < _SOLID)).sum()) / max(outline, 1)
    allowed = max(_SHARP, (most or 0) * float(core.sum()) ** 0.5)
    if most is None or width <= allowed:
        return ""
    return f"edge too soft: {width:.1f} pixels on average, at most {allowed:.1f}"
