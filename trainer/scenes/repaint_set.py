"""Scenes of a set painted anew around their subjects, which are put back exactly; what is not fit is tried with other seeds."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...concepts.errors import BestiaryError
from ...scenes.collage import CollageOptions, Scene
from ...scenes.repaint_gate import FindThings, RepaintLimits, RepaintVerdict, judge_repaint
from ...scenes.scene_set import SceneEntry, SceneSet, replayed
from ...scenes.set_files import SceneRecord, read_records
from ...scenes.soft_edges import put_back
from .painters import Painter
from .recaption import read_card
from .scene_settings import RepaintSettings

Report = Callable[[int, int], None]
Plane = NDArray[np.uint8]
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
        picture, verdict = _attempt(scene, asked, painter, prompt, own, find_things)
        if not verdict.reasons:
            return _entry(record, scene, picture, model, verdict, (*_notes(record), *tried)), []
        tried.append(f"{_TRIED}{own}: {', '.join(verdict.reasons)}")
    return _entry(record, scene, None, "", None, (*_notes(record), _refusal(model), *tried)), tried


def _attempt(
    scene: Scene,
    asked: RepaintSettings,
    painter: Painter,
    prompt: str,
    seed: int,
    find_things: FindThings | None,
) -> tuple[Plane, RepaintVerdict]:
    painted = painter.paint(scene.picture, scene.repaint, prompt, seed)
    laid = put_back(_floats(painted), _floats(scene.picture), scene.union, asked.feather, asked.lightness)
    restored = (laid * 255).round().astype(np.uint8)
    limits = RepaintLimits(asked.least_change, asked.least_detail, asked.most_seam, asked.most_extra)
    return restored, judge_repaint(painted, restored, scene.picture, scene.union, limits, find_things)


def _floats(pixels: Plane) -> NDArray[np.float32]:
    """`(H, W, 3)` in 0..1."""
    return np.divide(pixels, 255, dtype=np.float32)


def _entry(
    record: SceneRecord,
    scene: Scene,
    picture: Plane | None,
    model: str,
    verdict: RepaintVerdict | None,
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
        kept | ({} if verdict is None else verdict.scores),
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
