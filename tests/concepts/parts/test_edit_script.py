"""Edits as text: what each line does, in which order, and what is said of a line that does not fit."""

import pytest
import torch
import torch.nn.functional as F
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.parts.codebook_edits import drop_part, merge_kinds, merge_parts, rename
from bestiary.concepts.parts.edit_script import LONGEST_SCRIPT, EditFault, apply_edits
from bestiary.concepts.parts.foreground import CentroidForeground
from bestiary.concepts.parts.part_codebook import PartCodebook
from bestiary.concepts.parts.part_map import ABSENT, PartMaps
from bestiary.concepts.parts.part_model import CentroidParts

WIDTH = 4


def codebook() -> PartCodebook:
    """Head (red, blue), neck (long), body (3 kinds) and background (1)."""
    basis = F.normalize(torch.eye(WIDTH) + 0.1, dim=1)
    return PartCodebook(
        feature_spec={"name": "descriptor"},
        width=WIDTH,
        grid=(2, 2),
        part_names=("head", "neck", "body", "background"),
        background=3,
        foreground=CentroidForeground(torch.eye(2, WIDTH), 0),
        parts=CentroidParts(torch.eye(WIDTH), torch.arange(4), filled=False),
        fine=(basis[:2], basis[2:3], basis[:3], basis[3:]),
        kind_centers=None,
        kind_names=({0: "red", 1: "blue"}, {0: "long"}, {2: "round"}, {}),
    )


MAPS = PartMaps(
    torch.tensor([[[0, 1], [2, 3]], [[1, 1], [0, 3]], [[3, 3], [2, 2]]], dtype=torch.uint8),
    torch.tensor([[1, 0, 2, 0], [0, 0, ABSENT, 0], [ABSENT, ABSENT, 1, 0]]),
)


def same(ours: PartCodebook, theirs: PartCodebook) -> bool:
    names = ours.part_names == theirs.part_names and ours.kind_names == theirs.kind_names
    return names and all(torch.equal(a, b) for a, b in zip(ours.fine, theirs.fine, strict=True))


@pytest.mark.parametrize(
    ("line", "theirs"),
    [
        ("rename neck, throat", lambda book: rename(book, parts={"neck": "throat"})),
        ("rename 1, long throat", lambda book: rename(book, parts={"1": "long throat"})),
        ("rename head:red, cardinal", lambda book: rename(book, kinds={"head": {"red": "cardinal"}})),
        ("merge head, neck", lambda book: merge_parts(book, ["head", "neck"])),
        ("MERGE head:red,  head:1", lambda book: merge_kinds(book, "head", ["red", "1"])),
        ("drop neck", lambda book: drop_part(book, "neck")),
        ("merge neck, background", lambda book: drop_part(book, "neck")),
    ],
)
def test_a_line_is_one_edit(line, theirs):
    ours, wanted = apply_edits(codebook(), line), theirs(codebook())
    assert same(ours.codebook, wanted.codebook)
    assert torch.equal(ours.apply(MAPS).labels, wanted.apply(MAPS).labels)
    assert torch.equal(ours.apply(MAPS).codes, wanted.apply(MAPS).codes)


def test_lines_follow_one_another_under_the_names_of_the_moment():
    edited = apply_edits(codebook(), "# names first\nrename neck, throat\n\nmerge head, throat\n  drop body:round\n")
    assert edited.codebook.part_names == ("head", "body", "background")
    assert edited.codebook.kind_names[0] == {0: "red", 1: "blue", 2: "long"}
    maps = edited.apply(MAPS)
    assert maps.labels.tolist() == [[[0, 0], [1, 2]], [[0, 0], [0, 2]], [[2, 2], [1, 1]]]
    # the first picture's head is blue, the larger neck of the second gives it "long"; the round body is gone
    assert maps.codes.tolist() == [[1, ABSENT, 0], [2, ABSENT, 0], [ABSENT, 1, 0]]


def test_it_is_known_where_everything_found_has_gone():
    edited = apply_edits(codebook(), "merge head, neck\ndrop body:0\nmerge body:0, body:round")
    assert edited.parts() == [0, 0, 1, 2]
    assert [edited.kinds(part) for part in range(4)] == [[0, 1], [2], [ABSENT, 0, 0], [0]]
    assert apply_edits(codebook(), "drop neck").kinds(1) == [ABSENT]


@pytest.mark.parametrize("text", ["", "\n \n", "# nothing\n"])
def test_no_edit_leaves_everything(text):
    edited = apply_edits(codebook(), text)
    assert edited.steps == () and edited.apply(MAPS) is MAPS
    assert edited.parts() == [0, 1, 2, 3] and edited.kinds(2) == [0, 1, 2]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("paint head, red", "an edit begins with rename, merge or drop, not 'paint'"),
        ("rename head", "rename takes an old and a new name, not 1: `rename part 2, head`"),
        ("drop head, neck", "drop takes one name, not 2: write a line for each"),
        (
            "merge head,",
            "a name is missing: write for example `rename part 2, head`, `merge head, beak` or `drop tail`",
        ),
        ("drop", "a name is missing"),
        ("merge head, body:1", "only parts can be merged with parts, and kinds with kinds of the same part"),
        ("merge head:0, body:1", "only parts can be merged with parts, and kinds with kinds of the same part"),
        ("drop haed", "head"),
        ("rename head:purple, pink", "red"),
        ("drop background", "the background ('background') cannot be dropped"),
        ("rename head, a:b", "'a:b' cannot be a name in a prompt"),
        ("rename head, <img src=x>", "'<img src=x>' cannot be a name in a prompt"),
        ("rename head, body", "body"),
    ],
)
def test_a_line_that_does_not_fit_is_named_with_its_cause(line, cause):
    with pytest.raises(EditFault) as fault:
        apply_edits(codebook(), f"rename neck, throat\n\n{line}")
    assert str(fault.value).startswith("edits, line 3 (") and cause in str(fault.value)
    assert fault.value.line == 3
    assert fault.value.done.codebook.part_names == ("head", "throat", "body", "background")


def test_a_text_without_end_is_refused():
    with pytest.raises(
        BestiaryError, match=f"edits of {LONGEST_SCRIPT + 1} characters: at most {LONGEST_SCRIPT} are read"
    ):
        apply_edits(codebook(), "#" * (LONGEST_SCRIPT + 1))
