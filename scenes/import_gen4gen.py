"""Subjects and compositions from the folders of Gen4Gen's stages, louisYen/Gen4Gen @ 04f8964 (arXiv 2402.15504).

s0 holds photographs `<scene>/<object>/<any>.jpg`; s1 cut-outs `<scene>/<object>/<stem>_result_foreground_isnet.png` on black with
colours multiplied by alpha, and `..._result_mask_isnet.png`; s2 compositions `<n>_<a+b>/img_<number>.png` with `mask_<number>.png`,
the union of their objects. Published masks are 250 to 254 inside: half is the threshold, and from 250 on a pixel is opaque.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..concepts.errors import BestiaryError
from .subject import PictureSource, Subject

FOREGROUND, MASK = "_result_foreground_isnet.png", "_result_mask_isnet.png"
_PICTURES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp"])
_SOLID, _OPAQUE = 128, 250
_SOFT_EDGE = 2
"""Pixels around the solid pixels that a cut-out keeps."""

Plane = NDArray[np.uint8]


@dataclass(frozen=True)
class SourcePhotograph:
    """A photograph of s0."""

    scene: str
    """Folder of the scene, such as `cat_dog_houseplant_3objs`."""
    name: str
    """Folder of the object, such as `cat1`."""
    words: str
    """What captions call it: `cat`."""
    path: Path


@dataclass(frozen=True)
class Composition:
    """A composition of s2."""

    names: tuple[str, ...]
    """Words of its objects."""
    picture: Plane
    """`(H, W, 3)` the objects on black."""
    mask: NDArray[np.bool_]
    """`(H, W)` whether a pixel shows any object."""
    path: Path


@dataclass(frozen=True)
class SkippedFile:
    """A file that gave nothing, and why."""

    path: Path
    reason: str


def read_photographs(folder: Path) -> list[SourcePhotograph]:
    """Photographs of an s0 tree, sorted by path.

    Raises:
        BestiaryError: there are none.
    """
    found = [
        SourcePhotograph(path.parent.parent.name, path.parent.name, object_words(path.parent.name), path)
        for path in sorted(Path(folder).glob("*/*/*"))
        if path.suffix.lower() in _PICTURES and not path.name.startswith(".")
    ]
    return found or _nothing(folder, "photographs as SCENE/OBJECT/NAME.jpg")


def read_cutouts(folder: Path, photographs: Path | None = None) -> tuple[list[tuple[str, Subject]], list[SkippedFile]]:
    """Subjects of an s1 tree with the scene that each stands in, and the files that gave none.

    Subjects of one name within a scene get numbers: `cat`, `cat 2`.

    Args:
        photographs: the s0 tree, which the sources are then named and hashed from; else the cut-out's own file is.

    Raises:
        BestiaryError: there are no cut-outs.
    """
    subjects, skipped, used = [], [], {}
    paths = sorted(Path(folder).glob(f"*/*/*{FOREGROUND}"))
    for path in paths:
        scene, words = path.parent.parent.name, object_words(path.parent.name)
        stem = path.name.removesuffix(FOREGROUND)
        try:
            cutout = _cut_out(path, path.with_name(stem + MASK))
        except BestiaryError as fault:
            skipped.append(SkippedFile(path, str(fault)))
            continue
        # names count within a scene
        number = used[scene, words] = used.get((scene, words), 0) + 1
        name = words if number == 1 else f"{words} {number}"
        source = _photograph_of(photographs, scene, path.parent.name, stem) or path
        sha = hashlib.sha256(source.read_bytes()).hexdigest()
        subjects.append((scene, Subject(name, cutout, words, source=PictureSource(source.as_posix(), sha))))
    if not paths:
        _nothing(folder, f"cut-outs as SCENE/OBJECT/NAME{FOREGROUND}")
    return subjects, skipped


def read_compositions(folder: Path) -> Iterator[Composition]:
    """Compositions of an s2 tree, sorted by path.

    Raises:
        BestiaryError: there are none, or one has no mask of its size.
    """
    paths = sorted(Path(folder).glob("*/img_*.png"))
    if not paths:
        _nothing(folder, "compositions as N_A+B/img_000000.png")
    for path in paths:
        picture = _pixels(path, "RGB")
        mask_path = path.with_name(path.name.replace("img_", "mask_", 1))
        mask = _pixels(mask_path, "L")
        if mask.shape != picture.shape[:2]:
            raise BestiaryError(f"{mask_path} is {mask.shape} pixels, and its picture {picture.shape[:2]}")
        names = re.sub(r"^\d+_(?=.)", "", path.parent.name).split("+")
        yield Composition(tuple(object_words(name) for name in names), picture, mask >= _SOLID, path)


def object_words(folder_name: str) -> str:
    """The noun of an object's folder: digits go, `_` and `-` are spaces; `cat1` -> `cat`, `potted_plant_2` -> `potted plant`."""
    words = " ".join(re.sub(r"\d+", "", folder_name).replace("_", " ").replace("-", " ").split())
    return words or folder_name


def straight_colors(premultiplied: Plane, alpha: Plane) -> Plane:
    """Colours `(h, w, 3)` on black divided by their alpha `(h, w)`; black where that is 0. Exact to the rounding of 8 bits."""
    divided = premultiplied.astype(np.float32) * 255 / np.maximum(alpha, 1)[..., None].astype(np.float32)
    colors = (divided + 0.5).clip(0, 255).astype(np.uint8)
    colors[alpha == 0] = 0
    return colors


def _cut_out(path: Path, mask_path: Path) -> Plane:
    """Straight RGBA `(h, w, 4)` of a foreground and its mask, without an empty border."""
    foreground, mask = _pixels(path, "RGB"), _pixels(mask_path, "L")
    if mask.shape != foreground.shape[:2]:
        raise BestiaryError(f"{mask_path.name} is {mask.shape} pixels, and the foreground {foreground.shape[:2]}")
    solid = mask >= _SOLID
    if not solid.any():
        raise BestiaryError(f"{mask_path.name} is empty: no pixel is half white or more")
    colors = straight_colors(foreground, mask)
    alpha = np.where(mask >= _OPAQUE, 255, mask).astype(np.uint8)
    rgba = np.dstack([colors, alpha])[_around(solid)]
    # the soft edge may be thinner than what was kept for it
    return rgba[_around(rgba[..., 3] > 0, 0)]


def _around(mask: NDArray[np.bool_], edge: int = _SOFT_EDGE) -> tuple[slice, slice]:
    """Rows and columns of a mask `(H, W)` where it is set, and `edge` more."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (
        slice(max(0, rows[0] - edge), rows[-1] + 1 + edge),
        slice(max(0, columns[0] - edge), columns[-1] + 1 + edge),
    )


def _photograph_of(photographs: Path | None, scene: str, name: str, stem: str) -> Path | None:
    if photographs is None:
        return None
    found = sorted(path for path in (Path(photographs) / scene / name).glob("*") if path.stem == stem)
    return found[0] if found else None


def _pixels(path: Path, mode: str) -> Plane:
    try:
        with Image.open(path) as picture:
            return np.array(ImageOps.exif_transpose(picture).convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as fault:
        raise BestiaryError(f"{path} cannot be read as a picture: {fault}") from fault


def _nothing(folder: Path, expected: str) -> list:
    raise BestiaryError(f"{folder} holds no {expected}: give the folder of that stage of Gen4Gen")
