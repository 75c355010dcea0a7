from collections import Counter
from itertools import combinations

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.scene_layout import Placement, SceneLayout
from bestiary.scenes.set_plan import evaluation_sources, mirrored, ordered, plan_scenes


def test_subjects_pairs_sides_pictures_and_places_are_used_equally_often():
    pictures = {"cat": 3, "dog": 2, "owl": 1, "fox": 4}
    plan = plan_scenes(pictures, 48, places=4, seed=3)
    subjects = Counter(name for scene in plan for name in scene.subjects)
    pairs = Counter(frozenset(scene.subjects) for scene in plan)
    sides = Counter(scene.subjects for scene in plan)
    places = Counter(scene.place for scene in plan)
    assert set(subjects.values()) == {24} and set(pairs.values()) == {8} and len(pairs) == 6
    assert max(sides.values()) - min(sides.values()) <= 1 and len(sides) == 12
    assert set(places.values()) == {12}
    shown = Counter((name, shown) for scene in plan for name, shown in zip(scene.subjects, scene.pictures, strict=True))
    for name, count in pictures.items():
        numbers = [shown[name, picture] for picture in range(count)]
        assert max(numbers) - min(numbers) <= 1 and sum(numbers) == 24
    there = Counter((name, scene.place) for scene in plan for name in scene.subjects)
    assert max(there.values()) - min(there.values()) <= 3


def test_plans_depend_on_the_seed_and_longer_ones_begin_alike():
    pictures = dict.fromkeys("abcde", 2)
    assert plan_scenes(pictures, 8, seed=1) == plan_scenes(pictures, 20, seed=1)[:8] != plan_scenes(pictures, 8, seed=2)
    assert [scene.stem for scene in plan_scenes(pictures, 2)] == ["000001", "000002"]


def test_sizes_are_taken_in_turn_and_many_subjects_are_no_trouble():
    plan = plan_scenes({f"s{number}": 1 for number in range(30)}, 12, per_scene=(1, 3, 6))
    assert [len(scene.subjects) for scene in plan] == [1, 3, 6] * 4
    assert all(len(set(scene.subjects)) == len(scene.subjects) for scene in plan)


def test_evaluation_keeps_photographs_apart():
    sources = {"cat": ["a", "b", "c", "d"], "dog": ["d", "e"], "owl": ["f"]}
    for seed in range(20):
        kept = evaluation_sources(sources, 0.25, seed)
        assert kept == evaluation_sources(sources, 0.25, seed)
        assert kept and all(set(own) - kept for own in sources.values()) and "f" not in kept
    assert evaluation_sources(sources, 0) == frozenset()
    assert len(evaluation_sources({"cat": [str(number) for number in range(10)]}, 0.3)) == 3
    # one that others keep whole gets a photograph back
    assert len(evaluation_sources({"a": ["x", "y"], "b": ["x", "z"], "c": ["y", "z"]}, 0.5)) <= 2


def test_layouts_are_mirrored_where_that_gives_the_order():
    layout = SceneLayout(
        100, 80, (Placement("a", 10, 0, 20, 20, turn=5), Placement("b", 60, 10, 30, 20), Placement("c", 40, 10, 9, 9))
    )
    assert ordered(layout, ["a", "c", "b"]) is layout
    other = ordered(layout, ["b", "c", "a"])
    assert other == mirrored(layout) and mirrored(other) == layout
    assert other.placed("a") == Placement("a", 70, 0, 20, 20, turn=-5)
    assert [p.subject for p in sorted(other.placements, key=lambda p: p.x)] == ["b", "c", "a"]
    for one, two in combinations("ab", 2):
        assert ordered(layout, [two, one]) != layout


@pytest.mark.parametrize(
    ("pictures", "per_scene", "text"),
    [
        ({"a": 1}, (2,), "scenes of 2 subjects cannot be made of 1"),
        ({"a": 1, "b": 0}, (1,), "subject 'b' has no picture"),
        ({"a": 1}, (), "scenes of no subjects"),
    ],
)
def test_what_cannot_be_planned(pictures, per_scene, text):
    with pytest.raises(BestiaryError, match=text):
        plan_scenes(pictures, 3, per_scene)
