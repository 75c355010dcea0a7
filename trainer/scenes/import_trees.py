"""Folders of Gen4Gen's stages to folders of subjects with recipes that `bestiary scenes build` reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tomli_w

from ...concepts.errors import BestiaryError
from ...concepts.files.atomic_file import write_bytes, write_text
from ...scenes.import_gen4gen import (
    FOREGROUND,
    SkippedFile,
    object_words,
    read_compositions,
    read_cutouts,
    read_photographs,
    straight_colors,
)
from ...scenes.scene_captions import scene_caption
from ...scenes.set_files import png_bytes
from ...scenes.subject import Subject
from ...scenes.subject_sources import subject_names

STAGES = ("s0_source_images", "s1_segmented_foreground", "s2_object_compositions")
COMPOSITIONS = "compositions"


@dataclass(frozen=True)
class ImportedTree:
    """What an import wrote."""

    recipes: tuple[Path, ...]
    cutouts: int
    compositions: int
    skipped: tuple[SkippedFile, ...]


def import_gen4gen(source: Path, out: Path) -> ImportedTree:
    """Write cut-outs with straight alpha, compositions, and a recipe for each scene.

    Args:
        source: the folder of all stages, or that of one.
        out: a new or empty folder.

    Raises:
        BestiaryError: no stage's tree, `out` holds files, or a file of the second stage has no mask of its size.
    """
    if out.exists() and any(out.iterdir()):
        raise BestiaryError(f"--out {out} is not empty: give a new folder")
    photographs, cut, composed = _stages(source)
    recipes: list[Path] = []
    count, skipped = 0, []
    if cut is not None:
        found, skipped = read_cutouts(cut, photographs)
        if not found:
            raise BestiaryError(f"no cut-out of {cut} can be used: {skipped[0].path}: {skipped[0].reason}")
        count = len(found)
        recipes = _write_cutouts(found, out)
    elif photographs is not None:
        folders: dict[str, dict[str, Path]] = {}
        for photograph in read_photographs(photographs):
            folders.setdefault(photograph.scene, {})[photograph.name] = photograph.path.parent.absolute()
        recipes = [_write_recipe(out, scene, subjects) for scene, subjects in folders.items()]
    written = 0 if composed is None else _write_compositions(composed, out / COMPOSITIONS)
    return ImportedTree(tuple(recipes), count, written, tuple(skipped))


def _stages(source: Path) -> tuple[Path | None, Path | None, Path | None]:
    """The trees of photographs, cut-outs and compositions that a folder holds, or is."""
    named = [source / name if (source / name).is_dir() else None for name in STAGES]
    if any(named):
        return named[0], named[1], named[2]
    if any(source.glob(f"*/*/*{FOREGROUND}")):
        return None, source, None
    if any(source.glob("*/img_*.png")):
        return None, None, source
    try:
        read_photographs(source)
    except BestiaryError as fault:
        raise BestiaryError(
            f"{source} is not a folder of Gen4Gen: it holds neither {', '.join(STAGES)} nor the tree of one of them"
        ) from fault
    return source, None, None


def _write_cutouts(found: Sequence[tuple[str, Subject]], out: Path) -> list[Path]:
    """Cut-outs as SCENE/OBJECT/NAME.png."""
    scenes: dict[str, dict[str, list[Subject]]] = {}
    for scene, subject in found:
        # the folder of the object, of which several photographs may be there
        name = Path(subject.source.file).parent.name
        scenes.setdefault(scene, {}).setdefault(name, []).append(subject)
    recipes = []
    for scene, objects in scenes.items():
        for name, subjects in objects.items():
            files = [Path(subject.source.file).name.removesuffix(FOREGROUND) for subject in subjects]
            stems = subject_names([f"{number}/{file}" for number, file in enumerate(files)])
            for stem, subject in zip(stems.values(), subjects, strict=True):
                write_bytes(out / scene / name / f"{stem}.png", png_bytes(subject.cutout))
        folders = {name: (out / scene / name).absolute() for name in objects}
        recipes.append(_write_recipe(out, scene, folders))
    return recipes


def _write_recipe(out: Path, scene: str, folders: Mapping[str, Path]) -> Path:
    names = subject_names([f"{name}/" for name in folders])
    subjects = [
        {"name": called, "folder": folder.as_posix(), "words": object_words(name)}
        for called, (name, folder) in zip(names.values(), folders.items(), strict=True)
    ]
    path = out / f"{scene}.toml"
    start = f"# bestiary scenes build {path.as_posix()} --out {scene}\n"
    write_text(path, start + tomli_w.dumps({"kind": "scenes", "per_scene": [len(subjects)], "subjects": subjects}))
    return path


def _write_compositions(source: Path, out: Path) -> int:
    """Compositions as transparent pictures with captions; returns their number."""
    count = 0
    pixel = np.full((1, 1, 4), 255, np.uint8)
    for composition in read_compositions(source):
        alpha = np.where(composition.mask, 255, 0).astype(np.uint8)
        picture = np.dstack([straight_colors(composition.picture, alpha), alpha])  # (H, W, 4)
        place = out / composition.path.parent.name
        write_bytes(place / composition.path.name, png_bytes(picture))
        subjects = [Subject(f"subject {number}", pixel, words) for number, words in enumerate(composition.names)]
        write_text(place / f"{composition.path.stem}.txt", scene_caption(subjects) + "\n")
        count += 1
    return count
