"""Comparing and listing names."""

import pytest
from bestiary.concepts.name_search import (
    choices_text,
    number_ranges,
    plain_name,
    same_name,
    same_names,
    shown_name,
    typed_number,
)


@pytest.mark.parametrize("typed", ["Blue Jay", "blue_jay", "  blue-jay ", "BLUE \t JAY"])
def test_spelling_variants_are_one_name(typed: str) -> None:
    assert plain_name(typed) == "blue jay"


def test_the_closest_names_come_first_and_the_rest_is_counted() -> None:
    names = [f"kind {letter}" for letter in "abcdefghijklmnop"] + ["Cardinal"]
    ours = choices_text("cardnal", names)
    assert ours.startswith("'Cardinal', 'kind a'")
    assert ours.endswith("and 5 more")
    assert choices_text("x", ["only"]) == "'only'"


def test_long_and_odd_names_are_shortened_and_escaped() -> None:
    assert len(shown_name("x" * 500)) == 62
    assert shown_name("a\nb") == "'a\\nb'"


def test_numbers_are_shown_as_ranges() -> None:
    assert number_ranges([3, 1, 2, 7, 9, 10]) == "1..3, 7, 9..10"
    assert number_ranges([]) == ""
    assert number_ranges(range(0, 100, 2)).endswith("22, ...")


def test_a_name_spelt_exactly_so_comes_before_those_that_are_alike() -> None:
    names = ["head", "left wing", "left_wing", "Left Wing"]
    assert same_names("left_wing ", names) == [2] and same_names("Left Wing", names) == [3]
    assert same_names("LEFT-WING", names) == [1, 2, 3] and same_names("tail", names) == []
    assert same_name("left-wing", names) == "left wing" and same_name("LEFT_WING", names[2:]) == "left_wing"
    assert same_name("tail", names) is None


def test_a_number_is_one_only_where_nothing_else_was_typed() -> None:
    assert [typed_number(text) for text in ("7", " 017 ", "-3", "+2")] == [7, 17, -3, 2]
    assert [typed_number(text) for text in ("", "7a", "1.5", "²", "٣", "1234567890", "0x1")] == [None] * 7
