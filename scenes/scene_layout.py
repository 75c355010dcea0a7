"""Where the subjects of a scene stand: the record that solvers, text and editors make and that a collage is made from."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from ..concepts.errors import BestiaryError

VERSION = 1
"""Of the solver and of the rendering: a layout of another version may give other pixels."""
MOST_SIDE = 8192
"""Pixels of the longest side of a canvas."""


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
    for placement in layout.placements:
        numbers = (placement.x, placement.y, placement.width, placement.height, placement.turn)
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise BestiaryError(
                f"subject {placement.subject!r} of the layout: x, y, width, height and turn are finite numbers"
            )
        if placement.width <= 0 or placement.height <= 0:
            raise BestiaryError(f"subject {placement.subject!r} of the layout: width and height must be above 0")
    names = [placement.subject for placement in layout.placements]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise BestiaryError("a layout names every subject once")
