"""Boxes into layouts and back: names decide, limits hold, and what was done is said."""

import random

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.layout_boxes import boxes_of, layout_from_boxes
from bestiary.scenes.layout_measures import box_occlusion, is_inside
from bestiary.scenes.layout_names import match_names
from bestiary.scenes.layout_request import LayoutRequest
from bestiary.scenes.layout_solver import solve_layout

REQUEST = LayoutRequest(512, 512, 3)


def test_a_solved_layout_comes_back_as_it_was(make_subject) -> None:
    subjects = [make_subject("cat", 1.3), make_subject("dog", 0.6), make_subject("bird", support="on:dog", size=0.3)]
    for seed in range(10):
        layout = solve_layout(subjects, LayoutRequest(512, 384, seed, turn=10))
        fitted = layout_from_boxes(boxes_of(layout), subjects, LayoutRequest(512, 384, seed))
        assert fitted.layout.placements == layout.placements and fitted.notes == () and fitted.layout.made_by == "boxes"
        plain = [box[:5] for box in boxes_of(solve_layout(subjects, LayoutRequest(512, 384, seed, flip=False)))]
        again = layout_from_boxes(plain, subjects, LayoutRequest(512, 384, seed)).layout
        assert again.placements == solve_layout(subjects, LayoutRequest(512, 384, seed, flip=False)).placements


def test_the_cut_out_fits_into_its_box_around_the_same_middle(make_subject) -> None:
    layout, notes = layout_from_boxes([("cat", 100, 100, 200, 300)], [make_subject("cat", 2.0)], REQUEST)
    assert (layout.placements[0].x, layout.placements[0].y) == (100, 200)
    assert (layout.placements[0].width, layout.placements[0].height) == (200, 100) and notes == ()


@pytest.mark.parametrize("order", [("cat", "dog"), ("dog", "cat")])
def test_identities_never_swap(make_subject, order: tuple[str, str]) -> None:
    boxes = {"cat": ("a cat", 10, 300, 100, 100), "dog": ("The Dog", 300, 200, 200, 200)}
    subjects = [make_subject("dog"), make_subject("cat")]
    layout, _ = layout_from_boxes([boxes[name] for name in order], subjects, REQUEST)
    assert layout.placed("cat").x == 10 and layout.placed("dog").x == 300


def test_a_box_off_the_canvas_is_moved_and_keeps_its_size(make_subject) -> None:
    subjects = [make_subject("cat"), make_subject("dog")]
    layout, notes = layout_from_boxes([("cat", -50, 480, 100, 100), ("dog", 300, 100, 150, 150)], subjects, REQUEST)
    assert (layout.placed("cat").x, layout.placed("cat").y, layout.placed("cat").width) == (0, 412, 100)
    assert layout.placed("dog").x == 300 and notes == ("moved onto the canvas",)


def test_boxes_larger_than_the_canvas_are_scaled_together(make_subject) -> None:
    subjects = [make_subject("cat"), make_subject("dog")]
    boxes = [("cat", 0, 0, 1024, 1024), ("dog", 0, 0, 100, 100)]
    layout, notes = layout_from_boxes(boxes, subjects, LayoutRequest(512, 512, max_occlusion=1))
    assert layout.placed("cat").width / layout.placed("dog").width == pytest.approx(10.24)
    assert is_inside(layout) and notes == ("moved onto the canvas, all scaled by 0.5",)


def test_overlaps_move_apart_in_their_order(make_subject) -> None:
    subjects = [make_subject(name) for name in "abc"]
    boxes = [("a", 210, 200, 120, 120), ("b", 200, 200, 120, 120), ("c", 190, 210, 120, 120)]
    layout, notes = layout_from_boxes(boxes, subjects, REQUEST)
    assert box_occlusion(layout) <= 0.15 + 1e-6 and is_inside(layout) and notes == ("overlaps moved apart",)
    assert [one.width for one in layout.placements] == [120] * 3
    assert layout.placed("c").x < layout.placed("b").x < layout.placed("a").x
    assert layout.placed("b").x == pytest.approx(200, abs=2) and layout.placed("b").y == 200


def test_what_stands_on_another_is_put_on_top_of_it(make_subject) -> None:
    subjects = [make_subject("cat", support="on:sofa"), make_subject("sofa", 2.0)]
    layout, notes = layout_from_boxes([("cat", 200, 300, 100, 100), ("sofa", 100, 250, 300, 150)], subjects, REQUEST)
    cat, sofa = layout.placements
    assert cat.foot == pytest.approx(sofa.y) and cat.x == 200 and cat.z > sofa.z
    assert notes == ("what stands on another was put on its top",)


def test_missing_surplus_and_double_boxes_are_said(make_subject) -> None:
    subjects = [make_subject("cat"), make_subject("dog"), make_subject("bird", support="sky")]
    boxes = [("cat", 10, 300, 90, 90), ("cat", 300, 300, 90, 90), ("horse", 0, 0, 9, 9), ("dog", 200, 300, 0, 50)]
    layout, notes = layout_from_boxes(boxes, subjects, REQUEST)
    assert [one.subject for one in layout.placements] == ["cat", "dog", "bird"]
    assert layout.placed("cat").x < 50 and layout.placed("cat").y == 300
    assert is_inside(layout) and box_occlusion(layout) <= 0.15 + 1e-6
    assert notes[:5] == (
        "the box of 'dog' is empty or no number: left out",
        "'cat' again, for a subject that has its box: left out",
        "'horse' is not a subject of the scene: left out",
        "'dog' had no usable box: added",
        "'bird' had no usable box: added",
    )


def test_whatever_the_boxes_the_limits_hold(make_subject) -> None:
    for seed in range(150):
        chance = random.Random(seed)
        subjects = [make_subject(f"s{index}", 0.35 * 8 ** chance.random()) for index in range(1 + seed % 6)]
        if len(subjects) > 2:
            subjects[1] = make_subject("s1", support="on:s0")
        boxes = [
            (one.name, *(chance.uniform(-200, 700) for _ in range(2)), *(chance.uniform(5, 600) for _ in range(2)))
            for one in subjects
            if chance.random() < 0.9 or one is subjects[0]
        ]
        layout, notes = layout_from_boxes(boxes, subjects, LayoutRequest(512, 320, seed))
        assert is_inside(layout) and box_occlusion(layout) <= 0.15 + 1e-6, seed
        for subject, one in zip(subjects, layout.placements, strict=True):
            assert one.subject == subject.name and one.width / one.height == pytest.approx(subject.aspect, rel=2e-3)
        assert layout_from_boxes(boxes, subjects, LayoutRequest(512, 320, seed)) == (layout, notes)


def test_boxes_of_nobody(make_subject) -> None:
    with pytest.raises(
        BestiaryError, match="no box of the layout has the name of a subject: found 'horse'; wanted 'cat'"
    ):
        layout_from_boxes([("horse", 0, 0, 9, 9)], [make_subject("cat")], REQUEST)
    with pytest.raises(BestiaryError, match="found none at all; wanted 'cat'"):
        layout_from_boxes([], [make_subject("cat")], REQUEST)
    with pytest.raises(BestiaryError, match="1001 boxes are too many for a layout: at most 1000"):
        layout_from_boxes([("cat", 0, 0, 9, 9)] * 1001, [make_subject("cat")], REQUEST)


def test_names_are_matched_from_exact_to_vague(make_subject) -> None:
    subjects = [make_subject("cat 1"), make_subject("cat 2"), make_subject("rex", words="a <head:beagle> dog")]
    matched = match_names(["Cat_2", "the dogs", "cat 1"], subjects)
    assert matched.places == {0: 1, 1: 2, 2: 0} and matched.notes == ()
    # a vague name does not take what an exact one means
    assert match_names(["a big dog", "rex"], subjects).places == {1: 2}
    assert match_names(["a big dog"], subjects).places == {0: 2}
    assert match_names(["cat"], subjects).notes == ("'cat' could be several subjects: taken as 'cat 1'",)
    assert match_names(["cat 3", "rex 2"], subjects).places == {1: 2}
    assert match_names([""], subjects).places == {}


def test_names_that_mean_two_alike_are_said(make_subject) -> None:
    subjects = [make_subject("tom", words="cat"), make_subject("felix", words="a cat")]
    matched = match_names(["a cat", "cats", "the cat"], subjects)
    assert matched.places == {0: 0, 1: 1}
    assert matched.notes[0] == "'a cat' could be several subjects: taken as 'tom'"
    assert matched.notes[2] == "'the cat' again, for a subject that has its box: left out"
