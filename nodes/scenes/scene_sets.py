"""Sets of scenes written from a graph, captions and references of them, and whether a painted scene is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import folder_paths
import numpy as np
import torch
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.name_search import choices_text, same_name
from ...scenes.collage import Scene
from ...scenes.reference_pictures import put_together, reference_picture
from ...scenes.scene_captions import CaptionOptions, plain_words, scene_caption, token_caption
from ...scenes.scene_gate import JudgedScene, SceneLimits, judge_scene
from ...scenes.scene_layout import SceneLayout
from ...scenes.scene_set import SceneEntry, SceneSet, scene_key
from ...scenes.set_files import RECORDS, SetCard, checked_set_name, read_records, sha256_of
from ...scenes.set_views import export_view
from ...scenes.subject import Subject
from ..host.graph_progress import GraphProgress
from ..host.socket_types import ComposedScenes, SceneLayouts, SceneSubjects
from .scene_pictures import as_planes, as_tensor, checked_masks, checked_pictures

NO_VIEW = "none"
TARGETS = ("output", "input")


def triggers_of(text: str, names: Sequence[str]) -> dict[str, str]:
    """Trigger words from lines `name = word`.

    Raises:
        BestiaryError: a line without an equals sign, or with a name of no subject.
    """
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        typed, equals, word = line.partition("=")
        name = same_name(typed.strip(), names)
        if not equals or not word.strip():
            raise BestiaryError(f"trigger {line[:80]!r} is not understood: write a name, = and a word, as in cat = sks")
        if name is None:
            raise BestiaryError(
                f"trigger {line[:80]!r} names no subject: the subjects are {choices_text(typed.strip(), list(names))}"
            )
        found[name] = word.strip()
    return found


def captions_of(
    subjects: SceneSubjects, layouts: SceneLayouts, place: str, options: CaptionOptions
) -> tuple[list[str], list[str]]:
    """For every layout a caption for other trainers and one with part tokens.

    Raises:
        BestiaryError: a layout names a subject that is not there.
    """
    where = place.strip() or layouts.place
    plain, tokens = [], []
    for layout in layouts.layouts:
        shown = shown_subjects(subjects, layout)
        plain.append(scene_caption(shown, where, options, layout))
        tokens.append(token_caption(shown, where, options, layout))
    return plain, tokens


def shown_subjects(subjects: SceneSubjects, layout: SceneLayout) -> list[Subject]:
    """The subjects of a layout, in its order.

    Raises:
        BestiaryError: one is not there.
    """
    known = {one.name: one for one in subjects.subjects}
    missing = [one.subject for one in layout.placements if one.subject not in known]
    if missing:
        raise BestiaryError(
            f"the layout names {missing[0]!r}, and the subjects are {choices_text(missing[0], list(known))}: connect both of one chain"
        )
    return [known[one.subject] for one in layout.placements]


def references(subjects: SceneSubjects, layouts: SceneLayouts, size: int) -> tuple[list[Tensor], str]:
    """A picture `(1, s, s, 3)` on white, all of one size, of every subject of the first layout, and the instruction for an edit model.

    Where there is a further picture of a subject it is shown: with the same one a model copies.
    """
    shown = shown_subjects(subjects, layouts.layouts[0])
    others = {one.name: one for one in reversed(subjects.others)}
    pictures = [reference_picture(others.get(one.name, one).cutout, size) for one in shown]
    largest = max(map(len, pictures))
    # of one size, so that core nodes can make a batch of them
    margins = [((largest - len(one)) // 2, (largest - len(one) + 1) // 2) for one in pictures]
    padded = [
        np.pad(one, (margin, margin, (0, 0)), constant_values=255)
        for one, margin in zip(pictures, margins, strict=True)
    ]
    return [as_tensor([one]) for one in padded], put_together([plain_words(one) for one in shown], layouts.place)


def judge_all(
    images: Tensor, canvas: Tensor, mask: Tensor, limits: SceneLimits, things: Tensor | None
) -> list[JudgedScene]:
    """What every picture `(B, H, W, 3)` measures against its canvas, one for all or one each; masks are 1 = subject.

    Raises:
        BestiaryError: other numbers of pictures, or as `judge_scene`.
    """
    images, canvas = checked_pictures(images)[..., :3], checked_pictures(canvas, "canvas")[..., :3]
    masks = as_planes(checked_masks(mask, canvas))
    if len(canvas) not in (1, len(images)):
        raise BestiaryError(f"{len(images)} pictures for {len(canvas)} canvases: connect one canvas, or one for each")
    found = None if things is None else as_planes(checked_masks(things, images, "things"))
    return [
        judge_scene(
            picture.float().cpu().numpy(),
            canvas[number % len(canvas)].float().cpu().numpy(),
            masks[number % len(masks)],
            limits,
            None if found is None else found[number],
        )
        for number, picture in enumerate(images)
    ]


def kept_pictures(images: Tensor, judged: Sequence[JudgedScene]) -> Tensor:
    """Those of the pictures `(B, H, W, 3)` that have no fault; all of them where none is left, since a batch cannot be empty."""
    kept = [number for number, one in enumerate(judged) if not one.faults]
    return images[torch.tensor(kept)] if kept else images


def judged_text(judged: Sequence[JudgedScene]) -> str:
    """A line on every picture."""
    lines = []
    for number, one in enumerate(judged, start=1):
        figures = f"subjects {one.fidelity:.1f} dB, seam {one.seam:.2f}, place {one.empty:.3f}, extra {one.extra:.0%}"
        lines.append(f"picture {number}: {'rejected, ' + '; '.join(one.faults) if one.faults else 'kept'} ({figures})")
    return "\n".join(lines)


def set_folder(name: str, target: str) -> Path:
    """The folder of a set in ComfyUI's output or input folder.

    Raises:
        BestiaryError: the name leads elsewhere or cannot be a folder's.
    """
    if target not in TARGETS:
        raise BestiaryError(f"target {target!r} is not one of {', '.join(TARGETS)}: choose one of them")
    root = folder_paths.get_output_directory() if target == "output" else folder_paths.get_input_directory()
    return Path(root).resolve() / checked_set_name(name.strip())


def joined_scenes(composed: Sequence[ComposedScenes]) -> ComposedScenes:
    """All scenes of a list; those that were composed in different ways cannot be one set's.

    Raises:
        BestiaryError: they were.
    """
    if any(one.options != composed[0].options for one in composed):
        raise BestiaryError(
            "the scenes were composed with different settings: save them one after the other, under one name"
        )
    return ComposedScenes(tuple(scene for one in composed for scene in one.scenes), composed[0].options)


def save_set(
    composed: ComposedScenes,
    texts: Mapping[str, Sequence[str]],
    place: str,
    images: Tensor | None,
    folder: Path,
    view: str,
    progress: GraphProgress,
) -> tuple[Path, int]:
    """Write scenes into a set, after those that are in it; a scene that is there already keeps its files.

    Args:
        composed: from Compose Scene.
        texts: `captions`, and `prompts` with part tokens or none, one for each scene.
        place: phrase for the place of all scenes, or nothing.
        images: `(B, H, W, 3)` painted pictures in place of the collages, one for each scene; None for the collages.
        folder: of the set.
        view: a trainer to write a view for, or `NO_VIEW`.
        progress: counts scenes.

    Returns:
        The folder to train from and how many scenes the set holds.

    Raises:
        BestiaryError: other numbers of captions or pictures, or as `SceneSet` and `export_view`.
        InterruptProcessingException: the user cancelled; scenes that are written stay.
    """
    scenes = composed.scenes
    captions, prompts = list(texts["captions"]), list(texts["prompts"])
    for called, given in (("captions", captions), ("prompts", prompts)):
        if len(given) not in (0 if called == "prompts" else len(scenes), len(scenes)):
            raise BestiaryError(
                f"{len(given)} {called} for {len(scenes)} scenes: connect one for each, from Scene Caption"
            )
    painted = _painted(images, scenes)
    scene_set = SceneSet(folder, SetCard(folder.name))
    stems = {record.key: record.stem for record in read_records(folder)} if (folder / RECORDS).is_dir() else {}
    progress.begin(len(scenes))
    for number, scene in enumerate(scenes):
        progress.add()
        prompt = prompts[number] if prompts else ""
        picture = None if painted is None else painted[number]
        entry = SceneEntry(
            scene,
            captions[number],
            composed.options,
            prompt,
            place=" ".join(place.split()),
            picture=picture,
            model="" if picture is None else "graph",
            scores={"hidden": max(scene.occlusion)},
        )
        key = _key(entry)
        stem = stems.setdefault(key, _next_stem(stems.values()))
        if not scene_set.is_finished(stem, key):
            scene_set.write(stem, entry, key)
    count = scene_set.finish()
    progress.finish()
    return (folder if view == NO_VIEW else export_view(folder, view)), count


def _painted(images: Tensor | None, scenes: Sequence[Scene]) -> np.ndarray | None:
    if images is None:
        return None
    pictures = as_planes(checked_pictures(images)[..., :3])
    if len(pictures) != len(scenes):
        raise BestiaryError(f"{len(pictures)} painted pictures for {len(scenes)} scenes: connect one for each")
    return pictures


def _next_stem(stems: Iterable[str]) -> str:
    return f"{max((int(stem) for stem in stems if stem.isdigit()), default=0) + 1:06d}"


def _key(entry: SceneEntry) -> str:
    words = {"text": entry.text, "prompt": entry.prompt, "place": entry.place}
    if entry.picture is not None:
        words["picture"] = sha256_of(entry.picture.tobytes())
    return scene_key(entry.scene.subjects, entry.scene.layout, entry.scene.background, entry.options, words)
