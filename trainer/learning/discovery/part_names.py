"""Names of parts: suggested from their positions and sizes, or read from a small TOML file."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from ....concepts.errors import BestiaryError
from ....concepts.files.text_file import LARGEST_TOML, parse_toml, read_text
from ....concepts.part_map.codebook_edits import rename
from ....concepts.part_map.part_codebook import PartCodebook

BACKGROUND_NAME = "background"
_OFF_CENTRE = 0.3  # of half the object's width
_LEVEL = 0.08  # of half the object's height: parts that differ less are on one level
_LEVELS = ((-0.6, "top"), (-0.2, "upper"), (0.2, "middle"), (0.6, "lower"), (1.0, "bottom"))


@dataclass
class PartPlaces:
    """Running sums of part positions within their objects; `add` may be called with batches of any size."""

    num_parts: int
    background: int
    offsets: Tensor = field(init=False)
    squares: Tensor = field(init=False)
    areas: Tensor = field(init=False)
    images: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.offsets = torch.zeros(self.num_parts, 2, dtype=torch.float64)  # (M, 2) sums of y, x in -1..1
        self.squares = torch.zeros(self.num_parts, 2, dtype=torch.float64)
        self.areas = torch.zeros(self.num_parts, dtype=torch.float64)  # (M,) sums of shares of the picture
        self.images = torch.zeros(self.num_parts, dtype=torch.long)  # (M,) pictures that show the part

    def add(self, labels: Tensor) -> None:
        """Add part labels `(N, h, w)`."""
        masks = labels.long().unsqueeze(1) == torch.arange(self.num_parts).view(1, -1, 1, 1)  # (N, M, h, w)
        things = labels != self.background  # (N, h, w)
        counts = masks.sum((2, 3))  # (N, M)
        present = counts > 0
        # mean position of each part within its object: rows first, then columns
        for axis in (0, 1):
            place = _within_thing(things, axis)  # (N, h or w) in -1..1 inside the object
            mass = masks.sum(3 - axis).double()  # (N, M, h or w): patches of the part along this axis
            offset = (mass * place.unsqueeze(1)).sum(2) / counts.clamp_min(1)  # (N, M)
            self.offsets[:, axis] += offset.sum(0)
            self.squares[:, axis] += offset.square().sum(0)
        self.areas += counts.double().sum(0) / labels[0].numel()
        self.images += present.sum(0)

    def mean(self) -> Tensor:
        """Mean position `(M, 2)` as (y, x), -1 at the object's top and left edge, 1 at its bottom and right."""
        return self.offsets / self.images.clamp_min(1).unsqueeze(1)

    def spread(self) -> Tensor:
        """Standard deviation `(M, 2)` of the position over pictures."""
        shown = self.images.clamp_min(1).unsqueeze(1)
        return (self.squares / shown - self.mean().square()).clamp_min(0).sqrt()

    def area(self) -> Tensor:
        """Mean area share `(M,)` over the pictures that show the part, 0..1, of labels `(N, h, w)`."""
        return self.areas / self.images.clamp_min(1)


def propose_names(places: PartPlaces) -> tuple[str, ...]:
    """A unique name per part that is valid in prompts: `top`, `upper left`, `small middle`, ..., `background`.

    Heights are relative to the other parts. A side is named only if the part is consistently on it, which is not the
    case for objects that face both ways.
    """
    mean, spread = places.mean().tolist(), places.spread().tolist()
    shown = [part for part in range(places.num_parts) if places.images[part] > 0 and part != places.background]
    # parts that no picture shows have no position: their number is their name
    levels = _levels([mean[part][0] for part in shown])
    stems = [f"part {part}" for part in range(places.num_parts)]
    for part, level in zip(shown, levels, strict=True):
        stems[part] = _stem(level, mean[part][1], spread[part][1])
    stems[places.background] = BACKGROUND_NAME
    areas, heights = places.area().tolist(), [place[0] for place in mean]
    # equal stems get a suffix that describes the difference
    names = list(stems)
    for stem, count in Counter(stems).items():
        alike = [part for part, name in enumerate(stems) if name == stem]
        if count > 1:
            for part, name in zip(alike, _tell_apart(stem, alike, areas, heights), strict=True):
                names[part] = name
    return tuple(names)


class NamesFile(BaseModel):
    """A TOML file of names: `[parts] 0 = "head"` and `[kinds.head] 3 = "cardinal"`."""

    model_config = ConfigDict(extra="forbid")
    parts: dict[str, str] = {}
    kinds: dict[str, dict[str, str]] = {}


def read_names(path: Path) -> NamesFile:
    """Read a names file.

    Raises:
        BestiaryError: the file is missing, is not TOML, or contains anything other than names.
    """
    text = read_text(path, LARGEST_TOML)
    try:
        tree = parse_toml(text)
    except BestiaryError as fault:
        raise BestiaryError(f"names file {path} is not TOML: {fault}") from fault
    try:
        return NamesFile.model_validate(tree)
    except ValidationError as fault:
        # only the first error: a names file is short
        first = fault.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        raise BestiaryError(
            f"names file {path}, {place} = {first['input']!r}: {first['msg'].lower()}; "
            'write [parts] 0 = "head" and [kinds.head] 3 = "cardinal"'
        ) from fault


def apply_names(codebook: PartCodebook, names: NamesFile) -> PartCodebook:
    """The codebook with the names of a file; parts are identified by number or by their current or new name.

    Raises:
        BestiaryError: a part or kind that does not exist, a name not allowed in prompts, or a name used twice.
    """
    # parts first: the kinds may be listed under the new names
    renamed = rename(codebook, parts=names.parts).codebook
    return rename(renamed, kinds=names.kinds).codebook


def _within_thing(things: Tensor, axis: int) -> Tensor:
    """Positions (N, h or w) along an axis, -1 and 1 at the edges of the object's bounding box."""
    # project onto the axis: (N, h, w) -> (N, h) or (N, w)
    covered = things.any(2 - axis)  # (N, h or w)
    length = covered.shape[1]
    steps = torch.arange(length, dtype=torch.float64)
    first = covered.double().argmax(1)  # (N,)
    last = length - 1 - covered.flip(1).double().argmax(1)
    middle, half = (first + last) / 2, ((last - first + 1) / 2).clamp_min(0.5)
    return ((steps - middle.unsqueeze(1)) / half.unsqueeze(1)).clamp(-1, 1)


def _levels(heights: Sequence[float]) -> list[str]:
    """Level names from top to bottom, in five steps over the range of the parts' heights."""
    if not heights or max(heights) - min(heights) < 2 * _LEVEL:
        return ["middle"] * len(heights)
    # levels divide the range between the highest and the lowest part, not the object: parts often overlap in height
    middle, half = (max(heights) + min(heights)) / 2, (max(heights) - min(heights)) / 2
    return [next((name for bound, name in _LEVELS if (y - middle) / half <= bound), "bottom") for y in heights]


def _stem(level: str, x: float, spread_x: float) -> str:
    # the offset must exceed its own spread: otherwise the part changes sides between pictures
    side = ("left" if x < 0 else "right") if abs(x) > max(_OFF_CENTRE, spread_x) else ""
    return side if side and level == "middle" else f"{level} {side}".strip()


def _tell_apart(stem: str, alike: Sequence[int], areas: Sequence[float], heights: Sequence[float]) -> list[str]:
    """Names of parts with equal stems, in their order: by size if two clearly differ, else numbered from the top."""
    # sizes that differ by less than a third are hard to distinguish by eye
    if len(alike) == 2:
        small, large = sorted(alike, key=lambda part: areas[part])
        if areas[large] >= 1.3 * areas[small]:
            return [f"{'large' if part == large else 'small'} {stem}" for part in alike]
    order = sorted(alike, key=lambda part: heights[part])
    return [f"{stem} {order.index(part) + 1}" for part in alike]
