"""Validation of values from files: each message gives the entry, its value and the expected value.

A file is validated completely when it is read, so that later code need not check. Letters in shapes stand for sizes: the
first tensor with a letter fixes its size for all others.
"""

import json
import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ..errors import BestiaryError

LONGEST_TEXT = 4_096
"""Maximum characters of a name or a note."""
DEEPEST_JSON = 16
MOST_ENTRIES = 1 << 20
"""Maximum entries of a list or a table."""
_KINDS = {
    "floats": (torch.float32, torch.float16, torch.bfloat16, torch.float64),
    "whole numbers": (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    "bytes": (torch.uint8,),
}


def broken(entry: str, value: object, wanted: str) -> BestiaryError:
    """The common form of messages: the entry, its value and the expected value."""
    return BestiaryError(f"{entry} is {shown_value(value)}, expected {wanted}")


def shown_value(value: object) -> str:
    """A value in a few characters."""
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype)[6:]} {list(value.shape)[:8]}"
    if isinstance(value, dict):
        return f"a table of {len(value)}"
    if isinstance(value, list | tuple) and len(value) > 4:
        return f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=True, default=lambda odd: type(odd).__name__)
    return text if len(text) <= 60 else f"{text[:60]}..."


def checked_whole(value: object, entry: str, low: int = 0, high: int = 1 << 40) -> int:
    """A whole number of `low` to `high`.

    Raises:
        BestiaryError: the value is invalid; the same for all functions here.
    """
    if type(value) is not int or not low <= value <= high:
        raise broken(entry, value, f"a whole number of {low} to {high}")
    return value


def checked_number(value: object, entry: str, low: float = -1e30, high: float = 1e30) -> float:
    """A finite number of `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise broken(entry, value, f"a number of {low:g} to {high:g}")
    return float(value)


def checked_flag(value: object, entry: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise broken(entry, value, "true or false")
    return value


def checked_text(value: object, entry: str, longest: int = LONGEST_TEXT, *, empty: bool = False) -> str:
    """Text without NUL, not empty unless `empty` allows it."""
    if not isinstance(value, str) or len(value) > longest or "\0" in value or not (value or empty):
        raise broken(entry, value, f"text of {0 if empty else 1} to {longest} characters")
    # JSON can contain lone surrogates, which no terminal can print
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise broken(entry, value, "text in Unicode")
    return value


def checked_list(value: object, entry: str, least: int = 0, most: int = MOST_ENTRIES) -> list:
    """A list of `least` to `most` entries."""
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise broken(entry, value, f"a list of {least} to {most} entries" if least != most else f"a list of {least}")
    return value


def checked_table(value: object, entry: str, needs: Collection[str] = ()) -> dict:
    """A table with text keys, including those in `needs`."""
    if not isinstance(value, dict) or len(value) > MOST_ENTRIES:
        raise broken(entry, value, "a table")
    lacking = [name for name in needs if name not in value]
    if lacking:
        raise BestiaryError(f"{entry} lacks {', '.join(lacking)}")
    return value


def checked_numbered(value: object, entry: str, count: int) -> dict[int, object]:
    """A table whose names are the numbers 0 to `count` - 1, as text."""
    found: dict[int, object] = {}
    for name, content in checked_table(value, entry).items():
        if not (isinstance(name, str) and name.isascii() and name.isdigit() and len(name) < 10 and int(name) < count):
            raise broken(f"a name in {entry}", name, f"a number of 0 to {count - 1}")
        found[int(name)] = content
    return found


def checked_json(value: object, entry: str, depth: int = DEEPEST_JSON) -> object:
    """Any JSON value with finite numbers, nested at most 16 levels deep."""
    if depth == 0:
        raise BestiaryError(f"{entry} is nested more than {DEEPEST_JSON} levels deep")
    if isinstance(value, dict):
        for name, content in value.items():
            checked_text(name, f"a name in {entry}", empty=True)
            checked_json(content, entry, depth - 1)
    elif isinstance(value, list):
        for content in value:
            checked_json(content, entry, depth - 1)
    elif isinstance(value, str):
        checked_text(value, entry, 1 << 20, empty=True)
    elif isinstance(value, float) and not math.isfinite(value):
        raise broken(entry, value, "a finite number")
    return value


def checked_tensor(
    tensors: Mapping[str, Tensor], name: str, shape: str, sizes: dict[str, int], kind: str = "floats"
) -> Tensor:
    """One tensor of a file.

    Args:
        tensors: all tensors of the file, of any shape.
        name: name of the tensor.
        shape: letters or numbers, such as "S V W" or "M 2".
        sizes: letter -> size; new letters are added. Sizes must not be 0.
        kind: "floats" (all finite), "whole numbers" or "bytes".
    """
    if name not in tensors:
        raise BestiaryError(f"the tensor {name!r} is missing")
    tensor, axes = tensors[name], shape.split()
    known = {axis: int(axis) if axis.isdigit() else sizes.get(axis) for axis in axes}
    fits = len(axes) == tensor.ndim and all(
        known[axis] in (None, size) and (size or known[axis] == 0)
        for axis, size in zip(axes, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype not in _KINDS[kind]:
        wanted = ", ".join(str(known[axis]) if known[axis] is not None else axis for axis in axes)
        raise broken(f"the tensor {name!r}", tensor, f"{kind} ({wanted})")
    sizes.update({axis: size for axis, size in zip(axes, tensor.shape, strict=True) if not axis.isdigit()})
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise BestiaryError(f"the tensor {name!r} contains values that are not finite")
    return tensor
