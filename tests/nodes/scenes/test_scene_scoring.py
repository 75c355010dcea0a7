"""Score Scene: figures from the models of a graph, boxes of other nodes, and what must be connected."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.demo.creatures import HELD_OUT_SPECIES, draw_creature
from bestiary.nodes.host.graph_progress import GraphProgress
from bestiary.nodes.scenes.scene_scoring import JUDGES, SceneScorer, score_all, scores_json, scores_text, text_feature
from bestiary.nodes.scenes.subject_making import added, subjects_of_images

PROGRESS = GraphProgress(None)
RED, BLUE = (200, 60, 40), (40, 90, 200)


class ColorVision:
    """The mean colour of whatever is not white as feature."""

    def encode_image(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        colored = image[(image.amin(dim=-1) < 0.9)]
        return {"image_embeds": colored.mean(dim=0, keepdim=True)}


class FixedClip:
    """A text with a given feature, and a text projection of a given spread."""

    def __init__(self, feature: list[float], spread: float = 0.03) -> None:
        self._feature = torch.tensor([feature])
        weights = torch.tensor([-spread, spread])
        self.cond_stage_model = SimpleNamespace(
            state_dict=lambda: {"clip_l.transformer.text_projection.weight": weights}
        )

    def tokenize(self, text: str) -> dict:
        return {"l": [[text]]}

    def encode_from_tokens(self, tokens: dict, return_pooled: bool = False) -> tuple:
        return None, self._feature


@pytest.fixture(scope="module")
def scene() -> torch.Tensor:
    """`(1, 100, 200, 3)`: something blue to the left and something red to the right."""
    picture = torch.full((1, 100, 200, 3), 0.5)
    picture[0, 10:90, 10:70] = torch.tensor(BLUE) / 255
    picture[0, 10:90, 120:180] = torch.tensor(RED) / 255
    return picture


def box(x: int, label: str = "", **more: object) -> dict:
    return {"x": x, "y": 10, "width": 60, "height": 80, "label": label, **more}


def scored(scene, pair, boxes, **changes):
    scorer = SceneScorer("clip vision", ColorVision(), changes.get("clip"))
    return score_all(scene, pair, changes.get("prompt", ""), scorer, boxes, PROGRESS)


def test_boxes_are_given_to_whom_they_are_like(scene, pair):
    (one,) = scored(scene, pair, [[box(120), box(10)]])
    assert one.places == {"ball": [10, 10, 60, 80], "box": [120, 10, 60, 80]} and one.extra == 0 and one.ti is None
    assert one.cp > 0.98 and one.found == 1
    # a label is the name or the words of a subject; this one's box is not where it looks alike
    (named,) = scored(scene, pair, [box(120, "Blue Ball"), box(10, "box"), box(60, "tree")])
    assert named.places["ball"] == [120, 10, 60, 80] and named.cp < 0.9 and named.found == 1
    (missing,) = scored(scene, pair, [box(10, "ball"), box(120, "ball")])
    assert (missing.found, missing.extra, missing.places["box"]) == (0.5, 1, None) and missing.cp < 0.5
    (nothing,) = scored(scene, pair, [[]])
    assert (nothing.cp, nothing.found) == (0, 0)


def test_overlapping_and_outlying_boxes_are_left_out(scene, pair):
    boxes = [box(10, score=0.5), box(14, score=0.9), box(120), {**box(500), "label": "ball"}]
    (one,) = scored(scene, pair, boxes)
    assert one.places == {"ball": [14, 10, 60, 80], "box": [120, 10, 60, 80]} and one.extra == 0
    two = scored(torch.cat([scene, scene.flip(2)]), pair, [[box(10, "ball")], [box(20, "ball")]])
    assert [picture.places["ball"][0] for picture in two] == [10, 20] and two[0].cp > two[1].cp


def test_the_prompt_is_compared_with_the_whole_picture(scene, pair):
    text = [1.0, 0.0, 0.0]
    (one,) = scored(scene, pair, [box(10)], clip=FixedClip(text), prompt="red")
    mean = scene[0].reshape(-1, 3).mean(dim=0)
    assert one.ti == pytest.approx(float(mean[0] / mean.norm()), abs=1e-3)
    assert scored(scene, pair, [box(10)], clip=FixedClip(text), prompt=" ")[0].ti is None
    with pytest.raises(BestiaryError, match="the CLIP has 2 features and the CLIP vision 3: load both of one model"):
        scored(scene, pair, [box(10)], clip=FixedClip([1.0, 0.0]), prompt="red")


@pytest.mark.parametrize("spread", [0.0, 1e-9, 1e9, float("nan")])
def test_a_text_projection_that_was_not_loaded_is_noticed(spread):
    with pytest.raises(BestiaryError, match="this CLIP has no text projection"):
        text_feature(FixedClip([1.0], spread), "red")


def test_the_drawn_world_needs_no_model():
    rng = np.random.default_rng(0)
    subjects, drawn = None, []
    for name, species in zip(("lark", "piper"), HELD_OUT_SPECIES[:2], strict=True):
        drawing = draw_creature(species, rng)
        drawn.append(drawing.image)
        image, mask = (
            torch.from_numpy(drawing.image.copy())[None] / 255,
            torch.from_numpy(drawing.labels > 0)[None].float(),
        )
        subjects = added(subjects, subjects_of_images(image, mask, name, "", "medium", "ground"))
    picture = torch.from_numpy(np.concatenate(drawn, axis=1))[None] / 255
    twice = torch.from_numpy(np.concatenate([drawn[0], drawn[0]], axis=1))[None] / 255
    both, copied = score_all(torch.cat([picture, twice]), subjects, "", SceneScorer("drawn world"), None, PROGRESS)
    assert both.found == 1 and both.cp > 0.75 and both.extra == 0
    assert (copied.found, copied.extra, copied.places["piper"]) == (0.5, 1, None)
    lines = scores_text([both, copied]).splitlines()
    assert lines[0].endswith("; all found") and "not found: piper; 1 extra" in lines[1]
    report = json.loads(scores_json([both, copied], "two", "drawn world"))
    assert report["mean"]["complete"] == 0.5 and report["mean"]["ti"] is None and len(report["scores"]) == 2
    # where they were put
    (placed,) = score_all(
        picture, subjects, "", SceneScorer("drawn world"), [{"x": 0, "y": 0, "width": 128, "height": 128}], PROGRESS
    )
    assert placed.places == {"lark": [0, 0, 128, 128], "piper": None}


def test_what_is_missing_is_named(scene, pair):
    with pytest.raises(BestiaryError, match="connect Load CLIP Vision to clip_vision, or choose"):
        SceneScorer("clip vision")
    with pytest.raises(BestiaryError, match="a prompt is compared with features of pictures"):
        SceneScorer("drawn world", None, FixedClip([1.0]))
    with pytest.raises(BestiaryError, match="judge 'eye' is not one of"):
        SceneScorer("eye")
    with pytest.raises(BestiaryError, match="no boxes: connect those of a detection node"):
        scored(scene, pair, None)
    with pytest.raises(BestiaryError, match="2 lists of boxes for 1 pictures"):
        scored(scene, pair, [[box(1)], [box(2)]])
    for broken in (["x"], 3, [[box(1), "y"]]):
        with pytest.raises(BestiaryError, match="connect boxes with x, y, width and height"):
            scored(scene, pair, broken)
    with pytest.raises(BestiaryError, match="has no numbers x, y, width and height"):
        scored(scene, pair, [{"x": 1}])


def test_the_menu_is_what_the_scorer_knows():
    from bestiary.nodes.scenes.scene_set_nodes import BestiaryScoreScene

    (menu,) = [one.options for one in BestiaryScoreScene.define_schema().inputs if one.id == "judge"]
    assert menu == JUDGES


def test_further_pictures_of_a_subject_count_too(scene, pair):
    other = dataclasses.replace(pair.subjects[0], cutout=pair.subjects[1].cutout)
    (one,) = scored(scene, pair, [box(10, "ball"), box(120, "box")])
    (mixed,) = scored(scene, dataclasses.replace(pair, others=(other,)), [box(10, "ball"), box(120, "box")])
    assert mixed.likeness["ball"] < one.likeness["ball"] and mixed.likeness["box"] == one.likeness["box"]
