"""Places behind subjects: a photograph, a blurred one, coloured noise or one colour, and the words that captions have for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ..concepts.errors import BestiaryError

BackgroundMode = Literal["photo", "blur", "noise", "plain"]
MODES: tuple[BackgroundMode, ...] = get_args(BackgroundMode)
_OCTAVES = 4
_BLUR = 0.012
"""Radius of `blur` against the longer side of the canvas."""
_ON = frozenset(
    [
        "beach",
        "bench",
        "bridge",
        "carpet",
        "chair",
        "couch",
        "court",
        "deck",
        "desk",
        "farm",
        "field",
        "floor",
        "hill",
        "ice",
        "island",
        "lawn",
        "meadow",
        "mountain",
        "pier",
        "platform",
        "playground",
        "porch",
        "road",
        "roof",
        "rock",
        "sand",
        "shelf",
        "snow",
        "sofa",
        "stage",
        "street",
        "table",
        "terrace",
        "track",
        "trail",
    ]
)
_UNDER = frozenset(["water", "sea", "ocean"])
_NO_ARTICLE = frozenset(["grass", "ice", "sand", "snow", "space", "water", "sunlight", "rain", "fog"])
_OF_CAMERAS = re.compile(
    r"(img|dsc[nf]?|dscf|pxl|photo|picture|image|scan|untitled|screenshot|unnamed|bg|background)", re.I
)

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Place:
    """A picture of a place."""

    name: str
    """Its file's name, which the caption's words come from unless `phrase` gives them."""
    picture: Picture | Callable[[], Picture]
    """`(h, w, 3)` RGB, or what reads it when it is wanted."""
    phrase: str = ""
    """Words for captions, such as `in a garden`."""

    def pixels(self) -> Picture:
        """`(h, w, 3)` RGB.

        Raises:
            BestiaryError: the pixels have another shape.
        """
        pixels = self.picture() if callable(self.picture) else self.picture
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
            raise BestiaryError(f"place {self.name!r} is {pixels.shape} of {pixels.dtype}, not (h, w, 3) of uint8")
        return pixels


@dataclass(frozen=True)
class Background:
    """What subjects are laid over."""

    pixels: Picture
    """`(H, W, 3)` RGB of the canvas's size."""
    phrase: str
    """Words for captions; may be empty."""
    place: str
    """Name of the place, or the mode where there is none."""


def make_background(
    mode: BackgroundMode,
    width: int,
    height: int,
    seed: int,
    places: Sequence[Place] = (),
    index: int = 0,
    color: tuple[int, int, int] = (200, 200, 200),
    phrase: str | None = None,
) -> Background:
    """Background number `index` of a series; the same arguments give the same pixels.

    Args:
        width: of the canvas in pixels, as `height`.
        seed: of the series. A series uses all places equally often, in another order each time round.
        places: pictures of a folder, or a single one; `noise` and `plain` need none.
        color: RGB of `plain`, 0 to 255.
        phrase: words for captions instead of the place's own.

    Raises:
        BestiaryError: an unknown mode, a mode that needs a place and has none, or a place that is not a picture.
    """
    if mode not in MODES:
        raise BestiaryError(f"background {mode!r} is not one of {', '.join(MODES)}")
    if mode == "plain":
        pixels = np.full((height, width, 3), color, np.uint8)
        return Background(pixels, "on a plain background" if phrase is None else phrase, mode)
    random = np.random.default_rng([seed, index])
    if mode == "noise":
        return Background(_noise(random, width, height), "" if phrase is None else phrase, mode)
    if not places:
        raise BestiaryError(
            f"background {mode!r} needs a picture of a place: give a folder or a picture, or choose noise or plain"
        )
    place = places[place_of(seed, index, len(places))]
    pixels = _fitted(place.pixels(), width, height, random)
    if mode == "blur":
        radius = _BLUR * max(width, height)
        pixels = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))
    return Background(pixels, (place.phrase or place_phrase(place.name)) if phrase is None else phrase, place.name)


def place_of(seed: int, index: int, count: int) -> int:
    """Which of `count` places background number `index` of a series shows."""
    turn, position = divmod(index, count)
    return int(np.random.default_rng([seed, turn]).permutation(count)[position])


def place_phrase(name: str) -> str:
    """Words for a place by the name of its file or folder: `garden_1.jpg` -> `in a garden`, `beach` -> `on a beach`.

    Empty for names that cameras give.
    """
    stem = re.sub(r"\.\w{2,4}$", "", re.split(r"[\\/]", name.strip())[-1])
    words = [word.lower() for word in re.split(r"[\W\d_]+", stem) if word]
    if not words or all(_OF_CAMERAS.fullmatch(word) or len(word) < 2 for word in words):
        return ""
    # a name may be a phrase already
    if words[0] in ("in", "on", "at", "under", "by", "near", "inside", "beside"):
        return " ".join(words)
    last = words[-1]
    preposition = "under" if last in _UNDER and len(words) == 1 else "on" if last in _ON else "in"
    if words[0] in ("the", "a", "an") or last in _NO_ARTICLE:
        return f"{preposition} {' '.join(words)}"
    # a name that is not a known kind of place may be a proper name, and `the` fits those too
    article = ("an" if last[0] in "aeiou" else "a") if last in _KNOWN and len(words) == 1 else "the"
    if last in _KNOWN and len(words) > 1:
        article = "an" if words[0][0] in "aeiou" else "a"
    return f"{preposition} {article} {' '.join(words)}"


_KNOWN = _ON | frozenset(
    [
        "alley",
        "attic",
        "autumn",
        "backyard",
        "barn",
        "basement",
        "bathroom",
        "bedroom",
        "cafe",
        "castle",
        "cave",
        "church",
        "city",
        "classroom",
        "clearing",
        "cottage",
        "courtyard",
        "desert",
        "forest",
        "garage",
        "garden",
        "greenhouse",
        "gym",
        "hall",
        "harbour",
        "house",
        "jungle",
        "kitchen",
        "lake",
        "library",
        "market",
        "museum",
        "office",
        "orchard",
        "park",
        "pond",
        "pool",
        "restaurant",
        "river",
        "room",
        "school",
        "shop",
        "stable",
        "station",
        "stream",
        "studio",
        "swamp",
        "temple",
        "town",
        "tunnel",
        "valley",
        "vineyard",
        "village",
        "warehouse",
        "wood",
        "yard",
        "zoo",
    ]
)


def _fitted(pixels: Picture, width: int, height: int, random: np.random.Generator) -> Picture:
    """Pixels `(H, W, 3)` scaled until they cover the canvas; the rest is cut off by chance at the sides, more above than below."""
    own_height, own_width = pixels.shape[:2]
    scale = max(width / own_width, height / own_height)
    # the part of the photograph that the canvas shows, in its own pixels
    shown_width, shown_height = min(own_width, width / scale), min(own_height, height / scale)
    left = float(random.random()) * (own_width - shown_width)
    top = (0.5 + 0.5 * float(random.random())) * (own_height - shown_height)
    box = (left, top, min(own_width, left + shown_width), min(own_height, top + shown_height))
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS, box=box)
    return np.asarray(picture)


def _noise(random: np.random.Generator, width: int, height: int) -> Picture:
    """Coloured noise `(H, W, 3)` of several grain sizes, the finest two pixels."""
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(_OCTAVES):
        grain = 2 ** (octave + 1)
        size = (-(-height // grain) + 1, -(-width // grain) + 1, 3)
        grains = Image.fromarray(random.integers(0, 256, size, np.uint8))
        total += np.asarray(grains.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    mean = total / _OCTAVES
    # the mean of four is greyer than one of them
    return ((mean - 127.5) * 2 + 127.5 + 0.5).clip(0, 255).astype(np.uint8)
