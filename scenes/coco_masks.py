"""Masks in COCO's compressed run lengths, without pycocotools.

Runs of a mask read column by column (Fortran order), the first one of zeros. From the third on a run is written as its difference
to the one two before; a number is groups of five bits, lowest first, plus 32 where more follow, as letters from `0` on.
Format: cocodataset/cocoapi, common/maskApi.c (rleToString).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BITS, _MORE, _SIGN, _FIRST = 0x1F, 0x20, 0x10, 48


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs of a mask `(H, W)` in Fortran order; the first one counts zeros and may be 0."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    # the mark behind the end closes a run of ones that reaches it
    ends = edges if len(edges) and edges[-1] == mask.size else np.append(edges, mask.size)
    return np.diff(ends, prepend=0).tolist()


def encoded_mask(mask: NDArray[np.bool_]) -> dict[str, object]:
    """`{"size": [H, W], "counts": text}` of a mask `(H, W)`, as `segmentation` of an annotation holds it."""
    counts, letters = run_lengths(mask), []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits = value & _BITS
            value >>= 5
            # the highest bit of the last group is the sign
            more = value != -1 if bits & _SIGN else value != 0
            letters.append(chr((bits | _MORE if more else bits) + _FIRST))
    return {"size": list(mask.shape), "counts": "".join(letters)}


def decoded_mask(segmentation: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Mask `(H, W)` of compressed run lengths.

    Raises:
        ValueError: the runs do not fill the mask, or the text is cut off.
    """
    height, width = segmentation["size"]
    counts, value, shift = [], 0, 0
    for letter in str(segmentation["counts"]):
        bits = ord(letter) - _FIRST
        if not 0 <= bits < 64:
            raise ValueError(f"{letter!r} is not a letter of run lengths")
        value |= (bits & _BITS) << shift
        shift += 5
        if bits & _MORE:
            continue
        if bits & _SIGN:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    if shift or min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(f"runs of {sum(counts)} pixels in a mask of {height} x {width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")
