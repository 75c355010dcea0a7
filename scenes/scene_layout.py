"""Where the subjects of a scene stand: the record that solvers, text and editors make and that a collage is made from."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TypeGuard

from ..concepts.errors import BestiaryError

VERSION = 1
"""Of the solver and of the rendering: a layout of another version may give other pixels."""
MOST_SIDE = 8192
"""Pixels of the longest side of a canvas."""
MOST_SEED = 2**64 - 1
_MOST_TEXT = 1_000_000
"""Characters of a layout as JSON."""
_MOST_Z = 2**31


@dataclass(frozen=True)
class Placement:
    """One subject on the canvas."""

    subject: str
    """Name of the subject."""
    x: float
    """Left side of its box, in pixels of the canvas from the left."""
    y: float
    """Top of its box, in pixels from the top."""
    width: float
    """Of the box that the upright cut-out fills, in pixels; height and width keep the cut-out's shape."""
    height: float
    turn: float = 0.0
    """Degrees clockwise around the middle of the box, -180 to 180."""
    flip: bool = False
    """Mirrored left to right, before it is turned."""
    z: int = 0
    """Order of painting, the lowest first."""

    @property
    def foot(self) -> float:
        """Lower side of the box, in pixels from the top."""
        return self.y + self.height


@dataclass(frozen=True)
class SceneLayout:
    """A canvas and what stands on it."""

    width: int
    """Of the canvas, in pixels."""
    height: int
    placements: tuple[Placement, ...]
    seed: int = 0
    """Of the solver, and of what is chosen by chance for this scene later on."""
    made_by: str = "solver"
    """`solver`, `text`, `boxes`, `llm` or `edited`."""
    version: int = VERSION

    def placed(self, name: str) -> Placement:
        """The placement of a subject; raises KeyError if it has none."""
        for placement in self.placements:
            if placement.subject == name:
                return placement
        raise KeyError(name)

    def to_json(self) -> str:
        """As text that `from_json` reads: keys in a fixed order, numbers exactly."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> SceneLayout:
        """Read what `to_json` wrote.

        Raises:
            BestiaryError: no such JSON, a field that is missing, unknown or of another type, or numbers out of range.
        """
        if len(text) > _MOST_TEXT:
            raise BestiaryError(f"a layout of {len(text)} characters is longer than {_MOST_TEXT}: is it another file?")
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as fault:
            raise BestiaryError(f"a layout is JSON, and this cannot be read: {fault}") from fault
        try:
            placements = tuple(Placement(**entry) for entry in content.pop("placements"))
            layout = cls(placements=placements, **content)
        except (AttributeError, KeyError, TypeError) as fault:
            raise BestiaryError(
                "this JSON is not a layout of a scene: width, height and placements with x, y, width, height"
            ) from fault
        _check(layout)
        return layout


def _check(layout: SceneLayout) -> None:
    whole = (
        layout.width,
        layout.height,
        layout.seed,
        layout.version,
        *(placement.z for placement in layout.placements),
    )
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in whole):
        raise BestiaryError("width, height, seed, version and z of a layout are whole numbers")
    if not (0 < layout.width <= MOST_SIDE and 0 < layout.height <= MOST_SIDE):
        raise BestiaryError(
            f"the canvas of a layout is 1 to {MOST_SIDE} pixels wide and high, not {layout.width} x {layout.height}"
        )
    if not 0 <= layout.seed <= MOST_SEED or any(abs(placement.z) > _MOST_Z for placement in layout.placements):
        raise BestiaryError(f"seed of a layout is 0 to {MOST_SEED}, z is -{_MOST_Z} to {_MOST_Z}")
    if not isinstance(layout.made_by, str):
        raise BestiaryError(f"made_by of a layout is text, not {str(layout.made_by)[:40]}")
    for placement in layout.placements:
        _check_placement(placement)
    names = [placement.subject for placement in layout.placements]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise BestiaryError("a layout names every subject once")


def _check_placement(placement: Placement) -> None:
    shown = repr(placement.subject)[:80]
    numbers = (placement.x, placement.y, placement.width, placement.height, placement.turn)
    if not all(map(is_number, numbers)):
        raise BestiaryError(f"subject {shown} of the layout: x, y, width, height and turn are finite numbers")
    if placement.width <= 0 or placement.height <= 0:
        raise BestiaryError(f"subject {shown} of the layout: width and height must be above 0")
    if abs(placement.turn) > 180:
        raise BestiaryError(f"subject {shown} of the layout: turn {placement.turn:g} must be -180 to 180 degrees")
    if not isinstance(placement.flip, bool):
        raise BestiaryError(f"subject {shown} of the layout: flip is true or false")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number and no truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
