"""The record of a layout, as JSON and back, and JSON that is none."""

import json

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.layout_request import LayoutRequest
from bestiary.scenes.layout_solver import solve_layout
from bestiary.scenes.scene_layout import Placement, SceneLayout


def changed(**fields: object) -> str:
    """A layout of one cat with other fields; those of the placement begin with `cat_`."""
    cat = {"subject": "cat", "x": 1, "y": 2, "width": 3, "height": 4}
    cat |= {name[4:]: value for name, value in fields.items() if name.startswith("cat_")}
    layout = {"width": 64, "height": 32, "placements": [cat]}
    return json.dumps(layout | {name: value for name, value in fields.items() if not name.startswith("cat_")})


def test_a_round_trip_is_exact(make_subject) -> None:
    subjects = [make_subject("a cat 日本"), make_subject("b", 0.7), make_subject("c", 1.9)]
    for seed in (0, 5, 2**64 - 1):
        layout = solve_layout(subjects, LayoutRequest(700, 500, seed, turn=15))
        assert SceneLayout.from_json(layout.to_json()) == layout
        assert SceneLayout.from_json(layout.to_json()).to_json() == layout.to_json()


def test_what_may_be_left_out() -> None:
    assert SceneLayout.from_json(changed()) == SceneLayout(64, 32, (Placement("cat", 1, 2, 3, 4),))


def test_placements_by_name() -> None:
    layout = SceneLayout.from_json(changed())
    assert layout.placed("cat").foot == 6
    with pytest.raises(KeyError, match="dog"):
        layout.placed("dog")


@pytest.mark.parametrize(
    "text",
    ["", "{", "nothing", "[" * 100_000, '{"a":' * 100_000, "1" * 5000, '{"width": 1e999999999}', "\x00", "\ud800"],
)
def test_text_that_is_no_layout(text: str) -> None:
    with pytest.raises(BestiaryError, match="layout"):
        SceneLayout.from_json(text)


@pytest.mark.parametrize("text", ["1", "null", "[]", "[1]", '"x"', "{}", '{"placements": 3}', '{"placements": [3]}'])
def test_json_that_is_something_else(text: str) -> None:
    with pytest.raises(BestiaryError, match="this JSON is not a layout of a scene: width, height and placements"):
        SceneLayout.from_json(text)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"surplus": 1}, "is not a layout"),
        ({"cat_surplus": 1}, "is not a layout"),
        ({"__class__": "x"}, "is not a layout"),
        ({"width": 0}, "1 to 8192 pixels wide and high, not 0 x 32"),
        ({"height": 10**30}, "1 to 8192 pixels"),
        ({"width": "64"}, "are whole numbers"),
        ({"width": True}, "are whole numbers"),
        ({"seed": -1}, "seed of a layout is 0 to 18446744073709551615"),
        ({"seed": None}, "are whole numbers"),
        ({"made_by": ["x"]}, r"made_by of a layout is text, not \['x'\]"),
        ({"cat_z": 0.5}, "are whole numbers"),
        ({"cat_z": 10**400}, "z is -2147483648 to"),
        ({"cat_x": float("nan")}, "subject 'cat' of the layout: x, y, width, height and turn are finite"),
        ({"cat_x": 10**400}, "finite numbers"),
        ({"cat_y": float("-inf")}, "finite numbers"),
        ({"cat_y": "2"}, "finite numbers"),
        ({"cat_x": False}, "finite numbers"),
        ({"cat_width": 0}, "width and height must be above 0"),
        ({"cat_turn": 181}, "turn 181 must be -180 to 180 degrees"),
        ({"cat_flip": 1}, "flip is true or false"),
        ({"cat_subject": ["cat"]}, "names every subject once"),
        ({"placements": [json.loads(changed())["placements"][0]] * 2}, "names every subject once"),
    ],
)
def test_fields_that_cannot_be(fields: dict[str, object], words: str) -> None:
    with pytest.raises(BestiaryError, match=words):
        SceneLayout.from_json(changed(**fields))


def test_a_text_that_is_too_long() -> None:
    with pytest.raises(BestiaryError, match="a layout of 1000001 characters is longer than 1000000"):
        SceneLayout.from_json(" " * 1_000_001)
