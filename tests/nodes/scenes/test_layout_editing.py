"""Tests of layouts changed by hand: edits as JSON, and what the editor is given."""

from __future__ import annotations

import base64
import io
import json

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.host.socket_types import SceneLayouts
from bestiary.nodes.scenes.layout_editing import THUMBNAIL, edited, shown_layouts
from bestiary.scenes.scene_layout import Placement, SceneLayout
from PIL import Image


@pytest.fixture
def layouts() -> SceneLayouts:
    placements = (Placement("ball", 20, 40, 55, 33), Placement("box", 70, 50, 24, 30, z=1))
    return SceneLayouts((SceneLayout(128, 96, placements), SceneLayout(128, 96, placements, seed=1)), {})


def test_without_edits_layouts_stay_as_they_are(pair, layouts):
    assert edited(layouts, pair, " ") == edited(layouts, pair, "{}") == layouts


def test_an_edit_changes_what_it_names_and_keeps_the_shape(pair, layouts):
    text = json.dumps({"1": {"box": {"x": 5.5, "width": 48, "turn": 15, "flip": True, "z": -1}}})
    first, second = edited(layouts, pair, text).layouts
    assert first == layouts.layouts[0] and second.made_by == "edited"
    assert second.placed("box") == Placement("box", 5.5, 50, 48, 60, 15, True, -1)
    assert second.placed("ball") == layouts.layouts[1].placed("ball")


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ("{", "edits are JSON, and this cannot be read"),
        ("[1]", 'edits must be {"0"'),
        ('{"0": {"box": 3}}', 'edits must be {"0"'),
        ('{"2": {}}', "edits of layout '2': there are 2 layouts, from 0"),
        ('{"0": {"dog": {}}}', "edits name 'dog'; the layout has 'ball', 'box'"),
        (
            '{"0": {"box": {"height": 3}}}',
            "edits of 'box' change 'height', which is not one of x, y, width, turn, flip, z",
        ),
        ('{"0": {"box": {"turn": 200}}}', "turn 200 must be -180 to 180 degrees"),
        ('{"0": {"box": {"x": "left"}}}', "are finite numbers"),
        ('{"0": {"box": {"width": 0}}}', "width and height must be above 0"),
        ('{"0": {"box": {"flip": 1}}}', "flip is true or false"),
    ],
)
def test_edits_that_cannot_be_are_refused(pair, layouts, edits, message):
    with pytest.raises(BestiaryError, match=message):
        edited(layouts, pair, edits)


def test_the_editor_gets_every_layout_and_a_picture_of_each_subject(pair, layouts):
    shown = shown_layouts(layouts, pair)
    assert (shown["width"], shown["height"], len(shown["layouts"])) == (128, 96, 2)
    assert shown["layouts"][0][1] == {
        "subject": "box", "x": 70, "y": 50, "width": 24, "height": 30, "turn": 0.0, "flip": False, "z": 1,
    }  # fmt: skip
    kind, data = shown["subjects"]["box"]["picture"].split(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/png;base64" and picture.mode == "RGBA" and max(picture.size) <= THUMBNAIL
    assert shown["subjects"]["box"]["aspect"] == pytest.approx(0.8)
