"""Sizes of pictures as people write them: one edge, or a width and a height."""

import re


def read_size(value: object, most: int = 4096) -> int | tuple[int, int]:
    """`128` as an edge; `256x128`, or a pair, as width and height in pixels; two equal sides are an edge.

    Args:
        value: a number, a pair of numbers, or text.
        most: pixels that a side may have.

    Raises:
        ValueError: neither, or a side that is not a multiple of 8 from 64 to `most`.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    pair = isinstance(value, list | tuple)
    written = [str(side) for side in value] if pair else re.split("[x\u00d7]", str(value).lower())
    sides = [side.strip() for side in written]
    if len(sides) > 2 or (pair and len(sides) < 2) or not all(re.fullmatch(r"\d{1,9}", side) for side in sides):
        raise ValueError("write an edge such as 128, or a width and a height such as 256x128")
    width, *more = map(int, sides)
    for side in (width, *more):
        if not 64 <= side <= most or side % 8:
            raise ValueError(f"{side} pixels: a side is a multiple of 8 from 64 to {most}")
    return (width, more[0]) if more and more[0] != width else width


def size_text(size: int | tuple[int, int]) -> str:
    """An edge as `128`, a width and height as `256x128`."""
    return "{}x{}".format(*size) if isinstance(size, tuple) else str(size)
