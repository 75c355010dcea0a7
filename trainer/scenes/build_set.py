"""Build a set of scenes from a recipe: plan, layouts measured on the collage, captions, files; a stopped build goes on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ...concepts.errors import BestiaryError
from ...scenes.backgrounds import Background, Place, make_background
from ...scenes.collage import CollageOptions, compose
from ...scenes.layout_request import LayoutRequest
from ...scenes.layout_solver import solve_measured
from ...scenes.scene_captions import CaptionOptions, scene_caption, token_caption
from ...scenes.scene_layout import SceneLayout
from ...scenes.scene_set import SceneEntry, SceneSet, scene_key
from ...scenes.set_files import SetCard
from ...scenes.set_plan import PlannedScene, ordered, plan_scenes
from ...scenes.source_list import check_licences, read_sources
from ...scenes.subject import Subject
from ..learning.pictures.image_files import list_images, read_image
from .read_subjects import read_subjects
from .scene_settings import SceneSettings
from .set_page import write_set_page

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class BuiltSet:
    """What a build did."""

    scenes: int
    """In the set."""
    made: int
    """In this run; the others were there."""
    skipped: Sequence[tuple[str, str]]
    """Pictures without a subject, with the reason."""


def build_set(
    settings: SceneSettings,
    folder: Path,
    *,
    on_cut: Report = lambda done, total: None,
    on_scene: Report = lambda done, total: None,
) -> BuiltSet:
    """Make all scenes of a recipe that are not there yet, and the files that describe the set.

    Args:
        settings: the recipe.
        folder: of the set.
        on_cut: called with (done, total) pictures.
        on_scene: called with (done, total) scenes.

    Raises:
        BestiaryError: as `read_subjects`, `plan_scenes`, `solve_layout` and `SceneSet`.
    """
    # the name of the set and its places are checked before anything is cut out
    options = CaptionOptions(
        settings.captions.template,
        {subject.name: subject.trigger for subject in settings.subjects if subject.trigger},
        relations=settings.captions.relations,
    )
    card = SetCard(folder.name, require_licence=settings.require_licence, options=settings.model_dump(mode="json"))
    scene_set, places = SceneSet(folder, card), _places(settings)
    terms = read_sources(settings.sources) if settings.sources else {}
    read = read_subjects(settings.subjects, settings.weights, terms, on_progress=on_cut)
    if settings.require_licence:
        check_licences([subject for subjects in read.pool.values() for subject in subjects])
    counts = {name: len(subjects) for name, subjects in read.pool.items()}
    plan = plan_scenes(counts, settings.count, settings.per_scene, max(1, len(places)), settings.seed)
    made = 0
    for index, planned in enumerate(plan):
        made += _make(scene_set, planned, index, read.pool, places, settings, options)
        on_scene(index + 1, len(plan))
    scenes = scene_set.finish([planned.stem for planned in plan])
    write_set_page(folder)
    return BuiltSet(scenes, made, read.skipped)


def _places(settings: SceneSettings) -> list[Place]:
    asked = settings.background
    if asked.folder is None:
        if asked.mode in ("photo", "blur"):
            raise BestiaryError(
                f"background.mode {asked.mode!r} needs pictures of places: give background.folder, or take noise or plain"
            )
        return []
    places = [Place(path.name, partial(_pixels, path)) for path in list_images(asked.folder)]
    if not places and asked.mode in ("photo", "blur"):
        raise BestiaryError(f"background.folder {asked.folder} holds no picture: give a folder of places")
    return places


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(read_image(path))


def _make(
    scene_set: SceneSet,
    planned: PlannedScene,
    index: int,
    pool: Mapping[str, list[Subject]],
    places: Sequence[Place],
    settings: SceneSettings,
    captions: CaptionOptions,
) -> bool:
    """One scene of the plan, unless it is there; returns whether it was made."""
    subjects = [pool[name][picture] for name, picture in zip(planned.subjects, planned.pictures, strict=True)]
    background = _background(planned, index, places, settings)
    collage = CollageOptions(settings.shadow, settings.lightness)
    asked = settings.layout
    request = LayoutRequest(
        asked.width,
        asked.height,
        planned.seed,
        asked.coverage,
        asked.max_occlusion,
        perspective=asked.perspective,
        flip=asked.flip,
        turn=asked.turn,
    )

    def hidden(layout: SceneLayout) -> float:
        return max(compose(subjects, ordered(layout, planned.subjects), background.pixels, collage).occlusion)

    layout = ordered(solve_measured(subjects, request, hidden), planned.subjects)
    words = {
        "captions": settings.captions.model_dump(),
        "triggers": dict(captions.triggers),
        "place": background.phrase,
    }
    key = scene_key(subjects, layout, background.pixels, collage, words)
    if scene_set.is_finished(planned.stem, key):
        return False
    scene = compose(subjects, layout, background.pixels, collage)
    text = scene_caption(subjects, background.phrase, captions, layout)
    prompt = token_caption(subjects, background.phrase, replace(captions, triggers={}), layout)
    entry = SceneEntry(scene, text, collage, prompt, place=background.phrase, scores={"hidden": max(scene.occlusion)})
    scene_set.write(planned.stem, entry, key)
    return True


def _background(planned: PlannedScene, index: int, places: Sequence[Place], settings: SceneSettings) -> Background:
    asked, chosen = settings.background, [places[planned.place]] if places else []
    size = (settings.layout.width, settings.layout.height)
    return make_background(asked.mode, *size, settings.seed, chosen, index, asked.color)
