"""Scenes of a set painted anew around their subjects, which are put back exactly; what is not fit is tried with other seeds."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...concepts.errors import BestiaryError
from ...scenes.collage import CollageOptions, Scene
from ...scenes.scene_gate import SceneLimits, judge_scene
from ...scenes.scene_set import SceneEntry, SceneSet, replayed
from ...scenes.set_files import SceneRecord, read_records
from ...scenes.soft_edges import put_back
from .painters import Painter
from .recaption import read_card
from .scene_settings import RepaintSettings

Report = Callable[[int, int], None]
Plane = NDArray[np.uint8]
FindThings = Callable[[Plane], Plane]
"""Picture `(H, W, 3)` -> mask `(H, W)`, 255 on whatever stands out of its place."""
_REFUSED, _TRIED = "not painted by ", "seed "


@dataclass(frozen=True)
class Repainted:
    """What became of a set's pictures."""

    scenes: int
    painted: int
    """In this run; the others were painted so before."""
    refused: tuple[tuple[str, str], ...]
    """Scenes that keep their collage, with the reasons of the tries."""


def repaint_set(
    folder: Path,
    asked: RepaintSettings,
    painter: Painter,
    *,
    seed: int = 0,
    find_things: FindThings | None = None,
    title: str = "",
    on_scene: Report = lambda done, total: None,
) -> Repainted:
    """Paint the place of every scene anew that this painter has not painted yet.

    A scene is written as soon as it is painted, so that a run that is stopped goes on there.

    Args:
        seed: of the first try; each scene adds what is its own.
        find_things: a cut-out network that looks for subjects nobody asked for; None leaves this out.
        title: of the whole set, which its evaluation shares; empty is the folder's name.
        on_scene: called with (done, total) scenes.

    Raises:
        BestiaryError: `folder` is not a set, the painter fails, or there is no place on the disk.
    """
    records = list(read_records(folder))
    scene_set = SceneSet(folder, read_card(folder, title or folder.name))
    painted, refused = 0, []
    for number, record in enumerate(records, start=1):
        model = _model(painter, asked, seed)
        # scenes of this painter are done, and so are those that it could not paint
        if record.model != model and not _given_up(record, model):
            entry, reasons = _paint(folder, record, asked, painter, seed, find_things, model)
            scene_set.write(record.stem, entry, record.key)
            painted += not reasons
            refused += [(record.stem, "; ".join(reasons))] if reasons else []
        elif record.model != model:
            refused.append((record.stem, "; ".join(record.rejected)))
        on_scene(number, len(records))
    scene_set.finish()
    return Repainted(len(records), painted, tuple(refused))


def place_prompt(template: str, place: str) -> str:
    """The prompt of a scene's place: `{place}` is the phrase of its caption, such as "in a garden".

    Raises:
        BestiaryError: the template has another field.
    """
    try:
        return " ".join(template.format(place=place).split())
    except (KeyError, IndexError, ValueError) as fault:
        raise BestiaryError(f"repaint prompt {template!r}: only {{place}} can stand in braces ({fault})") from fault


def _paint(
    folder: Path,
    record: SceneRecord,
    asked: RepaintSettings,
    painter: Painter,
    seed: int,
    find_things: FindThings | None,
    model: str,
) -> tuple[SceneEntry, list[str]]:
    """The scene with its painted picture, or with its collage and the reasons against every try."""
    scene = replayed(folder, record.stem)
    prompt = place_prompt(asked.prompt, record.place)
    tried: list[str] = []
    for attempt in range(asked.tries):
        own = _seed(seed, record.stem, attempt)
        picture, scores, faults = _attempt(scene, asked, painter, prompt, own, find_things)
        if not faults:
            return _entry(record, scene, picture, model, scores, (*_notes(record), *tried)), []
        tried.append(f"{_TRIED}{own}: {', '.join(faults)}")
    return _entry(record, scene, None, "", {}, (*_notes(record), _refusal(model), *tried)), tried


def _attempt(
    scene: Scene,
    asked: RepaintSettings,
    painter: Painter,
    prompt: str,
    seed: int,
    find_things: FindThings | None,
) -> tuple[Plane, dict[str, float], list[str]]:
    """A picture with the subjects put back, what was measured of it, and what is wrong with it."""
    painted, canvas = _floats(painter.paint(scene.picture, scene.repaint, prompt, seed)), _floats(scene.picture)
    laid = put_back(painted, canvas, scene.union, asked.feather, asked.lightness)
    restored = (laid * 255).round().astype(np.uint8)
    things = None if find_things is None else find_things(restored)
    # subjects are exact once they are put back: how well the model kept them is measured before
    limits = SceneLimits(None, asked.most_seam, asked.least_variation, asked.most_extra)
    judged = judge_scene(laid, canvas, scene.union, limits, things)
    before = judge_scene(painted, canvas, scene.union, limits).fidelity
    place = scene.union == 0
    change = float(np.abs(laid - canvas)[place].mean()) if place.any() else 1.0
    scores = {"psnr": before, "change": change, "seam": judged.seam, "variation": judged.empty}
    scores |= {} if things is None else {"extra": judged.extra}
    faults = list(judged.faults)
    if change < asked.least_change:
        faults.append(f"nothing new: the place changed by {change:.3f}, at least {asked.least_change:g} is wanted")
    return restored, {name: round(value, 4) for name, value in scores.items()}, faults


def _floats(pixels: Plane) -> NDArray[np.float32]:
    """`(H, W, 3)` in 0..1."""
    return np.divide(pixels, 255, dtype=np.float32)


def _entry(
    record: SceneRecord,
    scene: Scene,
    picture: Plane | None,
    model: str,
    scores: Mapping[str, float],
    rejected: tuple[str, ...],
) -> SceneEntry:
    kept = {name: value for name, value in record.scores.items() if name == "hidden"}
    return SceneEntry(
        scene,
        record.text,
        CollageOptions(**record.options),
        record.prompt,
        record.captions,
        record.place,
        picture,
        model,
        {**kept, **scores},
        rejected,
    )


def _model(painter: Painter, asked: RepaintSettings, seed: int) -> str:
    """What the record names; the hash stands for prompts and limits, so that a run with others paints anew."""
    decides = asked.model_dump(mode="json", exclude={"device", "dtype", "url", "workflow"})
    digest = hashlib.sha256(json.dumps([decides, seed], sort_keys=True).encode()).hexdigest()[:8]
    return f"{painter.name} ({digest})"


def _notes(record: SceneRecord) -> list[str]:
    """What was noted before anybody painted."""
    return [note for note in record.rejected if not note.startswith((_REFUSED, _TRIED))]


def _refusal(model: str) -> str:
    return f"{_REFUSED}{model}"


def _given_up(record: SceneRecord, model: str) -> bool:
    return _refusal(model) in record.rejected


def _seed(seed: int, stem: str, attempt: int) -> int:
    """The same for a scene whatever else the set holds."""
    return int.from_bytes(hashlib.sha256(f"{seed} {stem} {attempt}".encode()).digest()[:4], "big")
