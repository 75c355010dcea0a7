"""Where the mask of a picture's subject comes from, and the subject that it gives.

In this order: the file's own transparency; a mask that somebody made; IS-Net. Two more are taken only where they are asked for by
name, since they cut photographs badly: a plain ground, and the foreground of a discovery of parts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..concepts.errors import BestiaryError
from .cutout import AS_GIVEN, OWN_COLOURS, CutoutOptions, as_alpha, make_subject
from .cutout_gate import LIMITS_AS_GIVEN, CutoutLimits, faults_of
from .plain_ground import segment_plain
from .subject import PictureSource, Subject

WAYS = ("alpha", "mask", "isnet")
"""In the order in which they are tried."""
BY_NAME = ("border", "parts")
"""Taken only where they are named."""
WEIGHTS_FOLDER = "models/bestiary/segmentation"
_WARNINGS = {
    "border": "border cuts along differences from the ground's colour: look at every cut-out, photographs come out badly",
    "parts": "parts takes the foreground of a discovery, which is as coarse as its patches: look at every cut-out",
}
_STEADY = 0.005
_LONGEST_NAME = 80

Segment = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""From a picture `(h, w, 3)` RGB to a mask `(h, w)` in 0..1, 1 where the thing is."""


@dataclass(frozen=True)
class MaskSources:
    """What a caller has for one picture, besides the picture."""

    mask: Callable[[], NDArray | None] | None = None
    """Reads the mask `(h, w)` that belongs to the picture, 1 where the thing is; None where there is none."""
    isnet: Segment | None = None
    """IS-Net with its weights; None where there are none."""
    parts: Segment | None = None
    """The foreground of a discovery."""
    rounds: int = 1
    """Times that IS-Net looks, each time only at what the rounds before left. 1 to 8."""


@dataclass(frozen=True)
class FoundMask:
    """A mask and where it came from."""

    alpha: NDArray[np.float32]
    """`(h, w)` in 0..1."""
    way: str
    """One of `WAYS` and `BY_NAME`."""
    warning: str = ""
    """What the user must know of this way."""

    @property
    def options(self) -> CutoutOptions:
        """How masks of this way are cleaned where nobody says otherwise."""
        return {"alpha": OWN_COLOURS, "mask": AS_GIVEN}.get(self.way, CutoutOptions())

    @property
    def limits(self) -> CutoutLimits:
        """What masks of this way must keep where nobody says otherwise."""
        if self.way in ("alpha", "mask"):
            return LIMITS_AS_GIVEN
        # patches are larger than any edge: what comes of them is soft
        return CutoutLimits(edge=None) if self.way == "parts" else CutoutLimits()


@dataclass(frozen=True)
class CutSubject:
    """What became of one picture."""

    subject: Subject | None
    """None where the mask was not to be trusted."""
    way: str
    """Where the mask came from."""
    faults: tuple[str, ...]
    """Why it was not to be trusted."""
    warning: str = ""


def cut_subject(
    picture: NDArray[np.uint8],
    name: str,
    sources: MaskSources,
    *,
    backend: str = "",
    options: CutoutOptions | None = None,
    limits: CutoutLimits | None = None,
    changed: Mapping[str, Any] | None = None,
    changed_limits: Mapping[str, float | None] | None = None,
    words: str = "",
    size: float | str | None = None,
    support: str = "ground",
    parts: NDArray[np.uint8] | None = None,
    source: PictureSource | None = None,
) -> CutSubject:
    """The subject of a picture, or the reasons why there is none.

    Args:
        picture: `(h, w, 3)` RGB, or `(h, w, 4)` with straight alpha.
        name: of the subject; errors name the file of `source` where there is one.
        sources: where its mask may come from.
        backend: as in `find_mask`.
        options: how the mask is cleaned; None for what suits its way.
        limits: what the mask must keep; None for what suits its way.
        changed: fields of the options that differ from those.
        changed_limits: fields of the limits that differ from those; None switches a check off.
        words: as in `Subject`, like all that follow.
        size: as in `Subject`.
        support: as in `Subject`.
        parts: `(h, w)` of the whole picture.
        source: where the picture came from.

    Raises:
        BestiaryError: as `find_mask`; labels of another size; what `Subject` refuses.
    """
    found = find_mask(picture, source.file if source and source.file else name, sources, backend)
    faults = faults_of(found.alpha, replace(limits or found.limits, **(changed_limits or {})))
    if faults:
        return CutSubject(None, found.way, faults, found.warning)
    subject = make_subject(
        name,
        picture,
        found.alpha,
        replace(options or found.options, **(changed or {})),
        words=words,
        size=size,
        support=support,
        parts=parts,
        source=source,
    )
    return CutSubject(subject, found.way, (), found.warning)


def find_mask(picture: NDArray[np.uint8], called: str, sources: MaskSources, backend: str = "") -> FoundMask:
    """The mask of a picture's subject, from the first way that has one.

    Args:
        picture: `(h, w, 3)` RGB, or `(h, w, 4)` with straight alpha, which counts where it is not 255 everywhere.
        called: the picture's file, for messages.
        sources: what else there is.
        backend: one of `WAYS` or `BY_NAME` to take that and no other; empty for the first of `WAYS` that has one.

    Raises:
        BestiaryError: no way has a mask, the one that is named has none, there is no such way, or the mask does not fit.
    """
    if backend and backend not in (*WAYS, *BY_NAME):
        raise BestiaryError(f"backend {backend!r} is not one of {', '.join((*WAYS, *BY_NAME))}")
    if not 1 <= sources.rounds <= 8:
        raise BestiaryError(f"rounds are 1 to 8, not {sources.rounds}")
    try:
        for way in (backend,) if backend else WAYS:
            mask = _mask_of(picture, sources, way)
            if mask is not None:
                return FoundMask(as_alpha(mask, picture.shape), way, _WARNINGS.get(way, ""))
    except BestiaryError as fault:
        raise BestiaryError(f"{called}: {fault}") from fault
    raise BestiaryError(f"{called}: {_remedy(called, backend)}")


def _mask_of(picture: NDArray[np.uint8], sources: MaskSources, way: str) -> NDArray | None:
    rgb = picture[..., :3]
    if way == "alpha":
        # opaque everywhere, it says nothing
        return picture[..., 3] if picture.shape[2] == 4 and int(picture[..., 3].min()) < 255 else None
    if way == "mask":
        return sources.mask() if sources.mask else None
    if way == "isnet":
        return in_rounds(rgb, sources.isnet, sources.rounds) if sources.isnet else None
    if way == "border":
        return segment_plain(rgb)
    return sources.parts(rgb) if sources.parts else None


def _remedy(called: str, backend: str) -> str:
    remedies = {
        "alpha": "save it with a transparent ground (PNG or WebP)",
        "mask": f"put its mask beside it as {PurePath(called).stem}_mask.png, or give a folder of masks (--masks, or `masks` in a recipe)",
        "isnet": f"give the weights of IS-Net with --weights, or put them into {WEIGHTS_FOLDER} "
        "(`bestiary import isnet --help` says where they come from)",
        "parts": "give a discovery that this picture is part of",
    }
    if backend:
        return f"backend {backend!r} finds no mask for it: {remedies[backend]}"
    return f"there is no mask for its subject. Do one of these three: {'; '.join(remedies[way] for way in WAYS)}"


def in_rounds(picture: NDArray[np.uint8], segment: Segment, rounds: int) -> NDArray[np.float32]:
    """The mask `(h, w)` in 0..1 of a picture `(h, w, 3)` after several looks.

    Each round sees the picture on black as the rounds before left it; the mask is the product of all, so that it only shrinks and what
    it shows is what the last round saw. Ends early when the area has become steady.
    """
    alpha = segment(picture)
    for _ in range(rounds - 1):
        before = float(alpha.sum())
        masked = (picture * alpha[..., None]).round().astype(np.uint8)  # (h, w, 3)
        alpha = alpha * segment(masked)
        if before - float(alpha.sum()) < _STEADY * before:
            break
    return alpha


def subject_names(files: Sequence[str]) -> dict[str, str]:
    """A subject's name for every file, each used once: `a.b.png` becomes `a b`, and of `a.png` and `a.jpg` the second `a 2`.

    Args:
        files: paths, each once; the order decides about the numbers.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for file in files:
        plain = unicodedata.normalize("NFC", PurePath(file.replace("\\", "/")).stem)
        base = re.sub(r"[^\w \-]+", " ", plain).strip(" -_")[: _LONGEST_NAME - 5].strip() or "subject"
        name, count = base, 1
        while name.casefold() in taken:
            count += 1
            name = f"{base} {count}"
        taken.add(name.casefold())
        names[file] = name
    return names
