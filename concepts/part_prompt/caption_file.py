"""Caption files `part:kind part:kind ...`, one line per image, and image lists `relative/path label`.

Both are the text formats of kamwoh/partcraft @ dfe64e1 (data/*/train_caps_better_m8_k256.txt and train.txt): pairs are in
ascending order of the part, and parts that the image does not show are left out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BestiaryError
from ..part_map.part_map import ABSENT

_PAIR = re.compile(r"(\d{1,4}):(\d{1,6})")
# the shortest path that ends in a suffix and leaves nothing but numbers: `img 1.jpg 5`, `a.b/c 2.png 0 1`
_LISTED = re.compile(r"(?P<path>.+?\.[^\s./\\]+)(?P<labels>(?:\s+\d+)*)")
_LISTED_BARE = re.compile(r"(?P<path>\S.*?)(?P<labels>(?:\s+\d+)?)")


@dataclass(frozen=True)
class ListedImage:
    """One line of an image list."""

    path: str
    """Relative to the folder of the images, with forward slashes; may contain spaces."""
    label: int | None
    """Class of the image; None if the line has only a path."""


def parse_captions(text: str, num_parts: int | None = None) -> Tensor:
    """Kind codes `(N, M)` int64 of a caption file's N lines, `ABSENT` for parts that are not in the line.

    Args:
        text: the whole file; an empty line is an image without parts.
        num_parts: M; None takes the largest part named, plus one.

    Raises:
        BestiaryError: a word is not `part:kind`, a part occurs twice in a line, or a part is not below `num_parts`.
    """
    lines = [_parse_line(line, number) for number, line in enumerate(_lines(text), start=1)]
    largest = max((part for line in lines for part in line), default=-1)
    # without num_parts the largest part in any line decides
    width = largest + 1 if num_parts is None else num_parts
    if largest >= width:
        number = next(number for number, line in enumerate(lines, start=1) if largest in line)
        raise BestiaryError(f"caption line {number}: part {largest} is too large, choose 0 to {width - 1}")
    # a dense table, because codes are read far more often than captions are parsed
    codes = torch.full((len(lines), width), ABSENT, dtype=torch.long)  # (N, M)
    for row, line in enumerate(lines):
        for part, kind in line.items():
            codes[row, part] = kind
    return codes


def format_captions(codes: Tensor) -> str:
    """Caption file of kind codes `(N, M)`, one line per image; absent parts (negative codes) are left out."""
    return "".join(format_caption(row) + "\n" for row in codes.tolist())


def format_caption(codes: Sequence[int]) -> str:
    """Caption line of one image's M kind codes, without the line's end."""
    return " ".join(f"{part}:{kind}" for part, kind in enumerate(codes) if kind >= 0)


def parse_image_list(text: str) -> list[ListedImage]:
    """Lines `relative/path label` of an image list; empty lines are left out.

    The path may hold spaces: it ends at its file suffix. Several labels in a line are a one-hot row of classes.

    Raises:
        BestiaryError: a row of several labels is not one-hot.
    """
    lines = ((number, line.strip()) for number, line in enumerate(_lines(text), start=1))
    return [_parse_listed(line, number) for number, line in lines if line]


def format_image_list(images: Sequence[ListedImage]) -> str:
    """Image list with one `relative/path label` line per image."""
    return "".join(f"{image.path}{'' if image.label is None else f' {image.label}'}\n" for image in images)


def _lines(text: str) -> list[str]:
    """Lines of a file's text; the mark that editors on Windows put before it belongs to none of them."""
    return text.removeprefix("\ufeff").splitlines()


def _parse_line(line: str, number: int) -> dict[int, int]:
    pairs: dict[int, int] = {}
    for word in line.split():
        match = _PAIR.fullmatch(word)
        if match is None:
            raise BestiaryError(f"caption line {number}: {word!r} is not of the form part:kind, for example 0:65")
        part, kind = int(match[1]), int(match[2])
        # two kinds of one part in one picture cannot both be right
        if part in pairs:
            raise BestiaryError(f"caption line {number}: part {part} occurs twice, as {pairs[part]} and as {kind}")
        pairs[part] = kind
    return pairs


def _parse_listed(line: str, number: int) -> ListedImage:
    # a path without a suffix is taken to end before the last number
    matches = (form.fullmatch(line) for form in (_LISTED, _LISTED_BARE))
    match = next(found for found in matches if found)
    path, labels = match["path"].replace("\\", "/"), [int(word) for word in match["labels"].split()]
    if len(labels) <= 1:
        return ListedImage(path, labels[0] if labels else None)
    # only a one-hot row is a class label
    if sorted(labels) != [0] * (len(labels) - 1) + [1]:
        raise BestiaryError(
            f"image list line {number}: {len(labels)} labels follow {path!r} and they are not one-hot; "
            "give one class number, or a row with a single 1"
        )
    return ListedImage(path, labels.index(1))
