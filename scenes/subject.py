"""A thing that scenes are made of: its cut-out, what it is called, how large it is and where it came from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..concepts.errors import BestiaryError

SUPPORTS = ("ground", "sky", "any")
"""What a subject may stand on, besides another subject: `on:NAME`."""
_NAME = re.compile(r"[^\W_][\w \-]{0,79}")


@dataclass(frozen=True)
class PictureSource:
    """Where the picture of a subject came from."""

    file: str = ""
    """Path as the user gave it, or relative to the folder of the set."""
    sha256: str = ""
    """Of the file's bytes, hexadecimal."""
    licence: str = ""
    author: str = ""


@dataclass(frozen=True)
class Subject:
    """One cut-out.

    Raises:
        BestiaryError: a name, size or support that cannot be, an empty cut-out, or labels of another shape.
    """

    name: str
    """Unique within a scene, such as `cat` or `cat 2`."""
    cutout: NDArray[np.uint8]
    """`(h, w, 4)` RGB and straight alpha (colours are not multiplied by it); no empty border."""
    words: str = ""
    """What captions call it, such as `cat` or `<head:cardinal> bird`; the name where empty."""
    size: float | str | None = None
    """Length of its longest side against other subjects: a number above 0, a noun such as `horse`, one of tiny, small, medium,
    large and huge, or None: by its words."""
    support: str = "ground"
    """`ground`, `sky`, `any` or `on:NAME`."""
    parts: NDArray[np.uint8] | None = None
    """`(h, w)` number of the part that each pixel shows, 255 for none."""
    source: PictureSource = field(default_factory=PictureSource)

    def __post_init__(self) -> None:
        """Checks what the fields promise."""
        if not _NAME.fullmatch(self.name):
            raise BestiaryError(
                f"subject name {self.name[:80]!r}: use 1 to 80 letters, digits, spaces, hyphens or underscores, a letter or digit first"
            )
        shape = self.cutout.shape
        if len(shape) != 3 or shape[2] != 4 or 0 in shape or self.cutout.dtype != np.uint8:
            raise BestiaryError(
                f"subject {self.name!r}: a cut-out is (h, w, 4) of uint8, not {shape} of {self.cutout.dtype}"
            )
        if not self.cutout[..., 3].any():
            raise BestiaryError(f"subject {self.name!r}: its cut-out is empty; give a mask that is not black")
        if self.parts is not None and self.parts.shape != shape[:2]:
            raise BestiaryError(f"subject {self.name!r}: part labels are {self.parts.shape}, the cut-out {shape[:2]}")
        if isinstance(self.size, float | int) and not 0 < self.size < float("inf"):
            raise BestiaryError(f"subject {self.name!r}: size {self.size} must be a number above 0")
        if self.support not in SUPPORTS and not self.support.removeprefix("on:").strip():
            raise BestiaryError(f"subject {self.name!r}: support is one of {', '.join(SUPPORTS)} or on:NAME")
        if self.support not in SUPPORTS and not self.support.startswith("on:"):
            raise BestiaryError(
                f"subject {self.name!r}: support {self.support!r} is not one of {', '.join(SUPPORTS)} or on:NAME"
            )

    @property
    def called(self) -> str:
        """What captions call it."""
        return self.words or self.name

    @property
    def aspect(self) -> float:
        """Width over height of the cut-out."""
        height, width = self.cutout.shape[:2]
        return width / height
