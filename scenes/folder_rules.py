"""Rules for folders of pictures with captions and masks, and for COCO annotations; each fault names its file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..concepts.errors import BestiaryError
from ..concepts.files.text_file import read_text
from .coco_masks import decoded_mask
from .collage import visible_box
from .set_files import PICTURE_SUFFIXES, SceneRecord


@dataclass(frozen=True)
class SetFault:
    """A rule that is broken."""

    file: str
    """Path within the folder that was checked."""
    reason: str

    def __str__(self) -> str:
        """As one line."""
        return f"{self.file}: {self.reason}"


def picture_files(folder: Path) -> list[Path]:
    """Pictures directly in a folder, hidden ones left out, in a fixed order."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in entries if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")]


def caption_faults(folder: Path, root: Path, *, one_line: bool = True) -> Iterator[SetFault]:
    """Rules for pictures with captions beside them: one for each, `.txt`, not empty, no other ending, no picture below."""
    pictures = picture_files(folder)
    if not pictures:
        yield SetFault(name_in(folder, root), "there is no picture in this folder")
    stems = {path.stem for path in pictures}
    for path in pictures:
        caption = path.with_suffix(".txt")
        if not caption.is_file():
            yield SetFault(name_in(caption, root), "the caption of this picture is missing")
            continue
        try:
            text = read_text(caption)
        except BestiaryError as fault:
            yield SetFault(name_in(caption, root), str(fault))
            continue
        if not text.strip():
            yield SetFault(name_in(caption, root), "the caption is empty: loaders stop at it or train without words")
        elif one_line and len(text.strip().splitlines()) > 1:
            yield SetFault(
                name_in(caption, root), "the caption has several lines, and trainers read the first or all of them"
            )
        elif "[trigger]" in text or "[name]" in text:
            yield SetFault(
                name_in(caption, root), "the caption holds [trigger] or [name], which ai-toolkit replaces or removes"
            )
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        hidden = path.name.startswith(".")
        if path.suffix.lower() == ".caption":
            yield SetFault(
                name_in(path, root), "captions end with .txt here; this one would be read by some trainers alone"
            )
        elif path.suffix.lower() == ".txt" and path.parent == folder and path.stem not in stems and not hidden:
            yield SetFault(name_in(path, root), "this caption has no picture")
        elif path.parent != folder and path.suffix.lower() in PICTURE_SUFFIXES and not hidden:
            yield SetFault(
                name_in(path, root), "a picture lies below the pictures, and loaders that walk the folder train on it"
            )


def paired_faults(pictures: Path, masks: Path, root: Path, called: str = "mask") -> Iterator[SetFault]:
    """Rules for masks: one for each picture with its stem and size, none besides."""
    ours = {path.stem: path for path in picture_files(pictures)}
    theirs = {path.stem: path for path in picture_files(masks)}
    for stem in sorted(ours.keys() - theirs.keys()):
        yield SetFault(name_in(masks / f"{stem}.png", root), f"the {called} of {name_in(ours[stem], root)} is missing")
    for stem in sorted(theirs.keys() - ours.keys()):
        yield SetFault(name_in(theirs[stem], root), f"this {called} has no picture, and trainers stop at it")
    for stem in sorted(theirs.keys() & ours.keys()):
        picture, mask = size_of(ours[stem]), size_of(theirs[stem])
        if picture is None or mask is None:
            broken = ours[stem] if picture is None else theirs[stem]
            yield SetFault(name_in(broken, root), "this file cannot be read as a picture")
        elif picture != mask:
            shown = [f"{width} x {height}" for width, height in (picture, mask)]
            yield SetFault(name_in(theirs[stem], root), f"the {called} is {shown[1]} pixels, its picture {shown[0]}")


def size_of(path: Path) -> tuple[int, int] | None:
    """Width and height of a picture file; None where it is none."""
    try:
        with Image.open(path) as picture:
            picture.verify()
            return picture.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def path_faults(folder: Path) -> Iterator[SetFault]:
    """No folder above the pictures may hold a picture's ending: ComfyUI replaces it everywhere in the path."""
    for part in folder.absolute().parts:
        if suffix := next((suffix for suffix in PICTURE_SUFFIXES if suffix in part.lower()), None):
            yield SetFault(
                part, f"a folder's name holds {suffix!r}, and ComfyUI then looks for captions elsewhere: rename it"
            )


def coco_faults(coco: dict, name: str, records: dict[str, SceneRecord] | None = None) -> Iterator[SetFault]:
    """Rules of COCO: masks of the picture's size, boxes and areas of their masks, known pictures and categories.

    Args:
        records: scenes by the pictures' paths; their visible pixels must be those of the masks.
    """
    images, categories = {image["id"]: image for image in coco["images"]}, {entry["id"] for entry in coco["categories"]}
    found = {image["file_name"] for image in coco["images"]}
    for file in sorted((records or {}).keys() - found):
        yield SetFault(name, f"there is no image {file}")
    for annotation in coco["annotations"]:
        called, image = f"annotation {annotation['id']}", images.get(annotation["image_id"])
        if image is None or annotation["category_id"] not in categories:
            yield SetFault(name, f"{called} is of a picture or category that is not listed")
            continue
        try:
            mask = decoded_mask(annotation["segmentation"])
        except (ValueError, KeyError, TypeError) as fault:
            yield SetFault(name, f"the mask of {called} cannot be read: {fault}")
            continue
        box = list(visible_box(mask.astype(np.uint8), 1))
        if mask.shape != (image["height"], image["width"]):
            yield SetFault(name, f"the mask of {called} is not of the size of {image['file_name']}")
        if box != list(annotation["bbox"]):
            yield SetFault(name, f"the box of {called} is {annotation['bbox']}, its mask's {box}")
        if int(mask.sum()) != annotation["area"]:
            yield SetFault(name, f"the area of {called} is {annotation['area']}, its mask's {int(mask.sum())}")
        entries = getattr((records or {}).get(image["file_name"]), "objects", ())
        for entry in entries:
            if entry.id == annotation.get("subject") and entry.counts != annotation["segmentation"]["counts"]:
                yield SetFault(name, f"the mask of {called} is not that of {entry.id!r} in {image['file_name']}")


def name_in(path: Path, root: Path) -> str:
    """A path as messages show it: within its folder."""
    return path.relative_to(root).as_posix()
