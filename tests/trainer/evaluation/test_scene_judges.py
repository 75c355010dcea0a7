"""Judges of scenes: the pipeline of detector and CLIP by hand, windows of the drawn world, and what to do without weights."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.demo.creatures import HELD_OUT_SPECIES, draw_creature
from bestiary.scenes.scene_scores import score_places
from bestiary.trainer.evaluation.clip_judge import ClipJudge
from bestiary.trainer.evaluation.owl_detector import Detections
from bestiary.trainer.evaluation.scene_figures import score_picture
from bestiary.trainer.evaluation.scene_judges import (
    ClipSceneJudge,
    DrawnSceneJudge,
    KnownSubject,
    SceneJudges,
    load_scene_judges,
)
from PIL import Image

RED, BLUE = (220, 30, 30), (30, 60, 220)


class FixedDetector:
    """Sees what it is given, and notes what it was asked for."""

    def __init__(self, boxes: list[tuple[float, ...]], certainty: list[float], names: list[int]) -> None:
        self._found = Detections(torch.tensor(boxes).reshape(-1, 4), torch.tensor(certainty), torch.tensor(names))
        self.asked: list[str] = []

    def detect(self, picture: Image.Image, names: list[str]) -> Detections:
        self.asked = list(names)
        return self._found


class ColorJudge:
    """The mean colour as feature, and one fixed text."""

    def pictures(self, pictures: list[Image.Image]) -> torch.Tensor:
        means = torch.stack([torch.tensor(np.asarray(one.convert("RGB"), np.float32).mean((0, 1))) for one in pictures])
        return torch.nn.functional.normalize(means, dim=-1)

    def texts(self, texts: list[str]) -> torch.Tensor:
        return self.pictures([Image.new("RGB", (1, 1), RED)] * len(texts))


def _scene() -> Image.Image:
    picture = Image.new("RGB", (200, 100), (90, 90, 90))
    picture.paste(RED, (10, 10, 70, 90))
    picture.paste(BLUE, (120, 10, 180, 90))
    return picture


def _subjects(first: str = "dog", second: str = "dog") -> list[KnownSubject]:
    pictures = [(Image.new("RGB", (40, 40), color),) for color in (BLUE, RED)]
    return [KnownSubject("rex", first, pictures[0]), KnownSubject("ada", second, pictures[1])]


BOXES = [(10.0, 10.0, 60.0, 80.0), (120.0, 10.0, 60.0, 80.0)]


def test_subjects_of_one_class_are_told_apart_by_their_pictures() -> None:
    detector = FixedDetector([*BOXES, (12.0, 12.0, 60.0, 76.0)], [0.9, 0.8, 0.3], [0, 0, 0])
    score = score_places(ClipSceneJudge(ColorJudge(), detector).look(_scene(), _subjects()))
    assert detector.asked == ["a photo of a dog"] and score.places == (1, 0) and score.extra == 0
    assert score.cp == pytest.approx(1, abs=1e-5)


def test_places_count_for_their_own_class_alone() -> None:
    detector = FixedDetector(BOXES, [0.9, 0.8], [0, 0])
    score = score_places(ClipSceneJudge(ColorJudge(), detector).look(_scene(), _subjects("dog", "cat")))
    assert detector.asked == ["a photo of a dog", "a photo of a cat"]
    # both places are dogs: one too many, and no cat
    assert score.found == 0.5 and score.extra == 1 and score.places == (1, None) and score.cp == pytest.approx(0.5)
    nothing = ClipSceneJudge(ColorJudge(), FixedDetector([], [], [])).look(_scene(), _subjects())
    assert score_places(nothing).cp == 0 and nothing.likeness.shape == (0, 2)


def test_the_most_certain_places_are_kept_and_flat_ones_left_out() -> None:
    many = [(20.0 * row, 0.0, 15.0, 15.0) for row in range(9)]
    detector = FixedDetector([*many, (0.0, 50.0, 0.2, 40.0)], [0.1 * row + 0.1 for row in range(9)] + [1.0], [0] * 10)
    seen = ClipSceneJudge(ColorJudge(), detector).look(_scene(), _subjects())
    assert seen.boxes[:, 0].tolist() == [160, 140, 120, 100, 80, 60]
    with pytest.raises(BestiaryError, match="no pictures of 'rex': CLIP compares"):
        ClipSceneJudge(ColorJudge(), detector).look(_scene(), [KnownSubject("rex", "dog")])


def test_the_row_of_a_picture_says_who_was_found_where() -> None:
    judge = ClipSceneJudge(ColorJudge(), FixedDetector(BOXES[:1], [0.9], [0]))
    row = score_picture(SceneJudges(judge, ColorJudge(), {}, {}), _scene(), "a.png", "two dogs", _subjects())
    assert row["subjects"] == ["rex", "ada"] and row["places"] == {"rex": None, "ada": [10, 10, 60, 80]}
    assert (row["cp"], row["found"], row["extra_subjects"]) == (0.5, 0.5, 0)
    whole = ColorJudge().pictures([_scene()])[0]
    assert row["ti"] == pytest.approx(float(whole @ ColorJudge().texts(["x"])[0]), abs=1e-4)


def _pair(first: int, second: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    drawn = [draw_creature(HELD_OUT_SPECIES[number], rng).image for number in (first, second)]
    return Image.fromarray(np.concatenate(drawn, axis=1))


def test_the_drawn_world_finds_two_creatures_and_notices_a_copy() -> None:
    judge = DrawnSceneJudge()
    subjects = [KnownSubject(one.name, one.name, (), one) for one in HELD_OUT_SPECIES[:2]]
    both = score_places(judge.look(_pair(0, 1), subjects))
    assert both.found == 1 and both.extra == 0 and both.cp > 0.85
    copied = score_places(judge.look(_pair(0, 0), subjects))
    assert (copied.found, copied.extra) == (0.5, 1) and 0.4 < copied.cp <= 0.5 < copied.match
    # subjects known from drawings, looked for where they were put
    drawings = [_pair(number, number, seed=3).crop((0, 0, 128, 128)) for number in (0, 1)]
    known = [KnownSubject(one.name, "", (drawing,)) for one, drawing in zip(subjects, drawings, strict=True)]
    boxes = np.array([(128, 0, 128, 128), (0, 0, 128, 128)], np.float32)
    placed = score_places(judge.look(_pair(0, 1), known, boxes))
    assert placed.places == (1, 0) and placed.found == 1


def test_what_is_missing_is_named_with_its_remedy(
    tiny_clip: Path, tiny_owl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        BestiaryError, match="nothing can be judged. CLIP model .* hf download openai/clip-vit-base-patch32"
    ):
        load_scene_judges(None, str(tiny_owl), drawn=False)
    text_alone = load_scene_judges(str(tiny_clip), None, drawn=False)
    assert (
        text_alone.composition is None and "hf download google/owlv2-base-patch16-ensemble" in text_alone.left_out["CP"]
    )
    with pytest.raises(BestiaryError, match="no OWLv2 model 'nowhere'"):
        load_scene_judges(str(tiny_clip), "nowhere", drawn=False)
    drawn = load_scene_judges(None, None, drawn=True)
    assert drawn.text is None and set(drawn.left_out) == {"TI"} and drawn.models == {"attributes": "drawn world"}


def test_tiny_models_run_end_to_end_and_open_no_socket(
    tiny_clip: Path, tiny_owl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    judges = load_scene_judges(str(tiny_clip), str(tiny_owl), drawn=False, device="cpu")
    assert judges.models == {"clip": str(tiny_clip), "detector": str(tiny_owl)} and not judges.left_out
    row = score_picture(judges, _scene(), "a.png", "a red bird", _subjects("bird", "head"))
    clip = ClipJudge.load(str(tiny_clip))
    assert row["ti"] == pytest.approx(float(clip.pictures([_scene()])[0] @ clip.texts(["a red bird"])[0]), abs=1e-4)
    assert row["cp"] is not None and row["found"] is not None and set(row["places"]) == {"rex", "ada"}
    named = {name for name, box in row["places"].items() if box is not None}
    assert row["found"] == len(named) / 2 and (row["cp"] > 0) == any(row["likeness"][name] > 0 for name in named)
