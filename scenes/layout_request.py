"""What is asked of a layout, and which subjects can stand in one together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..concepts.errors import BestiaryError
from ..concepts.name_search import choices_text, plain_name, same_names, shown_name
from .scene_layout import MOST_SEED, MOST_SIDE
from .subject import Subject

MOST_SUBJECTS = 64
"""In one scene."""


@dataclass(frozen=True)
class LayoutRequest:
    """A canvas and the limits of what is laid out on it.

    Raises:
        BestiaryError: a number out of its range.
    """

    width: int
    """Of the canvas, in pixels, 1 to 8192."""
    height: int
    seed: int = 0
    """0 to 2**64 - 1; the same seed gives the same layout."""
    coverage: float = 0.22
    """Largest share of the canvas that the boxes of all subjects take together, above 0, to 1."""
    max_occlusion: float = 0.15
    """Largest share of a subject that others may hide, 0 to 1."""
    ground: tuple[float, float] = (0.62, 0.97)
    """Where feet on the ground may be, from far to near, as shares of the canvas from the top."""
    perspective: float = 0.3
    """How much smaller subjects on the far side of the ground are, 0 (not at all) to below 1."""
    flip: bool = True
    """Mirror some subjects left to right, by chance."""
    turn: float = 0.0
    """Turn subjects by chance up to this many degrees to either side, 0 to 180; what carries another subject is not turned."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("width", "height"):
            side = getattr(self, name)
            if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= MOST_SIDE:
                raise BestiaryError(f"layout: {name} {side!r} must be a whole number of pixels from 1 to {MOST_SIDE}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed <= MOST_SEED:
            raise BestiaryError(f"layout: seed {self.seed!r} must be a whole number from 0 to {MOST_SEED}")
        low, high = self.ground
        for name, value, holds, range_ in (
            ("coverage", self.coverage, 0 < self.coverage <= 1, "above 0, at most 1"),
            ("max_occlusion", self.max_occlusion, 0 <= self.max_occlusion <= 1, "0 to 1"),
            ("ground", self.ground, 0 <= low <= high <= 1, "two shares of the height, 0 to 1, the smaller first"),
            ("perspective", self.perspective, 0 <= self.perspective < 1, "0 to below 1"),
            ("turn", self.turn, 0 <= self.turn <= 180, "0 to 180 degrees"),
        ):
            if not holds:
                raise BestiaryError(f"layout: {name} {value} must be {range_}")

    def depth_scale(self, foot: float) -> float:
        """Size at a foot (share of the height) against the near side of the ground."""
        low, high = self.ground
        if high == low:
            return 1.0
        return 1 - self.perspective * min(1.0, max(0.0, (high - foot) / (high - low)))


def supporters(subjects: Sequence[Subject]) -> list[int | None]:
    """For every subject the place of the one it stands on, None for those that stand on no other.

    Raises:
        BestiaryError: no subject or too many, two of one name, or a supporter that is not there or stands on itself by way of others.
    """
    if not subjects:
        raise BestiaryError("a layout needs at least one subject, got none")
    if len(subjects) > MOST_SUBJECTS:
        raise BestiaryError(f"{len(subjects)} subjects are too many for one scene: at most {MOST_SUBJECTS}")
    names = [subject.name for subject in subjects]
    seen: dict[str, str] = {}
    for name in names:
        if plain_name(name) in seen:
            raise BestiaryError(
                f"two subjects have the same name: {shown_name(seen[plain_name(name)])} and {shown_name(name)};"
                f" call the second {shown_name(name + ' 2')}, for instance"
            )
        seen[plain_name(name)] = name
    below = [_supporter(subject, names) for subject in subjects]
    for start in range(len(subjects)):
        path = [start]
        while (upon := below[path[-1]]) is not None:
            path.append(upon)
            if upon in path[:-1]:
                circle = " on ".join(names[place] for place in path[path.index(upon) :])
                raise BestiaryError(
                    f"subjects stand on each other in a circle: {circle}; let one of them stand on the ground"
                )
    return below


def _supporter(subject: Subject, names: list[str]) -> int | None:
    if not subject.support.startswith("on:"):
        return None
    wanted = subject.support.removeprefix("on:").strip()
    places = same_names(wanted, names)
    if not places:
        raise BestiaryError(
            f"subject {shown_name(subject.name)} stands on {shown_name(wanted)}, and no subject is called so;"
            f" there are {choices_text(wanted, names)}"
        )
    return places[0]


def pixels_needed(name: str, width: float, height: float, limit: str, request: LayoutRequest) -> BestiaryError:
    """The error of a layout in which a subject would vanish."""
    remedies = {
        "coverage": f"coverage {request.coverage:g}: raise it or take fewer subjects",
        "width": f"the width of the canvas, {request.width} pixels: widen it, or take fewer or less wide subjects",
        "ground": f"the room above the ground {request.ground[0]:g} ... {request.ground[1]:g}: lower the ground (larger numbers)"
        " or make the canvas higher",
        "height": f"the height of the canvas, {request.height} pixels: make it higher",
    }
    return BestiaryError(
        f"no layout: subject {shown_name(name)} would be {width:.2g} x {height:.2g} pixels on a canvas of"
        f" {request.width} x {request.height}; the limit is {remedies[limit]}"
    )
