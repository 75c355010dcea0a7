"""Whether a view of a set is what its consumer expects; the consumers' file rules are those of `set_views`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..concepts.errors import BestiaryError
from ..concepts.files.text_file import parse_toml, read_text
from .folder_rules import SetFault, caption_faults, coco_faults, paired_faults, path_faults, picture_files, size_of
from .set_files import PICTURE_SUFFIXES, inside, read_png
from .set_views import MARK


def verify_view(folder: Path, kind: str | None = None) -> list[SetFault]:
    """All faults of a view.

    Raises:
        BestiaryError: the folder is not a view, or a view of another kind.
    """
    try:
        mark = json.loads(read_text(folder / MARK))
        own, scenes, files = mark["kind"], list(mark["scenes"]), list(mark["files"])
        check = _CHECKS[own]
    except (ValueError, KeyError, TypeError) as fault:
        raise BestiaryError(f"{folder / MARK} cannot be read; export the view again") from fault
    if kind is not None and own != kind:
        raise BestiaryError(f"{folder} is a view for {own}, not for {kind}")
    faults = [
        SetFault(name, "this file of the view is missing") for name in files if not inside(folder, name).is_file()
    ]
    try:
        return [*faults, *path_faults(folder), *check(folder, scenes)]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as fault:
        return [*faults, SetFault(MARK, f"the view cannot be checked: {fault!r}")]


def _kohya(folder: Path, scenes: list[str]) -> Iterator[SetFault]:
    content = _toml(read_text(folder / "kohya.toml"))
    if content["general"].get("caption_extension") != ".txt":
        yield SetFault("kohya.toml", "caption_extension is not .txt, and without it captions end with .caption")
    subset = content["datasets"][0]["subsets"][0]
    yield from _places("kohya.toml", subset["image_dir"], subset["conditioning_data_dir"])
    yield from caption_faults(folder / "images", folder)
    yield from paired_faults(folder / "images", folder / "masks", folder)
    yield from _all_there(folder, "images", scenes)


def _ai_toolkit(folder: Path, scenes: list[str]) -> Iterator[SetFault]:
    yield from caption_faults(folder / "images", folder)
    yield from paired_faults(folder / "images", folder / "masks", folder)
    yield from _all_there(folder, "images", scenes)
    text = read_text(folder / "ai-toolkit.yaml")
    for word in ("folder_path", "caption_ext", "mask_path", "buckets"):
        if f"{word}:" not in text:
            yield SetFault("ai-toolkit.yaml", f"{word} is missing")


def _onetrainer(folder: Path, scenes: list[str]) -> Iterator[SetFault]:
    concepts = json.loads(read_text(folder / "concepts.json"))
    yield from _places("concepts.json", *(concept["path"] for concept in concepts))
    pictures = {path.stem: path for path in picture_files(folder / "pictures")}
    for stem, path in pictures.items():
        name = path.relative_to(folder).as_posix()
        if stem.endswith("-masklabel"):
            if stem.removesuffix("-masklabel") not in pictures:
                yield SetFault(name, "this mask has no picture")
            continue
        mask, caption = pictures.get(f"{stem}-masklabel"), path.with_suffix(".txt")
        if mask is None:
            yield SetFault(f"pictures/{stem}-masklabel.png", f"the mask of {name} is missing")
        elif size_of(mask) != size_of(path):
            yield SetFault(f"pictures/{mask.name}", f"the mask is not of the size of {name}")
        if not caption.is_file() or not read_text(caption).strip():
            yield SetFault(f"pictures/{stem}.txt", "the caption is missing or empty")
        elif any(not line.strip() for line in read_text(caption).strip().splitlines()):
            yield SetFault(f"pictures/{stem}.txt", "a line is empty, and one line is taken by chance")
    yield from _all_there(folder, "pictures", scenes)


def _simpletuner(folder: Path, scenes: list[str]) -> Iterator[SetFault]:
    yield from caption_faults(folder / "images", folder, one_line=False)
    yield from paired_faults(folder / "images", folder / "masks", folder)
    yield from _all_there(folder, "images", scenes)
    backends = json.loads(read_text(folder / "multidatabackend.json"))
    yield from _places(
        "multidatabackend.json", *(entry["instance_data_dir"] for entry in backends if "instance_data_dir" in entry)
    )
    for path in picture_files(folder / "images"):
        boxes = path.with_suffix(".bbox")
        if not boxes.is_file():
            yield SetFault(f"images/{boxes.name}", "the boxes of this picture are missing")
            continue
        for entry in json.loads(read_text(boxes)):
            left, top, right, bottom = entry["bbox"]
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1 and entry["label"]):
                yield SetFault(f"images/{boxes.name}", f"box {entry['bbox']} is not left, top, right, bottom in 0 to 1")


def _musubi(folder: Path, scenes: list[str]) -> Iterator[SetFault]:
    content = _toml(read_text(folder / "musubi.toml"))
    yield from _places(
        "musubi.toml", *(content["datasets"][0][name] for name in ("image_directory", "control_directory"))
    )
    yield from caption_faults(folder / "images", folder)
    yield from _all_there(folder, "images", scenes)
    controls = {path.stem for path in picture_files(folder / "control")}
    for stem in scenes:
        if f"{stem}_0" not in controls:
            yield SetFault(f"control/{stem}_0.png", f"images/{stem}.png has no control picture")
    for control in sorted(controls):
        if control.rpartition("_")[0] not in scenes:
            yield SetFault(f"control/{control}.png", "this control picture has no scene")


def _diffusers(folder: Path, scenes: list[str]) -> Iterator[SetFault]:
    yield from _all_there(folder, "train", scenes)
    yield from _row_faults(folder / "train", folder, ["file_name"])


def _custom_diffusion(folder: Path, scenes: list[str]) -> Iterator[SetFault]:
    for concept in json.loads(read_text(folder / "concepts_list.json")):
        yield from _places("concepts_list.json", concept["instance_data_dir"])
    for path in sorted((folder / "instances").rglob("*")):
        if path.is_file() and path.suffix.lower() not in PICTURE_SUFFIXES:
            yield SetFault(
                path.relative_to(folder).as_posix(), "every file here is read as a picture, and this is none"
            )
    found = {path.stem for path in (folder / "instances").glob("*/*.png")}
    for stem in sorted(set(scenes) - found):
        yield SetFault("instances", f"scene {stem} is in no folder")


def _coco(folder: Path, scenes: list[str]) -> Iterator[SetFault]:
    name = "annotations/instances.json"
    coco = json.loads(read_text(folder / name))
    yield from coco_faults(coco, name)
    for image in coco["images"]:
        size = size_of(inside(folder / "images", image["file_name"]))
        if size != (image["width"], image["height"]):
            yield SetFault(
                f"images/{image['file_name']}", f"the picture is {size}, its entry {image['width']} x {image['height']}"
            )
    yield from _all_there(folder, "images", scenes)


def _comfyui(folder: Path, scenes: list[str]) -> Iterator[SetFault]:
    yield from caption_faults(folder / "images", folder)
    yield from _all_there(folder, "images", scenes)
    # one level of folders below the chosen one is loaded too
    for path in (*picture_files(folder), *folder.glob("*/*")):
        if path.suffix.lower() in PICTURE_SUFFIXES and path.parent != folder / "images":
            yield SetFault(path.relative_to(folder).as_posix(), "the loader takes this for a picture of the set")


def _edit(folder: Path, scenes: list[str]) -> Iterator[SetFault]:
    yield from caption_faults(folder / "images", folder)
    yield from _all_there(folder, "images", scenes)
    yield from _row_faults(folder, folder, ["file_name", "cond_image_file_name", "references_file_names"])


def _layers(folder: Path, scenes: list[str]) -> Iterator[SetFault]:
    content = _toml(read_text(folder / "layers.toml"))
    yield from _places("layers.toml", content["datasets"][0]["image_directory"])
    for stem in scenes:
        caption = folder / "images" / f"{stem}.txt"
        if not caption.is_file() or not read_text(caption).strip():
            yield SetFault(f"images/{stem}.txt", "the caption is missing or empty")
        layers = sorted((folder / "images").glob(f"{stem}_*.png"))
        if len(layers) < 2:
            yield SetFault(f"images/{stem}_1.png", "a scene has a layer for its place and one for each subject")
        for path in layers:
            pixels = read_png(path)
            if pixels.ndim != 3 or pixels.shape[2] != 4:
                yield SetFault(f"images/{path.name}", "a layer has an alpha channel, and this picture has none")
            elif size_of(path) != size_of(folder / "images" / f"{stem}.png"):
                yield SetFault(f"images/{path.name}", "the layer is not of the size of its scene")


_CHECKS: dict[str, Callable[[Path, list[str]], Iterator[SetFault]]] = {
    "kohya": _kohya,
    "ai-toolkit": _ai_toolkit,
    "onetrainer": _onetrainer,
    "simpletuner": _simpletuner,
    "musubi": _musubi,
    "diffusers": _diffusers,
    "custom-diffusion": _custom_diffusion,
    "coco": _coco,
    "comfyui": _comfyui,
    "edit": _edit,
    "layers": _layers,
}


def _toml(text: str) -> dict[str, Any]:
    return dict(parse_toml(text))


def _places(config: str, *folders: str) -> Iterator[SetFault]:
    """The folders that a configuration names are there."""
    for folder in folders:
        if not Path(folder).is_dir():
            yield SetFault(
                config, f"it names the folder {folder}, which does not exist: export the view again where it is now"
            )


def _all_there(folder: Path, place: str, scenes: list[str]) -> Iterator[SetFault]:
    found = {path.stem for path in picture_files(folder / place)}
    for stem in sorted(set(scenes) - found):
        yield SetFault(f"{place}/{stem}.png", "the picture of this scene is missing")


def _row_faults(place: Path, folder: Path, columns: list[str]) -> Iterator[SetFault]:
    """Rows of a metadata file name files that are there, and have a text."""
    name = (place / "metadata.jsonl").relative_to(folder).as_posix()
    for line in read_text(place / "metadata.jsonl").splitlines():
        row = json.loads(line)
        for column in columns:
            entries = row[column] if isinstance(row[column], list) else [row[column]]
            for entry in entries:
                if size_of(inside(place, entry)) is None:
                    yield SetFault(name, f"{column} names {entry!r}, which is not a picture")
        if not row["text"].strip():
            yield SetFault(name, f"the text of {row['file_name']} is empty")
