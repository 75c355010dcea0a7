"""Tests of layouts in a graph: solved as on the command line, read from text and boxes, given out as boxes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.host.graph_progress import GraphProgress
from bestiary.nodes.host.socket_types import SceneSubjects
from bestiary.nodes.scenes.layout_solving import core_boxes, draw_layouts, layouts_text, read_boxes, read_text, solve
from bestiary.scenes.layout_request import LayoutRequest
from bestiary.scenes.layout_text import layout_request
from bestiary.scenes.scene_layout import SceneLayout

REQUEST = LayoutRequest(256, 192, seed=3, coverage=0.3)


@pytest.fixture
def solved(pair):
    return solve(pair, REQUEST, 3, GraphProgress(None))


def test_every_layout_has_the_next_seed_and_the_same_seed_gives_the_same_bytes(pair, solved):
    layouts, scenes = solved
    assert [layout.seed for layout in layouts.layouts] == [3, 4, 5]
    again, _ = solve(pair, dataclasses.replace(REQUEST, seed=4), 1, GraphProgress(None))
    assert again.layouts[0].to_json() == layouts.layouts[1].to_json()
    assert layouts.called == {"ball": "blue ball", "box": "box"}
    assert max(max(scene.occlusion) for scene in scenes) <= REQUEST.max_occlusion


def test_the_json_of_one_layout_is_its_file_and_of_several_a_list(solved):
    layouts = solved[0].layouts
    assert SceneLayout.from_json(layouts_text(layouts[:1])) == layouts[0]
    assert [SceneLayout.from_json(json.dumps(one)) for one in json.loads(layouts_text(layouts))] == list(layouts)


def test_previews_show_the_subjects_and_their_boxes(solved):
    pictures = (draw_layouts(solved[1]) * 255).round().numpy()
    assert pictures.shape == (3, 384, 512, 3)
    blue = (pictures[0] == (40, 90, 200)).all(-1)
    placed = solved[0].layouts[0].placed("ball")
    rows, columns = np.flatnonzero(blue.any(1)), np.flatnonzero(blue.any(0))
    assert 2 * placed.y - 4 <= rows[0] and rows[-1] <= 2 * placed.foot + 4
    assert 2 * placed.x - 4 <= columns[0] and columns[-1] <= 2 * (placed.x + placed.width) + 4


def test_an_answer_to_the_request_is_read_with_its_place(pair):
    assert '"ball"' in layout_request(pair.subjects, "in a garden", 256, 192)
    answer = 'Sure!\n```json\n{"canvas": [256, 192], "scene": "a wide meadow", "objects": [{"id": "box", "box": [150, 90, 48, 60]}, '
    answer += '{"id": "ball", "box": [20, 100, 78, 48]}]}\n```'
    layouts, notes = read_text(answer, pair, REQUEST)
    (layout,) = layouts.layouts
    assert [one.subject for one in layout.placements] == ["ball", "box"] and layout.made_by == "text"
    assert layouts.place == "a wide meadow" and notes == ""
    assert abs(layout.placed("box").x + layout.placed("box").width / 2 - 174) < 1


def test_what_is_missing_is_added_and_said(pair):
    layouts, notes = read_text("ball: [20, 100, 78, 48]", pair, REQUEST)
    assert len(layouts.layouts[0].placements) == 2 and "'box' had no usable box: added" in notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  ", "the text is empty: connect the answer"),
        ("a nice picture", "no box"),
        ("__import__('os').system('touch sentinel')", "."),
    ],
)
def test_texts_without_boxes_are_refused(pair, text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BestiaryError, match=message):
        read_text(text, pair, REQUEST)
    assert list(tmp_path.iterdir()) == []


BOX, BALL = {"x": 150, "y": 90, "width": 48, "height": 60}, {"x": 20, "y": 100, "width": 78, "height": 48}


@pytest.mark.parametrize(
    "boxes",
    [
        [BALL, BOX],
        [[BALL, BOX], [BOX]],
        [{**BOX, "label": "Box"}, {**BALL, "label": "ball"}],
        [{**BOX, "metadata": {"desc": "box"}}, {**BALL, "metadata": {"label": "ball"}}],
    ],
)
def test_boxes_go_to_subjects_by_label_or_by_order(pair, boxes):
    layouts, notes = read_boxes(boxes, pair, REQUEST)
    (layout,) = layouts.layouts
    assert notes == "" and abs(layout.placed("ball").x + layout.placed("ball").width / 2 - 59) < 1
    assert abs(layout.placed("box").x + layout.placed("box").width / 2 - 174) < 1


def test_boxes_given_out_are_read_as_the_same_layout(solved, pair):
    layouts, _ = solved
    boxes = core_boxes(layouts)
    assert [len(one) for one in boxes] == [2, 2, 2] and {"x", "y", "width", "height"} <= boxes[0][0].keys()
    again, _ = read_boxes(boxes, pair, REQUEST)
    for one in layouts.layouts[0].placements:
        other = again.layouts[0].placed(one.subject)
        assert abs(one.x - other.x) <= 1 and abs(one.width - other.width) <= 1.5


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([], "connect boxes with x, y, width and height"),
        ("text", "boxes are 'text'"),
        ([{"x": 1}], "has no numbers x, y, width and height"),
        (
            [{**BOX, "label": "dog"}],
            "no box of the layout has the name of a subject: found 'dog'; wanted 'ball', 'box'",
        ),
    ],
)
def test_boxes_that_cannot_be_are_refused(pair, boxes, message):
    with pytest.raises(BestiaryError, match=message):
        read_boxes(boxes, pair, REQUEST)


def changed(pair, **fields) -> SceneSubjects:
    return SceneSubjects((pair.subjects[0], dataclasses.replace(pair.subjects[1], **fields)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"support": "on:wall"}, "stands on 'wall', and no subject is called so"),
        ({"support": "on:box"}, "in a circle: box on box"),
    ],
)
def test_supporters_that_cannot_be_are_refused(pair, fields, message):
    with pytest.raises(BestiaryError, match=message):
        solve(changed(pair, **fields), REQUEST, 1, GraphProgress(None))


def test_an_impossible_layout_says_which_limit(pair):
    with pytest.raises(BestiaryError, match="the limit is coverage 1e-06"):
        solve(pair, dataclasses.replace(REQUEST, coverage=1e-6), 1, GraphProgress(None))
    with pytest.raises(BestiaryError, match="at least one subject, got none"):
        solve(SceneSubjects(()), REQUEST, 1, GraphProgress(None))
