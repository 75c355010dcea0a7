"""Presets as data, and stages as people write them."""

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.attribute_presets import (
    DEFAULT_PRESETS,
    checked_presets,
    format_presets,
    parse_presets,
    select_stages,
    stages_in_ranges,
    stages_text,
)
from bestiary.concepts.spectrum.stage_bounds import StageBounds

TEN = StageBounds.equal(10)


def test_presets_are_the_stages_of_the_authors_examples() -> None:
    # their list index k counts from the end: layout k = 9, content k = 0..7, material k = 0..4
    assert select_stages("layout", TEN) == tuple(9 - k for k in (9,))
    assert select_stages("content", TEN) == tuple(sorted(9 - k for k in range(8)))
    assert select_stages("material", TEN) == tuple(sorted(9 - k for k in range(5)))


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("1", (0,)),
        ("3-5", (2, 3, 4)),
        ("10, 1", (0, 9)),
        (" Layout ,2 - 3", (0, 1, 2)),
        ("0%-50%", (0, 1, 2, 3, 4)),
        # the middle of stage 1 is 0.04999... in floating point
        ("5%-15%", (0, 1)),
        ("46-100%", (5, 6, 7, 8, 9)),
        ("material,layout", (0, 5, 6, 7, 8, 9)),
    ],
)
def test_selections(text: str, stages: tuple[int, ...]) -> None:
    assert select_stages(text, TEN) == stages


def test_presets_follow_another_number_of_stages() -> None:
    assert select_stages("layout", StageBounds.equal(20)) == (0, 1)
    assert select_stages("content", StageBounds.equal(5)) == (1, 2, 3, 4)
    # one stage is the middle of everything
    assert select_stages("content", StageBounds.equal(1)) == (0,)
    assert select_stages("layout", StageBounds.equal(1)) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("11", "stage '11' does not exist: there are stages 1 to 10"),
        ("0", "stage '0' does not exist"),
        ("5-3", "stage '5-3' does not exist"),
        ("60%-50%", "write a range with start before end, within 0% to 100%"),
        ("0%-150%", "within 0% to 100%"),
        ("colour", "unknown stages 'colour': choose 'layout', 'content', 'material', 'style'"),
        ("materal", "unknown stages 'materal': choose 'material'"),
        ("", "unknown stages ''"),
    ],
)
def test_selections_that_name_nothing(text: str, message: str) -> None:
    with pytest.raises(BestiaryError, match=message):
        select_stages(text, TEN)


def test_a_preset_may_be_called_like_a_number() -> None:
    assert select_stages("3", TEN, {"3": ((0.0, 0.1),)}) == (0,)


def test_stages_as_text_read_back() -> None:
    assert stages_text((0, 2, 3, 4)) == "1, 3-5"
    assert stages_text(()) == ""
    assert select_stages(stages_text((0, 1, 5, 9)), TEN) == (0, 1, 5, 9)


def test_presets_as_lines() -> None:
    text = "# mine\nlayout: 0%-10%, 20-30%\n\ncontent : 3-5\n"
    presets = parse_presets(text)
    assert presets["layout"] == ((0.0, 0.1), (0.2, 0.3))
    assert stages_in_ranges(presets["content"], TEN) == (2, 3, 4)
    again = parse_presets(format_presets(presets))
    assert {name: stages_in_ranges(r, TEN) for name, r in again.items()} == {"layout": (0, 2), "content": (2, 3, 4)}
    assert parse_presets(format_presets(DEFAULT_PRESETS)) == dict(DEFAULT_PRESETS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layout 1", "line 1 of the presets, 'layout 1': write one attribute per line"),
        ("a: 1\n: 2", "line 2 of the presets"),
        ("a: 1\na: 2", "line 2 of the presets, 'a: 2'"),
        ("a: layout", "unknown stages 'layout'"),
        (" \n# only a comment", "the presets contain no attribute"),
    ],
)
def test_lines_that_are_no_presets(text: str, message: str) -> None:
    with pytest.raises(BestiaryError, match=message):
        parse_presets(text)


def test_presets_of_a_file_are_checked() -> None:
    assert checked_presets({"a": [[0, 0.5]]}) == {"a": ((0.0, 0.5),)}
    with pytest.raises(BestiaryError, match="attribute presets are broken"):
        checked_presets([1])
    with pytest.raises(BestiaryError, match="attribute presets are broken"):
        checked_presets({"a": [[0.1]]})
    with pytest.raises(BestiaryError, match="preset 'a' has a range that is not increasing within 0 to 1"):
        checked_presets({"a": [[0.5, 0.2]]})
