"""Names are parted at their colon, and each leads to the edit of a part or of a kind."""

import pytest
import torch
import torch.nn.functional as F
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_map.foreground import CentroidForeground
from bestiary.concepts.part_map.named_edits import drop_named, merge_named, rename_named, split_name
from bestiary.concepts.part_map.part_codebook import PartCodebook
from bestiary.concepts.part_map.part_map import ABSENT
from bestiary.concepts.part_map.part_model import CentroidParts


def codebook() -> PartCodebook:
    """Head and body of two kinds each, and the background."""
    fine = F.normalize(torch.eye(3) + 0.1, dim=1)
    return PartCodebook(
        feature_spec={"name": "descriptor"},
        width=3,
        grid=(2, 2),
        part_names=("head", "body", "background"),
        background=2,
        foreground=CentroidForeground(torch.eye(2, 3), 0),
        parts=CentroidParts(torch.eye(3), torch.arange(3), filled=False),
        fine=(fine[:2], fine[1:], fine[:1]),
        kind_centers=None,
        kind_names=({0: "red"}, {}, {}),
    )


@pytest.mark.parametrize(
    ("name", "split"), [("head", ("head", None)), (" head : 17 ", ("head", "17")), ("0:blue jay", ("0", "blue jay"))]
)
def test_a_name_is_parted_at_its_colon(name, split):
    assert split_name(name) == split


@pytest.mark.parametrize("name", ["head:", ":3", ":", " : "])
def test_a_colon_wants_both_sides(name):
    with pytest.raises(BestiaryError, match="is neither a part nor a kind: write part, or part:kind"):
        split_name(name)


def test_parts_and_kinds_get_names():
    assert rename_named(codebook(), "0", "beak").codebook.part_names == ("beak", "body", "background")
    assert rename_named(codebook(), "head:red", "scarlet").codebook.kind_names[0] == {0: "scarlet"}


def test_parts_join_parts_and_kinds_their_like():
    assert merge_named(codebook(), ["body", "head"]).parts == (0, 0, 1)
    assert merge_named(codebook(), ["head:1", "0:red"]).kinds == ((0, 0), (0, 1), (0,))


def test_parts_and_kinds_are_dropped():
    assert drop_named(codebook(), "head").parts == (1, 0, 1)
    assert drop_named(codebook(), "head:red").kinds[0] == (ABSENT, 0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["head", "body:1"], "head, body:1: parts and kinds cannot be joined; name parts alone, or kinds of one part"),
        (["head:0", "body:1"], "head:0, body:1: kinds of different parts cannot be joined; join the parts instead"),
        (["head"], "merging needs at least two different parts"),
    ],
)
def test_what_cannot_be_joined_is_told(names, message):
    with pytest.raises(BestiaryError) as fault:
        merge_named(codebook(), names)
    assert message in str(fault.value)
