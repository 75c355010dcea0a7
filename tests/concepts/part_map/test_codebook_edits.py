"""Edits of a codebook: numbers close up, labels and codes follow, what makes no sense is refused."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_map.codebook_edits import (
    drop_kind,
    drop_named,
    drop_part,
    merge_kinds,
    merge_named,
    merge_parts,
    rename,
    rename_named,
    split_name,
)
from bestiary.concepts.part_map.foreground import CentroidForeground
from bestiary.concepts.part_map.part_codebook import PartCodebook
from bestiary.concepts.part_map.part_map import ABSENT, PartMaps
from bestiary.concepts.part_map.part_model import CentroidParts
from torch import Tensor

WIDTH = 4


def unit(*rows: list[float]) -> Tensor:
    return F.normalize(torch.tensor(rows), dim=1)


def codebook(centers: bool = False) -> PartCodebook:
    """Head (2 kinds), neck (1), body (3) and background (1)."""
    fine = (torch.eye(WIDTH)[:2], torch.eye(WIDTH)[2:3], torch.eye(WIDTH)[:3], torch.eye(WIDTH)[3:])
    return PartCodebook(
        feature_spec={"name": "descriptor"},
        width=WIDTH,
        grid=(2, 2),
        part_names=("head", "neck", "body", "background"),
        background=3,
        foreground=CentroidForeground(torch.eye(2, WIDTH), 0),
        parts=CentroidParts(torch.eye(WIDTH), torch.arange(4), filled=False),
        fine=fine,
        kind_centers=torch.arange(4 * WIDTH).view(4, WIDTH) / 10 if centers else None,
        kind_names=({0: "red", 1: "blue"}, {0: "long"}, {2: "round"}, {}),
    )


MAPS = PartMaps(
    torch.tensor([[[0, 1], [2, 3]], [[1, 1], [0, 3]], [[3, 3], [2, 2]]], dtype=torch.uint8),
    torch.tensor([[1, 0, 2, 0], [0, 0, ABSENT, 0], [ABSENT, ABSENT, 1, 0]]),
)


def test_renaming_finds_parts_and_kinds_by_old_names_and_numbers() -> None:
    edit = rename(codebook(), {"head": "beak", "1": "throat"}, {"head": {"red": "scarlet"}, "2": {"0": "flat"}})
    assert edit.codebook.part_names == ("beak", "throat", "body", "background")
    assert edit.codebook.kind_names == ({0: "scarlet", 1: "blue"}, {0: "long"}, {0: "flat", 2: "round"}, {})
    moved = edit.apply(MAPS)
    assert torch.equal(moved.labels, MAPS.labels) and torch.equal(moved.codes, MAPS.codes)
    assert codebook().part_names[0] == "head"  # the first one is untouched


def test_joined_parts_keep_all_kinds_and_the_larger_area_gives_the_code() -> None:
    edit = merge_parts(codebook(), ["head", "neck"], "top")
    ours = edit.codebook
    assert ours.part_names == ("top", "body", "background") and ours.background == 2
    assert ours.num_kinds == (3, 3, 1) and edit.parts == (0, 0, 1, 2)
    assert ours.kind_names[0] == {0: "red", 1: "blue", 2: "long"}
    moved = edit.apply(MAPS)
    assert moved.labels.tolist() == [[[0, 0], [1, 2]], [[0, 0], [0, 2]], [[2, 2], [1, 1]]]
    # picture 1 shows two patches of neck and one of head: neck's kind, now number 2, is taken
    assert moved.codes.tolist() == [[1, 2, 0], [2, ABSENT, 0], [ABSENT, 1, 0]]
    assert ours.parts.owner.tolist() == [0, 0, 1, 2]


def test_kinds_of_joined_parts_point_from_the_center_they_come_to() -> None:
    before = codebook(centers=True)
    after = merge_parts(before, ["head", "neck"]).codebook
    theirs = F.normalize(before.fine[1] + before.kind_centers[1] - before.kind_centers[0], dim=1)
    assert torch.equal(after.fine[0][:2], before.fine[0]) and torch.allclose(after.fine[0][2:], theirs)
    assert torch.equal(after.kind_centers, before.kind_centers[[0, 2, 3]])


def test_kinds_of_joined_parts_come_into_the_space_they_are_compared_in() -> None:
    spaces = torch.randn(4, WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    before = replace(codebook(centers=True), kind_spaces=spaces)
    after = merge_parts(before, ["head", "neck"]).codebook
    looks = before.fine[1] @ torch.linalg.inv(spaces[1]) + before.kind_centers[1] - before.kind_centers[0]
    assert torch.allclose(after.fine[0][2:], F.normalize(looks @ spaces[0], dim=1), atol=1e-4)
    assert torch.equal(after.kind_spaces, spaces[[0, 2, 3]])


def test_a_part_joined_with_the_background_is_dropped() -> None:
    joined, dropped = merge_parts(codebook(), ["neck", "background"]), drop_part(codebook(), "neck")
    for edit in (joined, dropped):
        assert edit.codebook.part_names == ("head", "body", "background")
        moved = edit.apply(MAPS)
        assert moved.labels[1].tolist() == [[2, 2], [0, 2]]
        assert moved.codes.tolist() == [[1, 2, 0], [0, ABSENT, 0], [ABSENT, 1, 0]]


def test_joined_kinds_lie_between_and_later_ones_move_up() -> None:
    edit = merge_kinds(codebook(), "body", ["0", "1"], "slim")
    ours = edit.codebook
    assert torch.allclose(ours.fine[2], unit([1.0, 1, 0, 0], [0.0, 0, 1, 0]))
    assert ours.kind_names[2] == {0: "slim", 1: "round"}
    assert edit.apply(MAPS).codes[:, 2].tolist() == [1, ABSENT, 0]


def test_a_dropped_kind_leaves_its_pictures_without_the_part() -> None:
    edit = drop_kind(codebook(), "head", "red")
    assert edit.codebook.kind_names[0] == {0: "blue"} and edit.codebook.num_kinds == (1, 1, 3, 1)
    assert edit.apply(MAPS).codes[:, 0].tolist() == [0, ABSENT, ABSENT]
    # nothing of the second picture is head any more
    assert edit.apply(MAPS).labels.tolist() == [[[0, 1], [2, 3]], [[1, 1], [3, 3]], [[3, 3], [2, 2]]]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda book: rename(book, {"head": "body"}), "two parts would be called 'body': choose different names"),
        (
            lambda book: rename(book, None, {"head": {"red": "BLUE"}}),
            "two kinds of part 'head' would be called 'blue': choose",
        ),
        (lambda book: rename(book, {"head": "a:b"}), "'a:b' cannot be a name in a prompt: use words"),
        (lambda book: rename(book, {"head": "7"}), "'7' cannot be a name in a prompt"),
        (lambda book: rename(book, {"head": "\u200b"}), r"'\\u200b' cannot be a name in a prompt"),
        (lambda book: rename(book, {"head": "a\u202eb"}), r"'a\\u202eb' cannot be a name in a prompt"),
        (lambda book: rename(book, {"head": "x" * 81}), "the name has 81 characters: use at most 80"),
        (lambda book: rename(book, {"tail": "x"}), "unknown part 'tail'"),
        (
            lambda book: rename(book, None, {"head": {"green": "x"}}),
            "unknown kind 'green' of part 'head': kinds are 0 to 1",
        ),
        (lambda book: merge_parts(book, ["head", "0"]), r"merging needs at least two different parts, got \[0, 0\]"),
        (lambda book: merge_kinds(book, "head", ["red"]), r"merging needs at least two different kinds, got \[0\]"),
        (lambda book: drop_part(book, "background"), r"the background \('background'\) cannot be dropped"),
        (lambda book: merge_parts(book, ["background", "background"]), "merging needs at least two different parts"),
        (lambda book: drop_kind(book, "neck", "long"), "part 'neck' would have no kind left: drop the part instead"),
        (
            lambda book: drop_part(drop_part(drop_part(book, "head").codebook, "neck").codebook, "body"),
            "part 'body' is the only one: nothing would remain",
        ),
    ],
)
def test_edits_without_sense_are_refused(edit, message: str) -> None:
    with pytest.raises(BestiaryError, match=message):
        edit(codebook())


@pytest.mark.parametrize(
    ("name", "split"), [("head", ("head", None)), (" head : 17 ", ("head", "17")), ("0:blue jay", ("0", "blue jay"))]
)
def test_a_name_is_parted_at_its_colon(name: str, split: tuple[str, str | None]) -> None:
    assert split_name(name) == split


@pytest.mark.parametrize("name", ["head:", ":3", ":", " : "])
def test_a_colon_wants_both_sides(name: str) -> None:
    with pytest.raises(BestiaryError, match="is neither a part nor a kind: write part, or part:kind"):
        split_name(name)


def test_parts_and_kinds_get_names() -> None:
    assert rename_named(codebook(), "0", "beak").codebook.part_names == ("beak", "neck", "body", "background")
    assert rename_named(codebook(), "head:red", "scarlet").codebook.kind_names[0] == {0: "scarlet", 1: "blue"}


def test_parts_join_parts_and_kinds_their_like() -> None:
    assert merge_named(codebook(), ["neck", "head"]).parts == (0, 0, 1, 2)
    assert merge_named(codebook(), ["head:1", "0:red"]).kinds[:2] == ((0, 0), (0,))


def test_parts_and_kinds_are_dropped() -> None:
    assert drop_named(codebook(), "head").parts == (2, 0, 1, 2)
    assert drop_named(codebook(), "head:red").kinds[0] == (ABSENT, 0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["head", "body:1"],
            "head, body:1: parts cannot be merged with kinds; give either parts, or kinds of one part",
        ),
        (["head:0", "body:1"], "head:0, body:1: kinds of different parts cannot be merged; merge the parts instead"),
        (["head"], "merging needs at least two different parts"),
    ],
)
def test_parts_and_kinds_that_cannot_be_joined_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(BestiaryError) as fault:
        merge_named(codebook(), names)
    assert message in str(fault.value)
