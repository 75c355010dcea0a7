"""Layouts by chance: what they promise, on many random problems, and what cannot be laid out."""

import itertools
import random
import socket
from dataclasses import replace

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.layout_measures import box_coverage, box_occlusion, is_inside, painted, turned_box
from bestiary.scenes.layout_request import LayoutRequest
from bestiary.scenes.layout_solver import solve_in_one_row, solve_layout, solve_measured
from bestiary.scenes.subject import Subject
from bestiary.scenes.subject_sizes import relative_sizes

CANVASES = [(768, 768), (1024, 576), (576, 1024), (512, 256), (256, 512)]


def problem(make_subject, seed: int) -> tuple[list[Subject], LayoutRequest]:
    """1 to 8 subjects: 80 % on the ground, 10 % in the sky, 10 % on another."""
    chance = random.Random(seed)
    subjects: list[Subject] = []
    for index in range(1 + seed % 8):
        draw = chance.random()
        support = "ground" if draw < 0.8 else "sky" if draw < 0.9 or not subjects else f"on:s{chance.randrange(index)}"
        aspect = 0.35 * 8 ** chance.random()
        subjects.append(make_subject(f"s{index}", aspect, size=0.4 + 0.6 * chance.random(), support=support))
    width, height = CANVASES[seed % 5]
    return subjects, LayoutRequest(width, height, seed)


@pytest.mark.parametrize("turn", [0.0, 20.0])
def test_random_problems_keep_every_promise(make_subject, turn: float) -> None:
    for seed in range(250):
        subjects, request = problem(make_subject, seed)
        request = replace(request, turn=turn)
        layout = solve_layout(subjects, request)
        assert is_inside(layout), seed
        assert box_occlusion(layout) <= 0.15 + 1e-6 and box_coverage(layout) <= 0.22 + 1e-6, seed
        for subject, placement in zip(subjects, layout.placements, strict=True):
            assert placement.subject == subject.name and placement.width / placement.height == pytest.approx(
                subject.aspect
            )
            foot = turned_box(placement)[3] / request.height
            if subject.support == "ground":
                assert 0.62 - 1e-6 <= foot <= 0.97 + 1e-6, seed
            if subject.support == "sky":
                assert foot <= 0.5 + 1e-6, seed


def test_same_seed_same_bytes_and_other_seeds_other_layouts(make_subject) -> None:
    for start in range(8):
        subjects, request = problem(make_subject, start)
        texts = [solve_layout(subjects, replace(request, seed=seed)).to_json() for seed in range(20)]
        assert texts == [solve_layout(subjects, replace(request, seed=seed)).to_json() for seed in range(20)]
        assert len(set(texts)) == 20


@pytest.mark.parametrize("anchor", [0.05, 1.0])
def test_ratios_without_perspective_are_exact(make_subject, anchor: float) -> None:
    """Also where the largest fills the canvas."""
    subjects = [make_subject("a", 2.5, size=1), make_subject("b", 0.5, size=0.8), make_subject("c", size=0.6)]
    for seed in range(100):
        request = LayoutRequest(512, 512, seed, coverage=anchor, perspective=0)
        longest = [max(one.width, one.height) for one in solve_layout(subjects, request).placements]
        assert [side / longest[0] for side in longest] == pytest.approx([1, 0.8, 0.6], abs=1e-12)


def test_perspective_makes_far_subjects_smaller(make_subject) -> None:
    subjects = [make_subject(name, size=1) for name in "abcd"]
    rows_seen = set()
    for seed in range(40):
        layout = solve_layout(subjects, LayoutRequest(800, 600, seed, perspective=0.5))
        # of each: what it would measure on the near side of the ground
        near_widths = [one.width / (1 - 0.5 * (0.97 - one.foot / 600) / 0.35) for one in layout.placements]
        assert near_widths == pytest.approx([near_widths[0]] * 4)
        rows_seen.add(len({round(one.foot, 6) for one in layout.placements}))
    assert rows_seen >= {1, 2}


def test_painted_in_the_order_of_feet(make_subject) -> None:
    subjects = [make_subject(name) for name in "abcde"] + [make_subject("bird", support="sky", size=0.3)]
    for seed in range(20):
        layout = solve_layout(subjects, LayoutRequest(640, 480, seed))
        feet = [one.foot for one in painted(layout)]
        assert feet == pytest.approx(sorted(feet)) and [one.z for one in painted(layout)] == list(range(6))


def test_each_name_has_its_own_box_whatever_the_order(make_subject) -> None:
    lion, cat = make_subject("lion", 1.6, size=1), make_subject("cat", 1.2, size=0.5)
    for order in ([lion, cat], [cat, lion]):
        layout = solve_layout(order, LayoutRequest(512, 512, 1, perspective=0))
        assert layout.placed("lion").width == pytest.approx(2 * layout.placed("cat").width)
        assert layout.placed("cat").width / layout.placed("cat").height == pytest.approx(cat.aspect)


def test_what_stands_on_another_touches_its_top_side(make_subject) -> None:
    subjects = [
        make_subject("cat", support="on:Table", size=0.3),
        make_subject("cup", support="on:table", size=0.2),
        make_subject("fly", support="on:cat", size=0.05),
        make_subject("table", 2.5, size=1),
    ]
    for seed in range(20):
        layout = solve_layout(subjects, LayoutRequest(512, 512, seed, perspective=0, turn=10))
        cat, cup, fly, table = layout.placements
        for upon, under in ((cat, table), (cup, table), (fly, cat)):
            left, _, right, foot = turned_box(upon)
            assert foot == pytest.approx(under.y) and upon.z > under.z
            assert left >= under.x - 1e-6 and right <= under.x + under.width + 1e-6
        assert table.turn == 0 and cat.turn == 0
        assert box_occlusion(layout) < 1e-6


def horse() -> Subject:
    """Its head, at the left, is twice as high as its back."""
    cutout = np.full((40, 80, 4), 255, np.uint8)
    cutout[:10, 20:, 3] = 0
    return Subject("horse", cutout, size=1)


@pytest.mark.parametrize("flip", [False, True])
def test_a_bird_on_a_horse_stands_on_its_back(make_subject, flip: bool) -> None:
    bird = make_subject("bird", support="on:horse", size=0.15)
    on_back = 0
    for seed in range(40):
        layout = solve_layout([horse(), bird], LayoutRequest(512, 512, seed, flip=flip, perspective=0))
        below, above = layout.placements
        place = (above.x - below.x) / below.width, (above.x + above.width - below.x) / below.width
        if below.flip:
            place = 1 - place[1], 1 - place[0]
        depth = (above.foot - below.y) / below.height
        # the head takes the left quarter; edges are rounded to pixels of the cut-out
        if place[0] > 0.27:
            assert depth == pytest.approx(0.25)
            on_back += 1
        elif place[0] < 0.23:
            assert depth == pytest.approx(0, abs=1e-9)
        assert box_occlusion(layout) <= 0.15
    assert on_back > 10


def test_nothing_is_hidden_where_nothing_may_be(make_subject) -> None:
    subjects = [horse(), make_subject("bird", support="on:horse", size=0.5), *(make_subject(name) for name in "abcdef")]
    for seed in range(30):
        request = LayoutRequest(300, 200, seed, coverage=1, max_occlusion=0)
        assert box_occlusion(solve_layout(subjects, request)) <= 1e-6
        assert box_occlusion(solve_in_one_row(subjects, request)) <= 1e-6


def test_one_row_cannot_overlap_and_is_on_the_canvas(make_subject) -> None:
    for seed in range(40):
        subjects, request = problem(make_subject, seed)
        layout = solve_in_one_row(subjects, request)
        assert is_inside(layout) and box_occlusion(layout) <= 0.15
        grounded = [
            one for subject, one in zip(subjects, layout.placements, strict=True) if subject.support == "ground"
        ]
        for a, b in itertools.combinations(grounded, 2):
            assert a.x + a.width <= b.x + 1e-6 or b.x + b.width <= a.x + 1e-6


def test_three_on_top_of_each_other_keep_the_limit_in_the_last_row() -> None:
    def ring(name: str, **fields: object) -> Subject:
        cutout = np.full((40, 40, 4), 255, np.uint8)
        cutout[:20, 1:39, 3] = 0
        cutout[:, :1, 3] = cutout[:, 39:, 3] = 0
        return Subject(name, cutout, size=1, **fields)

    tower = [ring("a"), ring("b", support="on:a"), ring("c", support="on:b"), ring("d", support="on:c")]
    for seed in range(10):
        assert box_occlusion(solve_layout(tower, LayoutRequest(256, 256, seed, max_occlusion=0.1))) <= 0.1 + 1e-6


def test_flips_only_where_asked(make_subject) -> None:
    subjects = [make_subject(name) for name in "abcdef"]
    assert not any(one.flip for one in solve_layout(subjects, LayoutRequest(512, 512, flip=False)).placements)
    flips = {one.flip for one in solve_layout(subjects, LayoutRequest(512, 512)).placements}
    assert flips == {False, True}


def test_any_may_be_anywhere(make_subject) -> None:
    layouts = [solve_layout([make_subject("a", support="any")], LayoutRequest(512, 512, seed)) for seed in range(40)]
    feet = [layout.placements[0].foot / 512 for layout in layouts]
    assert min(feet) < 0.6 and max(feet) > 0.9


# what is measured


def test_a_layout_over_the_measured_limit_is_solved_with_the_next_seed(make_subject) -> None:
    subjects = [make_subject("a"), make_subject("b")]
    answers = iter([0.5, 0.16, 0.15])
    layout = solve_measured(subjects, LayoutRequest(256, 256, 7), lambda layout: next(answers))
    assert layout == solve_layout(subjects, LayoutRequest(256, 256, 9))


def test_at_last_one_row_is_measured(make_subject) -> None:
    subjects = [make_subject("a"), make_subject("b")]
    row = solve_in_one_row(subjects, LayoutRequest(256, 256, 7))
    assert (
        solve_measured(subjects, LayoutRequest(256, 256, 7), lambda layout: 0.0 if layout == row else 0.9, tries=3)
        == row
    )
    with pytest.raises(
        BestiaryError, match=r"no layout of 4 kept max_occlusion 0.15: the best hides 0.900 of a subject"
    ):
        solve_measured(subjects, LayoutRequest(256, 256, 7), lambda layout: 0.9, tries=3)


# what cannot be


def test_no_subject() -> None:
    with pytest.raises(BestiaryError, match="a layout needs at least one subject, got none"):
        solve_layout([], LayoutRequest(256, 256))


def test_too_many_subjects(make_subject) -> None:
    with pytest.raises(BestiaryError, match="65 subjects are too many for one scene: at most 64"):
        solve_layout([make_subject(f"s{number}") for number in range(65)], LayoutRequest(256, 256))


@pytest.mark.parametrize("second", ["cat 1", "Cat_1"])
def test_the_same_name_twice(make_subject, second: str) -> None:
    with pytest.raises(BestiaryError, match=f"same name: 'cat 1' and '{second}'; call the second '{second} 2'"):
        solve_layout([make_subject("cat 1"), make_subject(second)], LayoutRequest(256, 256))


def test_on_a_name_that_is_not_there(make_subject) -> None:
    subjects = [make_subject("cat", support="on:tabel"), make_subject("table")]
    with pytest.raises(
        BestiaryError, match="'cat' stands on 'tabel', and no subject is called so; there are 'table', 'cat'"
    ):
        solve_layout(subjects, LayoutRequest(256, 256))


def test_on_each_other_in_a_circle(make_subject) -> None:
    subjects = [make_subject("a", support="on:b"), make_subject("b", support="on:c"), make_subject("c", support="on:b")]
    with pytest.raises(BestiaryError, match="in a circle: b on c on b; let one of them stand on the ground"):
        solve_layout(subjects, LayoutRequest(256, 256))
    with pytest.raises(BestiaryError, match="in a circle: a on a"):
        solve_layout([make_subject("a", support="on:a")], LayoutRequest(256, 256))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"coverage": 1e-6}, "the limit is coverage 1e-06: raise it"),
        ({"width": 2}, "the limit is the width of the canvas, 2 pixels"),
        ({"ground": (0.0, 0.0)}, r"the limit is the room above the ground 0 \.\.\. 0: lower the ground"),
    ],
)
def test_an_impossible_layout_says_which_limit(make_subject, fields: dict[str, object], words: str) -> None:
    subjects = [make_subject(f"s{number}") for number in range(8)]
    with pytest.raises(BestiaryError, match=r"no layout: subject 's\d' would be .* pixels on a canvas.*" + words):
        solve_layout(subjects, LayoutRequest(**{"width": 64, "height": 640, **fields}))


def test_a_sky_that_is_too_low(make_subject) -> None:
    with pytest.raises(BestiaryError, match="the limit is the height of the canvas, 2 pixels"):
        solve_layout([make_subject("a", 0.05, support="sky")], LayoutRequest(640, 2))


def test_a_subject_of_one_pixel() -> None:
    layout = solve_layout([Subject("dot", np.full((1, 1, 4), 255, np.uint8))], LayoutRequest(256, 256))
    assert is_inside(layout) and layout.placements[0].width == pytest.approx(layout.placements[0].height)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 0}, "width 0 must be a whole number of pixels from 1 to 8192"),
        ({"height": 9000}, "height 9000 must be"),
        ({"height": 5.5}, "height 5.5 must be"),
        ({"seed": -1}, "seed -1 must be a whole number from 0"),
        ({"coverage": 0}, "coverage 0 must be above 0, at most 1"),
        ({"coverage": float("nan")}, "coverage nan must be"),
        ({"max_occlusion": 1.5}, "max_occlusion 1.5 must be 0 to 1"),
        ({"ground": (0.9, 0.6)}, r"ground \(0.9, 0.6\) must be two shares"),
        ({"perspective": 1}, "perspective 1 must be 0 to below 1"),
        ({"turn": 400}, "turn 400 must be 0 to 180 degrees"),
    ],
)
def test_requests_out_of_range(fields: dict[str, object], words: str) -> None:
    with pytest.raises(BestiaryError, match=words):
        LayoutRequest(**{"width": 256, "height": 256, **fields})


def test_no_socket_is_opened(make_subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert solve_layout([make_subject("a")], LayoutRequest(256, 256)).made_by == "solver"


def test_sizes_come_from_the_subjects_words(make_subject) -> None:
    subjects = [make_subject("mouse"), make_subject("tom", words="a striped horse")]
    layout = solve_layout(subjects, LayoutRequest(256, 256, perspective=0))
    small, large = relative_sizes(subjects).sizes
    assert layout.placed("mouse").width / layout.placed("tom").width == pytest.approx(small / large)
