"""Random kinds, and dictionaries that grow by kinds."""

from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.new_kinds import NewKind, random_kinds, with_new_kinds
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary

ROWS = [(0, 0), (0, 4), (2, 4), (2, 255)]


def make() -> PartDictionary:
    generator = torch.Generator().manual_seed(0)
    return PartDictionary(
        "sdxl",
        ("head", "tail", "wing"),
        ({0: "blue jay", 4: "random 7", 9: "not trained"}, {}, {}),
        None,
        torch.tensor(ROWS),
        {name: torch.randn(4, width, generator=generator) for name, width in (("clip_l", 4), ("clip_g", 5))},
        provenance={"seed": 3},
    )


def test_kinds_are_added_below_and_everything_else_stays(tmp_path: Path) -> None:
    theirs = make()
    vectors = torch.randn(3, 9)
    added = [NewKind(0, "random 7", vectors[0]), NewKind(0, "random 7", vectors[1]), NewKind(1, "new", vectors[2])]
    ours, ids = with_new_kinds(theirs, added, {"seed": 7})
    assert ids == (10, 11, 0)
    assert torch.equal(ours.matrix()[:4], theirs.matrix())
    assert torch.equal(ours.matrix()[4:], vectors)
    assert ours.kind_names[0] == {**theirs.kind_names[0], 10: "random 7 (2)", 11: "random 7 (3)"}
    assert ours.find_kind(0, "random 7 (3)") == 11
    assert torch.equal(ours.vector(1, 0), vectors[2])
    assert ours.provenance == {"seed": 3, "new_kinds": [{"seed": 7}]}
    assert theirs.kind_names[1] == {} and theirs.provenance == {"seed": 3} and len(theirs.rows) == 4
    again, _ = with_new_kinds(ours, added[2:], {"seed": 8})
    assert again.provenance["new_kinds"] == [{"seed": 7}, {"seed": 8}]
    again.save(tmp_path / "d.safetensors", torch.float32)
    loaded = PartDictionary.load(tmp_path / "d.safetensors")
    assert torch.equal(loaded.matrix(), again.matrix())
    assert loaded.kind_names == again.kind_names


def test_adding_nothing_changes_nothing() -> None:
    theirs = make()
    assert with_new_kinds(theirs, []) == (theirs, ())


def test_random_kinds_are_samples_named_by_seed_and_spread() -> None:
    ours = make()
    both = random_kinds(ours, [0, 2], 7)
    assert [(kind.part, kind.name) for kind in both] == [(0, "random 7"), (2, "random 7")]
    assert torch.equal(both[1].vector, ours.sample(2, 7))
    assert torch.equal(random_kinds(ours, [2], 7)[0].vector, both[1].vector)
    narrow = random_kinds(ours, [0], 7, 0.0)[0]
    assert narrow.name == "random 7 spread 0"
    assert torch.equal(narrow.vector, ours.mean_and_std(0)[0])


def test_spread_scales_the_distance_from_the_mean_and_parts_differ() -> None:
    ours = make()
    mean, std = ours.mean_and_std(0)
    one, two = ours.sample(0, 5), ours.sample(0, 5, 2.0)
    assert torch.allclose(two - mean, 2 * (one - mean), atol=1e-6)
    other_mean, other_std = ours.mean_and_std(2)
    noise, other_noise = (one - mean) / std, (ours.sample(2, 5) - other_mean) / other_std
    assert not torch.allclose(noise, other_noise, atol=0.1)


@pytest.mark.parametrize("spread", [-0.5, float("nan"), float("inf")])
def test_a_spread_out_of_range_is_told(spread: float) -> None:
    with pytest.raises(BestiaryError, match=f"spread is {spread}: enter a number"):
        random_kinds(make(), [0], 1, spread)


def test_faulty_kinds_are_told() -> None:
    with pytest.raises(BestiaryError, match="new kind 'x': part 3 does not exist, only 0..2"):
        with_new_kinds(make(), [NewKind(3, "x", torch.zeros(9))])
    with pytest.raises(
        BestiaryError, match=r"new kind 'x' has a vector of shape \(2, 9\), this dictionary takes \(9,\)"
    ):
        with_new_kinds(make(), [NewKind(0, "x", torch.zeros(2, 9))])
    with pytest.raises(BestiaryError, match="part 'tail' has no trained kind"):
        random_kinds(make(), [1], 1)
