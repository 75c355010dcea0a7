"""Vocabulary of drawn creatures: parts, shapes, colours, patterns, species, and the held-out combinations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..concepts.errors import BestiaryError

PartName = Literal["head", "body", "wing", "tail", "legs"]

PARTS: tuple[PartName, ...] = ("head", "body", "wing", "tail", "legs")
"""Foreground parts; part `i` carries label `i + 1` in a mask, 0 is background."""

SHAPES: dict[str, tuple[str, ...]] = {
    "head": ("crested", "horned", "eared", "beaked", "trunked"),
    "body": ("round", "slim", "pear", "boxy", "humped"),
    "wing": ("oval", "pointed", "feathered", "batlike", "lobed"),
    "tail": ("fanned", "forked", "bushy", "paddle", "spiked"),
    "legs": ("sturdy", "bent", "webbed", "flared", "knobby"),
}
"""Shape words by part; each word belongs to one part only."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (244, 134, 24),
    "yellow": (246, 214, 50),
    "green": (62, 166, 62),
    "cyan": (64, 204, 208),
    "blue": (44, 88, 214),
    "purple": (134, 60, 188),
    "pink": (248, 152, 196),
    "white": (242, 240, 232),
    "black": (52, 50, 58),
}
"""Main colour of a part in daylight, RGB 0..255."""

PATTERN_COLORS: dict[str, tuple[int, int, int]] = {
    "red": (252, 196, 176),
    "orange": (255, 232, 186),
    "yellow": (156, 112, 16),
    "green": (204, 240, 176),
    "cyan": (16, 98, 112),
    "blue": (186, 212, 255),
    "purple": (226, 196, 250),
    "pink": (160, 44, 100),
    "white": (138, 140, 150),
    "black": (176, 174, 178),
}
"""Second colour that a pattern adds to the main colour, RGB 0..255."""

PATTERNS: tuple[str, ...] = ("plain", "striped", "spotted", "checked", "dipped")
"""Pattern words. The finest period is 11 px at scale 1 and never below 9 px in a drawing."""

PLACES: tuple[str, ...] = ("meadow", "forest", "desert", "beach", "snow", "mountains", "garden", "swamp")
LIGHTS: tuple[str, ...] = ("day", "dusk", "night")
FACINGS: tuple[str, ...] = ("left", "right")


@dataclass(frozen=True)
class PartLook:
    """Look of one part: a word of `SHAPES[part]`, of `COLORS` and of `PATTERNS`."""

    shape: str
    color: str
    pattern: str


@dataclass(frozen=True)
class Species:
    """A named creature: one look per part, in the order of `PARTS`."""

    name: str
    looks: tuple[PartLook, ...]

    def __post_init__(self) -> None:
        if len(self.looks) != len(PARTS):
            raise BestiaryError(
                f"species {self.name!r} has {len(self.looks)} looks, but {len(PARTS)} are needed: {', '.join(PARTS)}"
            )
        # validated once here, so that later lookups cannot fail
        for part, look in zip(PARTS, self.looks, strict=True):
            _check_word(self.name, part, "shape", look.shape, SHAPES[part])
            _check_word(self.name, part, "color", look.color, tuple(COLORS))
            _check_word(self.name, part, "pattern", look.pattern, PATTERNS)

    def look(self, part: str) -> PartLook:
        """Look of `part`; raises BestiaryError for a word that is not in `PARTS`."""
        if part not in PARTS:
            raise BestiaryError(f"unknown part {part!r}; valid parts: {', '.join(PARTS)}")
        return self.looks[PARTS.index(part)]


@dataclass(frozen=True)
class Scene:
    """Setting of a creature: a word of `PLACES`, of `LIGHTS` and of `FACINGS`."""

    place: str
    light: str = "day"
    facing: str = "right"

    def __post_init__(self) -> None:
        _check_word("scene", "scene", "place", self.place, PLACES)
        _check_word("scene", "scene", "light", self.light, LIGHTS)
        _check_word("scene", "scene", "facing", self.facing, FACINGS)


def _check_word(owner: str, part: str, field: str, word: str, valid: tuple[str, ...]) -> None:
    if word not in valid:
        raise BestiaryError(f"{owner}: {part} has {field} {word!r}; valid: {', '.join(valid)}")


def is_held_out(part: str, shape: str, pattern: str) -> bool:
    """True if the pair (shape, pattern) of `part` is excluded from `random_species`: about every third pair."""
    return (SHAPES[part].index(shape) + PATTERNS.index(pattern) + PARTS.index(part)) % 3 == 0


def held_out_pairs(part: str) -> tuple[tuple[str, str], ...]:
    """All (shape, pattern) pairs of `part` that `random_species` never draws."""
    return tuple((s, p) for s in SHAPES[part] for p in PATTERNS if is_held_out(part, s, p))


def random_species(rng: np.random.Generator) -> Species:
    """A creature with uniformly drawn looks, none of them a held-out (part, shape, pattern) pair."""
    looks = []
    for part in PARTS:
        # shape and pattern are drawn jointly, because pairs are held out, not single words
        open_pairs = [(s, p) for s in SHAPES[part] for p in PATTERNS if not is_held_out(part, s, p)]
        shape, pattern = open_pairs[rng.integers(len(open_pairs))]
        looks.append(PartLook(shape, str(rng.choice(list(COLORS))), pattern))
    return Species("creature", tuple(looks))


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene with uniformly drawn place and facing; half of the scenes are in daylight."""
    place, facing = str(rng.choice(PLACES)), str(rng.choice(FACINGS))
    return Scene(place, str(rng.choice(LIGHTS, p=(0.5, 0.25, 0.25))), facing)


_HELD_OUT_NAMES = (
    "ember lark", "marsh piper", "dune strider", "frost hopper", "moss warden", "tide runner", "plum glider",
    "sun courser", "ash drake", "coral wren", "thistle finch", "moon heron", "reed hornet", "gale otter",
)  # fmt: skip


def _held_out_species(index: int, name: str) -> Species:
    """Species `index`: a held-out pair in every part, chosen so that no two species share a look of a part."""
    looks = []
    colors = list(COLORS)
    # a different stride through pairs and colours in every part keeps the species distinct
    for number, part in enumerate(PARTS):
        pairs = held_out_pairs(part)
        shape, pattern = pairs[(index * 5 + number * 3) % len(pairs)]
        color = colors[(index * 3 + number * 4 + index // len(pairs) * 5 + (number * index) % 3) % len(colors)]
        looks.append(PartLook(shape, color, pattern))
    return Species(name, tuple(looks))


HELD_OUT_SPECIES: tuple[Species, ...] = tuple(_held_out_species(i, n) for i, n in enumerate(_HELD_OUT_NAMES))
"""Species whose (shape, pattern) pairs, in all five parts, never occur in `random_species`."""
