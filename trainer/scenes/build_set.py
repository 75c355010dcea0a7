"""Build a set of scenes from a recipe: plan, layouts measured on the collage, captions, files; a stopped build goes on."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...concepts.errors import BestiaryError
from ...concepts.name_search import same_names
from ...scenes.backgrounds import Background, Place, make_background
from ...scenes.collage import CollageOptions, Scene, compose
from ...scenes.layout_request import LayoutRequest
from ...scenes.layout_solver import solve_measured
from ...scenes.scene_captions import CaptionOptions, scene_caption, token_caption
from ...scenes.scene_layout import VERSION, SceneLayout
from ...scenes.scene_set import SceneEntry, SceneSet
from ...scenes.set_files import EVALUATION, SetCard, sha256_of
from ...scenes.set_plan import PlannedScene, evaluation_sources, ordered, plan_scenes
from ...scenes.source_list import check_terms, read_sources
from ...scenes.subject import Subject
from ..learning.pictures.image_files import UnreadableImage, list_images, picture_size, read_image
from .cutout_cache import FOLDER, CutoutCache
from .language_layouts import LanguageLayouts
from .read_subjects import CutoutRules, CutPicture, SubjectReader, read_subjects
from .scene_settings import BackgroundSettings, LayoutSettings, SceneSettings
from .set_page import write_set_page

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class BuiltSet:
    """What a build did."""

    scenes: int
    """In the set, those of the evaluation left out."""
    evaluation: int
    """Scenes of the evaluation."""
    made: int
    """In this run; the others were there."""
    skipped: Sequence[tuple[str, str]]
    """Pictures without a subject, with the reason."""
    rejected: Sequence[tuple[str, str]]
    """Scenes that could not be made, with the reason."""


@dataclass(frozen=True)
class _Places:
    """Pictures behind the subjects, and their hashes."""

    places: Sequence[Place] = ()
    hashes: Sequence[str] = ()
    skipped: Sequence[tuple[str, str]] = ()
    """Files that cannot be read, with the reason."""


@dataclass
class _Part:
    """The training or the evaluation scenes of a set, while they are made."""

    scene_set: SceneSet
    pool: Mapping[str, list[CutPicture]]
    plan: Sequence[PlannedScene]
    prefix: str = ""
    rejected: list[tuple[str, str]] = field(default_factory=list)
    made: int = 0


def build_set(
    settings: SceneSettings,
    folder: Path,
    *,
    language: LanguageLayouts | None = None,
    on_cut: Report = lambda done, total: None,
    on_scene: Report = lambda done, total: None,
) -> BuiltSet:
    """Make all scenes of a recipe that are not there yet, and the files that describe the set.

    A scene whose layout cannot be solved is noted with the reason and left out.

    Args:
        settings: the recipe.
        folder: of the set.
        language: a language model that is asked for layouts before the solver.
        on_cut: called with (done, total) pictures.
        on_scene: called with (done, total) scenes.

    Raises:
        BestiaryError: as `read_subjects`, `plan_scenes` and `SceneSet`, or no scene could be made.
    """
    # the name of the set, its places and its licences are checked before anything is cut out
    card = SetCard(folder.name, require_licence=settings.require_licence, options=settings.model_dump(mode="json"))
    scene_set, places = SceneSet(folder, card), _places(settings.background)
    terms = read_sources(settings.sources) if settings.sources else {}
    cache = CutoutCache(folder / FOLDER)
    reader = SubjectReader(CutoutRules(settings.cutout, settings.gate, settings.weights), cache, terms)
    read = read_subjects(settings.subjects, reader, on_progress=on_cut)
    if settings.require_licence:
        check_terms((name, cut.source) for name, pictures in read.pool.items() for cut in pictures)
    skipped = [*places.skipped, *read.skipped]
    scene_set.card = replace(card, skipped=skipped)
    parts = _parts(settings, scene_set, read.pool, max(1, len(places.places)))
    total = sum(len(part.plan) for part in parts)
    done = 0
    for part in parts:
        for index, planned in enumerate(part.plan):
            _make(part, planned, index, places, settings, language)
            done += 1
            on_scene(done, total)
    # the card of the whole set names the evaluation, which therefore is finished first
    counts = [_finished(part) for part in reversed(parts)]
    cache.remove_all_but({cut.record.key for pictures in read.pool.values() for cut in pictures} | read.refused)
    write_set_page(folder)
    return BuiltSet(
        counts[-1],
        sum(counts[:-1]),
        sum(part.made for part in parts),
        skipped,
        [entry for part in parts for entry in part.rejected],
    )


def _parts(
    settings: SceneSettings, scene_set: SceneSet, pool: Mapping[str, list[CutPicture]], places: int
) -> list[_Part]:
    """The training scenes and, where they are wanted, those of the evaluation."""
    asked = settings.evaluation
    photographs = {name: [cut.source.sha256 for cut in pictures] for name, pictures in pool.items()}
    kept = evaluation_sources(photographs, asked.share, settings.seed)
    evaluation_set = SceneSet(scene_set.folder / EVALUATION, scene_set.card)
    training = {name: [cut for cut in pictures if cut.source.sha256 not in kept] for name, pictures in pool.items()}
    parts = [_Part(scene_set, training, _plan(settings, training, settings.count, settings.numbers, places))]
    if not asked.share:
        evaluation_set.clear()
        return parts
    evaluated = {
        name: own for name, pictures in pool.items() if (own := [cut for cut in pictures if cut.source.sha256 in kept])
    }
    numbers = tuple(number for number in settings.numbers if number <= len(evaluated)) or (len(evaluated),)
    if not evaluated:
        raise BestiaryError(
            "evaluation.share keeps photographs apart, and no subject has a second photograph: add photographs, or set it to 0"
        )
    count = asked.count or max(1, round(asked.share * settings.count))
    plan = _plan(settings, evaluated, count, numbers, places, seed=settings.seed + 1)
    return [*parts, _Part(evaluation_set, evaluated, plan, f"{EVALUATION}/")]


def _plan(
    settings: SceneSettings,
    pool: Mapping[str, list[CutPicture]],
    count: int,
    numbers: Sequence[int],
    places: int,
    *,
    seed: int | None = None,
) -> list[PlannedScene]:
    names = [subject.name for subject in settings.subjects]
    carriers = {
        subject.name: names[same_names(subject.support.removeprefix("on:").strip(), names)[0]]
        for subject in settings.subjects
        if subject.support.startswith("on:")
    }
    counts = {name: len(pictures) for name, pictures in pool.items()}
    return plan_scenes(counts, count, numbers, places, settings.seed if seed is None else seed, carriers)


def _finished(part: _Part) -> int:
    try:
        return part.scene_set.finish([planned.stem for planned in part.plan])
    except BestiaryError as fault:
        if part.rejected:
            raise BestiaryError(
                f"none of the {len(part.rejected)} scenes could be made: {part.rejected[0][1]}"
            ) from fault
        raise


def _places(asked: BackgroundSettings) -> _Places:
    if asked.mode not in ("photo", "blur"):
        return _Places()
    if asked.picture is not None and not asked.picture.is_file():
        raise BestiaryError(f"background.picture {asked.picture} does not exist: give a picture of a place")
    paths = [asked.picture] if asked.picture else list_images(asked.folder or Path())
    if not paths:
        raise BestiaryError(f"background.folder {asked.folder} holds no picture: give a folder of pictures of places")
    readable, skipped = [], []
    for path in paths:
        try:
            # the header alone: pictures are decoded for the scenes that are still to be made
            picture_size(path)
        except UnreadableImage as fault:
            skipped.append((str(path), fault.reason))
        else:
            readable.append(path)
    if not readable:
        raise BestiaryError(f"no picture of a place can be read: {skipped[0][0]}: {skipped[0][1]}; give other pictures")
    places = [Place(path.name, partial(_pixels, path)) for path in readable]
    return _Places(places, [sha256_of(path.read_bytes()) for path in readable], skipped)


def _pixels(path: Path) -> NDArray[np.uint8]:
    return np.asarray(read_image(path))


def _request(asked: LayoutSettings, seed: int) -> LayoutRequest:
    return LayoutRequest(
        asked.width,
        asked.height,
        seed,
        asked.coverage,
        asked.max_occlusion,
        ground=asked.ground,
        perspective=asked.perspective,
        flip=asked.flip,
        turn=asked.turn,
    )


def _make(
    part: _Part,
    planned: PlannedScene,
    index: int,
    places: _Places,
    settings: SceneSettings,
    language: LanguageLayouts | None,
) -> None:
    """One scene of the plan, unless it is there."""
    cuts = [part.pool[name][picture] for name, picture in zip(planned.subjects, planned.pictures, strict=True)]
    key = _key(cuts, planned, index, places, settings, language)
    if not part.scene_set.is_finished(planned.stem, key):
        subjects = [cut.subject() for cut in cuts]
        options = CollageOptions(settings.shadow, settings.lightness, settings.inset)
        try:
            background = _background(planned, index, places, settings)
            scene, notes = _solved(subjects, planned, background, options, settings.layout, language)
        except BestiaryError as fault:
            part.scene_set.reject(planned.stem, key, [str(fault)])
        else:
            part.scene_set.write(planned.stem, _entry(scene, subjects, background, options, settings, notes), key)
            part.made += 1
    if reasons := part.scene_set.rejection(planned.stem):
        part.rejected.append((f"{part.prefix}{planned.stem}", "; ".join(reasons)))


def _key(
    cuts: Sequence[CutPicture],
    planned: PlannedScene,
    index: int,
    places: _Places,
    settings: SceneSettings,
    language: LanguageLayouts | None,
) -> str:
    """Hash of all that decides about a scene, known before it is composed."""
    content = {
        "version": VERSION,
        "plan": [asdict(planned), index],
        "subjects": [cut.identity() for cut in cuts],
        "triggers": _triggers(settings),
        "language": "" if language is None else f"{language.endpoint.url} {language.endpoint.model}",
        "place": places.hashes[planned.place] if places.hashes else "",
        "phrase": places.places[planned.place].name if places.places else "",
        **settings.model_dump(mode="json", include={"seed", "layout", "captions", "shadow", "lightness", "inset"}),
        "background": settings.background.model_dump(mode="json", exclude={"folder", "picture"}),
    }
    if settings.repaint.mode != "none":
        # where a model runs does not decide what it paints
        content["repaint"] = settings.repaint.model_dump(mode="json", exclude={"device", "dtype", "url"})
    return sha256_of(json.dumps(content, sort_keys=True, ensure_ascii=False).encode())


def _solved(
    subjects: Sequence[Subject],
    planned: PlannedScene,
    background: Background,
    options: CollageOptions,
    asked: LayoutSettings,
    language: LanguageLayouts | None,
) -> tuple[Scene, tuple[str, ...]]:
    """A scene whose layout keeps the limit of occlusion on the collage, and notes on it."""
    composed: dict[SceneLayout, Scene] = {}

    def hidden(layout: SceneLayout) -> float:
        composed.clear()
        scene = composed[layout] = compose(subjects, ordered(layout, planned.subjects), background.pixels, options)
        return max(scene.occlusion)

    request = _request(asked, planned.seed)
    layout, notes = (None, ()) if language is None else language.find(subjects, request, background.phrase, hidden)
    if layout is None:
        layout = solve_measured(subjects, request, hidden, asked.tries)
    scene = composed[layout]
    for index, subject in enumerate(scene.subjects):
        if not scene.area(index):
            raise BestiaryError(
                f"no pixel of {subject.name!r} is visible: lower layout.max_occlusion or raise layout.coverage"
            )
    return scene, notes


def _entry(
    scene: Scene,
    subjects: Sequence[Subject],
    background: Background,
    options: CollageOptions,
    settings: SceneSettings,
    notes: tuple[str, ...],
) -> SceneEntry:
    asked = settings.captions
    captions = CaptionOptions(asked.template, _triggers(settings), asked.prefix, asked.repeat, asked.relations)
    text = scene_caption(subjects, background.phrase, captions, scene.layout)
    prompt = token_caption(subjects, background.phrase, replace(captions, triggers={}), scene.layout)
    scores = {"hidden": max(scene.occlusion)}
    return SceneEntry(scene, text, options, prompt, place=background.phrase, scores=scores, rejected=notes)


def _triggers(settings: SceneSettings) -> dict[str, str]:
    return {subject.name: subject.trigger for subject in settings.subjects if subject.trigger}


def _background(planned: PlannedScene, index: int, places: _Places, settings: SceneSettings) -> Background:
    asked = settings.background
    chosen = [places.places[planned.place]] if places.places else []
    size = (settings.layout.width, settings.layout.height)
    return make_background(asked.mode, *size, settings.seed, chosen, index, asked.color, asked.phrase)
