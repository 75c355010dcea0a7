"""Layouts, compositions and captions one at a time: subjects from files, results as files."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ...concepts.errors import BestiaryError
from ...concepts.files.atomic_file import write_bytes, write_text
from ...concepts.files.text_file import read_text
from ...concepts.name_search import choices_text
from ...scenes.backgrounds import MODES, Background, BackgroundMode, Place, make_background
from ...scenes.collage import CollageOptions, Scene, compose
from ...scenes.layout_request import LayoutRequest
from ...scenes.layout_solver import solve_measured
from ...scenes.layout_text import layout_from_text
from ...scenes.scene_captions import CaptionOptions, scene_caption
from ...scenes.scene_layout import SceneLayout
from ...scenes.set_files import RECORDS, png_bytes, read_record
from ...scenes.subject import Subject
from ...scenes.subject_sources import subject_names
from ..learning.pictures.cutout_files import with_masks
from ..learning.pictures.image_files import list_images, read_image
from .cutout_cache import CutoutCache
from .language_layouts import LanguageLayouts
from .read_subjects import CutoutRules, SubjectReader
from .scene_settings import SubjectSettings


@dataclass(frozen=True)
class SubjectTexts:
    """What is said of subjects on the command line, by name."""

    words: Mapping[str, str]
    sizes: Mapping[str, str]
    supports: Mapping[str, str]

    def check(self, names: Sequence[str]) -> None:
        """Raises BestiaryError where a name is that of no subject."""
        for option, given in (("--words", self.words), ("--size", self.sizes), ("--support", self.supports)):
            for name in given:
                if name not in names:
                    raise BestiaryError(
                        f"{option} {name!r} is not one of the subjects: {choices_text(name, list(names))}"
                    )


def subjects_of_files(files: Sequence[Path], texts: SubjectTexts, rules: CutoutRules) -> list[Subject]:
    """A subject for each picture, called as its file: transparent ones as they are, others cut out.

    Raises:
        BestiaryError: as `SubjectReader.cut`, a mask that is refused, or a name of no subject.
    """
    names = subject_names([file.as_posix() for file in files])
    texts.check(list(names.values()))
    subjects = []
    with tempfile.TemporaryDirectory() as folder:
        reader = SubjectReader(rules, CutoutCache(Path(folder)))
        for file in files:
            name = names[file.as_posix()]
            asked = SubjectSettings(
                name=name,
                folder=file.parent,
                words=texts.words.get(name, ""),
                size=texts.sizes.get(name),
                support=texts.supports.get(name, "ground"),
            )
            ((_, mask),) = with_masks([file.name], file.parent, None)
            cut = reader.cut(file, asked, mask)
            if cut.record.faults:
                raise BestiaryError(
                    f"{file}: {'; '.join(cut.record.faults)}; give another picture, or a mask as {file.stem}_mask.png"
                )
            subjects.append(cut.subject())
    return subjects


def solve_layouts(
    subjects: Sequence[Subject],
    request: LayoutRequest,
    count: int,
    *,
    text: str = "",
    language: LanguageLayouts | None = None,
    place: str = "",
) -> list[tuple[SceneLayout, tuple[str, ...]]]:
    """Layouts with notes on each: from a text, of a language model, or solved.

    Args:
        count: layouts, with seeds from the request's upwards; a text gives one.
        text: as `layout_from_text` reads it.
        language: asked before the solver.
        place: phrase for the language model.

    Raises:
        BestiaryError: as `layout_from_text` and `solve_measured`.
    """
    if text:
        read = layout_from_text(text, subjects, request)
        return [(read.layout, read.notes)]
    blank = np.full((request.height, request.width, 3), 128, np.uint8)

    def hidden(layout: SceneLayout) -> float:
        return max(compose(subjects, layout, blank, CollageOptions(shadow=0)).occlusion)

    found = []
    for number in range(count):
        asked = replace(request, seed=request.seed + number)
        layout, notes = (None, ()) if language is None else language.find(subjects, asked, place, hidden)
        found.append((solve_measured(subjects, asked, hidden) if layout is None else layout, notes))
    return found


def write_layouts(layouts: Sequence[SceneLayout], folder: Path) -> list[Path]:
    """Write layouts as numbered files after those that are there."""
    number, paths = 0, []
    for layout in layouts:
        number += 1
        while (path := folder / f"{number:06d}.json").exists():
            number += 1
        write_text(path, layout.to_json() + "\n")
        paths.append(path)
    return paths


def read_layout(path: Path) -> SceneLayout:
    """A layout from a file of its own, or from the record of a scene in a set.

    Raises:
        BestiaryError: it is neither.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
        if isinstance(content, dict) and isinstance(content.get("layout"), dict):
            text = json.dumps(content["layout"])
    except (ValueError, RecursionError):
        # SceneLayout says what is wrong
        pass
    try:
        return SceneLayout.from_json(text)
    except BestiaryError as fault:
        raise BestiaryError(f"{path}: {fault}") from fault


def find_background(text: str, layout: SceneLayout, color: tuple[int, int, int]) -> Background:
    """What a scene stands before: `noise`, `plain`, a picture, or a folder of which the layout's seed chooses one.

    Raises:
        BestiaryError: it is none of these.
    """
    size = (layout.width, layout.height, layout.seed % 2**32)
    mode: BackgroundMode | None = next((mode for mode in MODES if mode == text), None)
    if mode in ("noise", "plain"):
        return make_background(mode, *size, color=color)
    path = Path(text)
    paths = [path] if path.is_file() else list_images(path) if path.is_dir() else []
    if not paths:
        raise BestiaryError(
            f"background {text!r} is not a picture, a folder of pictures, noise or plain: give one of these"
        )
    places = [Place(one.name, partial(_pixels, one)) for one in paths]
    return make_background("photo", *size, places=places)


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(read_image(path))


def write_scene(scene: Scene, folder: Path) -> list[Path]:
    """Write a scene and all its masks into a folder that need not exist; returns the files.

    Raises:
        BestiaryError: the folder holds files, or cannot be written to.
    """
    if folder.exists() and any(folder.iterdir()):
        raise BestiaryError(f"--out {folder} is not empty: give a new folder")
    names = subject_names([subject.name for subject in scene.subjects])
    planes = {
        "picture.png": scene.picture,
        "mask.png": scene.union,
        "labels.png": scene.labels,
        "repaint.png": scene.repaint,
        "background.png": scene.background,
    }
    if any(subject.parts is not None for subject in scene.subjects):
        planes["parts.png"] = scene.parts
    for subject, alpha, layer in zip(scene.subjects, scene.alphas, scene.layers, strict=True):
        planes[f"alpha {names[subject.name]}.png"] = alpha
        planes[f"layer {names[subject.name]}.png"] = layer
    for name, pixels in planes.items():
        write_bytes(folder / name, png_bytes(pixels))
    write_text(folder / "layout.json", scene.layout.to_json() + "\n")
    return [folder / name for name in (*planes, "layout.json")]


def caption_of(path: Path, options: CaptionOptions, place: str, words: Mapping[str, str]) -> str:
    """The caption of a layout's file, or of the record of a scene in a set, whose own place and words count where none are given.

    Raises:
        BestiaryError: as `read_layout`, or words for a name that the layout does not have.
    """
    layout = read_layout(path)
    names = [placement.subject for placement in layout.placements]
    SubjectTexts(words, {}, {}).check(names)
    for name in options.triggers:
        if name not in names:
            raise BestiaryError(f"--trigger {name!r} is not one of the subjects: {choices_text(name, names)}")
    supports: dict[str, str] = {}
    if path.resolve().parent.name == RECORDS and _is_record(path):
        record = read_record(path)
        supports = {subject.name: subject.support for subject in record.subjects}
        words = {subject.name: subject.words for subject in record.subjects} | dict(words)
        place = place or record.place
    pixel = np.full((1, 1, 4), 255, np.uint8)
    subjects = [Subject(name, pixel, words.get(name, ""), support=supports.get(name, "ground")) for name in names]
    return scene_caption(subjects, place, options, layout)


def _is_record(path: Path) -> bool:
    try:
        return "layout" in json.loads(read_text(path))
    except (ValueError, TypeError):
        return False
