"""A set of scenes as each trainer and loader wants it: pictures hard-linked into a folder of its own, with the ready configuration.

The rules were read in the consumers' code at these commits: kohya-ss/sd-scripts@48d368f, ostris/ai-toolkit@27a03a9,
Nerogar/OneTrainer@23df383, bghira/SimpleTuner@bc8e6ab, kohya-ss/musubi-tuner@30c658c, huggingface/diffusers@58eb52c,
Comfy-Org/ComfyUI@a125cd84.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..concepts.errors import BestiaryError
from ..concepts.files.atomic_file import replacing, write_bytes, write_text
from .reference_pictures import ChosenReference, choose_references, put_together, reference_picture, side_by_side
from .scene_set import replayed
from .set_card import coco_annotations
from .set_files import PICTURE_SUFFIXES, Plane, SceneRecord, inside, png_bytes, read_png, read_records

MARK = "view.json"
"""What a view is of, and the files that were written."""


class _View:
    """A view that is being written: everything in it is noted, so that it can be written anew."""

    def __init__(self, folder: Path, out: Path, records: Sequence[SceneRecord]) -> None:
        self.folder, self.out, self.records = folder, out, records
        self.files: list[str] = []

    def link(self, name: str, target: str) -> None:
        """A picture of the set under another name: a hard link where the file system has them, else a copy."""
        path = self._new(target)
        source = inside(self.folder, name)
        path.unlink(missing_ok=True)
        with suppress(OSError, NotImplementedError):
            os.link(source, path)
            return
        with replacing(path) as temporary:
            shutil.copyfile(source, temporary)

    def text(self, target: str, text: str) -> None:
        write_text(self._new(target), text)

    def json(self, target: str, content: object) -> None:
        self.text(target, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def picture(self, target: str, pixels: Plane) -> None:
        write_bytes(self._new(target), png_bytes(pixels))

    def place(self, name: str) -> str:
        """Absolute path of a folder of the view, as configurations hold it."""
        return (self.out / name).absolute().as_posix()

    def pictures(self, folder: str, *, masks: str = "", lines: bool = False) -> None:
        """Pictures with a caption beside each, of one line or of all wordings; masks of the same names elsewhere."""
        for record in self.records:
            self.link(f"images/{record.stem}.png", f"{folder}/{record.stem}.png")
            captions = dict.fromkeys([record.text, *record.captions] if lines else [record.text])
            self.text(f"{folder}/{record.stem}.txt", "\n".join(captions) + "\n")
            if masks:
                self.link(f"masks/{record.stem}.png", f"{masks}/{record.stem}.png")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height that most scenes have."""
        sizes = Counter((int(record.layout["width"]), int(record.layout["height"])) for record in self.records)
        return sizes.most_common(1)[0][0]

    @property
    def side(self) -> int:
        """Side of the square of as many pixels, in steps of 64."""
        width, height = self.size
        return max(64, round((width * height) ** 0.5 / 64) * 64)

    def _new(self, target: str) -> Path:
        self.files.append(target)
        path = self.out / target
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def export_view(folder: Path, kind: str, out: Path | None = None) -> Path:
    """Write a view of a set; an earlier one there is replaced. Returns the view's folder.

    Args:
        kind: one of `KINDS`.
        out: the view's own folder; `views/KIND` of the set where None. Its configuration holds absolute paths.

    Raises:
        BestiaryError: an unknown kind, no set, or a folder with files of others in it.
    """
    folder = Path(folder)
    if kind not in _WRITERS:
        raise BestiaryError(f"no view for {kind!r}: choose {', '.join(_WRITERS)}")
    records = list(read_records(folder))
    out = folder / "views" / kind if out is None else Path(out)
    if suffix := next((suffix for suffix in PICTURE_SUFFIXES if suffix in str(out.absolute()).lower()), None):
        raise BestiaryError(
            f"{out} holds {suffix!r} in its path, and ComfyUI replaces it when it looks for captions: choose another folder"
        )
    _clear(out)
    view = _View(folder, out, records)
    _WRITERS[kind](view)
    view.json(MARK, {"kind": kind, "scenes": [record.stem for record in records], "files": sorted(view.files)})
    return out


def _clear(out: Path) -> None:
    """Remove the files of an earlier view."""
    if not out.exists() or not any(out.iterdir()):
        return
    try:
        files = json.loads((out / MARK).read_text("utf-8"))["files"]
        paths = [inside(out, name) for name in files]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise BestiaryError(f"{out} holds files that no export wrote: choose an empty folder for the view") from fault
    for path in (*paths, out / MARK):
        path.unlink(missing_ok=True)


def _kohya(view: _View) -> None:
    """`masks` needs each picture's name and size; the caption's ending is `.caption` unless it is given."""
    view.pictures("images", masks="masks")
    view.text(
        "kohya.toml",
        "# sd-scripts: --dataset_config kohya.toml; add --masked_loss to train the subjects alone\n"
        "[general]\n"
        'caption_extension = ".txt"\n'
        "enable_bucket = true\n\n"
        "[[datasets]]\n"
        f"resolution = {view.side}\n"
        "batch_size = 1\n\n"
        "  [[datasets.subsets]]\n"
        f"  image_dir = {_quoted(view.place('images'))}\n"
        f"  conditioning_data_dir = {_quoted(view.place('masks'))}\n"
        "  num_repeats = 1\n",
    )


def _ai_toolkit(view: _View) -> None:
    """The folder is walked with all below it, so masks lie beside it."""
    view.pictures("images", masks="masks")
    view.text("ai-toolkit.yaml", _toolkit_yaml(view, {"mask_path": view.place("masks"), "mask_min_value": 0.1}))


def _onetrainer(view: _View) -> None:
    """Masks lie beside their pictures; one line of each caption file is taken by chance."""
    view.pictures("pictures", lines=True)
    for record in view.records:
        view.link(f"masks/{record.stem}.png", f"pictures/{record.stem}-masklabel.png")
    concept = {
        "name": view.folder.name,
        "path": view.place("pictures"),
        "enabled": True,
        "include_subdirectories": False,
        "image_variations": 1,
        "text_variations": 1,
        "balancing": 1.0,
        "balancing_strategy": "REPEATS",
        "loss_weight": 1.0,
        "text": {"prompt_source": "sample"},
    }
    view.json("concepts.json", [concept])


def _simpletuner(view: _View) -> None:
    """Each line is a caption; boxes in 0 ... 1 beside each picture keep subjects apart."""
    view.pictures("images", masks="masks", lines=True)
    for record in view.records:
        view.json(f"images/{record.stem}.bbox", normalised_boxes(record))
    shared = {"type": "local", "resolution": view.side, "resolution_type": "pixel", "crop": False}
    pictures = {
        "id": "scenes",
        "dataset_type": "image",
        "instance_data_dir": view.place("images"),
        "caption_strategy": "textfile",
        "repeats": 0,
        "grounding": {"enabled": True},
        "conditioning_data": ["scenes-masks"],
        "cache_dir_vae": view.place("cache/vae"),
    }
    masks = {
        "id": "scenes-masks",
        "dataset_type": "conditioning",
        "conditioning_type": "mask",
        "instance_data_dir": view.place("masks"),
    }
    text = {
        "id": "text-embeds",
        "type": "local",
        "dataset_type": "text_embeds",
        "default": True,
        "cache_dir": view.place("cache/text"),
    }
    view.json("multidatabackend.json", [pictures | shared, masks | shared, text])


def _musubi(view: _View) -> None:
    """Edit models: references of a scene's subjects are its control pictures `<stem>_0.png`, `<stem>_1.png`, ..."""
    for record in view.records:
        references = choose_references(view.records, record)
        view.link(f"images/{record.stem}.png", f"images/{record.stem}.png")
        view.text(f"images/{record.stem}.txt", f"{instruction(record)}\n")
        for number, reference in enumerate(references):
            view.picture(f"control/{record.stem}_{number}.png", _reference(view, reference))
    width, height = view.size
    view.text(
        "musubi.toml",
        "[general]\n"
        f"resolution = [{width}, {height}]\n"
        'caption_extension = ".txt"\n'
        "batch_size = 1\n"
        "enable_bucket = true\n\n"
        "[[datasets]]\n"
        f"image_directory = {_quoted(view.place('images'))}\n"
        f"control_directory = {_quoted(view.place('control'))}\n"
        f"cache_directory = {_quoted(view.place('cache'))}\n"
        "control_resolution = [1024, 1024]\n",
    )


def _diffusers(view: _View) -> None:
    for record in view.records:
        view.link(f"images/{record.stem}.png", f"train/{record.stem}.png")
    rows = ({"file_name": f"{record.stem}.png", "text": record.text} for record in view.records)
    view.text("train/metadata.jsonl", _lines(rows))
    view.text(
        "arguments.txt",
        f"--dataset_name={_quoted(view.place(''))}\n--image_column=image\n--caption_column=text\n--resolution={view.side}\n",
    )


def _custom_diffusion(view: _View) -> None:
    """Every file of an instance folder is read as a picture, so it holds pictures alone: one folder for each group of subjects."""
    groups: dict[tuple[str, ...], list[SceneRecord]] = {}
    for record in view.records:
        groups.setdefault(tuple(sorted(entry.id for entry in record.objects)), []).append(record)
    concepts = []
    for number, (names, records) in enumerate(sorted(groups.items()), start=1):
        place = f"instances/{number:03d}"
        for record in records:
            view.link(f"images/{record.stem}.png", f"{place}/{record.stem}.png")
        words = {entry.id: entry.words for entry in records[0].objects}
        said = " and ".join(f"<new{index}> {words[name]}" for index, name in enumerate(names, start=1))
        concepts.append(
            {
                "instance_prompt": f"a photo of {said}",
                "class_prompt": " and ".join(words[name] for name in names),
                "instance_data_dir": view.place(place),
                "class_data_dir": view.place(f"class/{number:03d}"),
            }
        )
    view.json("concepts_list.json", concepts)


def _coco(view: _View) -> None:
    for record in view.records:
        view.link(f"images/{record.stem}.png", f"images/{record.stem}.png")
    view.json("annotations/instances.json", coco_annotations(view.records, prefix=""))


def _comfyui(view: _View) -> None:
    """The loader takes a folder below input/ and one level of folders in it; nothing but pictures and captions lies there."""
    view.pictures("images")


def _edit(view: _View) -> None:
    """References and an instruction -> scene: columns for Kontext's script, `control_path_1` ... for ai-toolkit."""
    rows, fewest = [], min(3, *(len(record.objects) for record in view.records))
    for record in view.records:
        references = choose_references(view.records, record)
        pictures = [_reference(view, reference) for reference in references]
        stem = record.stem
        view.link(f"images/{stem}.png", f"images/{stem}.png")
        view.text(f"images/{stem}.txt", f"{instruction(record)}\n")
        names = [f"references_{number}/{stem}.png" for number in range(1, len(pictures) + 1)]
        for name, picture in zip(names, pictures, strict=True):
            view.picture(name, picture)
        view.picture(f"conditions/{stem}.png", side_by_side(pictures))
        rows.append(
            {
                "file_name": f"images/{stem}.png",
                "cond_image_file_name": f"conditions/{stem}.png",
                "references_file_names": names,
                "text": instruction(record),
                "same_source": [reference.same_source for reference in references],
            }
        )
    view.text("metadata.jsonl", _lines(rows))
    controls = {f"control_path_{number}": view.place(f"references_{number}") for number in range(1, fewest + 1)}
    view.text("ai-toolkit.yaml", _toolkit_yaml(view, controls))
    view.text(
        "arguments.txt",
        f"--dataset_name={_quoted(view.place(''))}\n--image_column=image\n--cond_image_column=cond_image\n--caption_column=text\n",
    )


def _layers(view: _View) -> None:
    """Scene -> RGBA layers, the place first, then the subjects from back to front."""
    for record in view.records:
        scene, stem = replayed(view.folder, record.stem), record.stem
        view.link(f"images/{stem}.png", f"images/{stem}.png")
        view.text(f"images/{stem}.txt", f"{record.text}\n")
        view.picture(f"images/{stem}_1.png", _opaque(scene.background))
        for number, index in enumerate(scene.painting_order, start=2):
            view.picture(f"images/{stem}_{number}.png", scene.layers[index])
    width, height = view.size
    view.text(
        "layers.toml",
        "# Qwen-Image-Layered\n"
        "[general]\n"
        f"resolution = [{width}, {height}]\n"
        'caption_extension = ".txt"\n'
        "batch_size = 1\n\n"
        "[[datasets]]\n"
        f"image_directory = {_quoted(view.place('images'))}\n"
        f"cache_directory = {_quoted(view.place('cache'))}\n"
        "multiple_target = true\n",
    )


_WRITERS: dict[str, Callable[[_View], None]] = {
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
KINDS = tuple(_WRITERS)
"""Consumers that a view is written for."""


def instruction(record: SceneRecord) -> str:
    """Instruction for an edit model: `put the cat of picture 1 and the bird of picture 2 in a wood`."""
    return put_together([entry.words for entry in record.objects], record.place)


def normalised_boxes(record: SceneRecord) -> list[dict[str, object]]:
    """`label` and `bbox` (left, top, right, bottom in 0 ... 1) of each subject."""
    width, height = float(record.layout["width"]), float(record.layout["height"])
    boxes = []
    for entry in record.objects:
        left, top, wide, tall = entry.bbox
        box = [left / width, top / height, (left + wide) / width, (top + tall) / height]
        boxes.append({"label": entry.words, "bbox": [round(number, 6) for number in box]})
    return boxes


def _toolkit_yaml(view: _View, more: Mapping[str, object]) -> str:
    """The `datasets` of an ai-toolkit job; JSON values are YAML values."""
    fields: dict[str, object] = {"folder_path": view.place("images"), "caption_ext": "txt", **more}
    lines = [f"      {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
    return "\n".join(
        [
            "# the datasets of a job: put them into your own configuration",
            "config:",
            "  process:",
            "  - datasets:",
            *[lines[0].replace("      ", "    - ", 1), *lines[1:]],
            "      buckets: true",
            f"      resolution: [{view.side}]",
            "",
        ]
    )


def _reference(view: _View, reference: ChosenReference) -> Plane:
    return reference_picture(read_png(inside(view.folder, reference.cutout)))


def _opaque(pixels: Plane) -> Plane:
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])


def _lines(rows: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _quoted(text: str) -> str:
    """A string of TOML, which is one of JSON."""
    return json.dumps(text, ensure_ascii=False)
