"""Edits as text: what each line does, in which order, and what is said of a line that does not fit."""

import pytest
import torch
import torch.nn.functional as F
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_map import edit_script
from bestiary.concepts.part_map.codebook_edits import drop_part, merge_kinds, merge_parts, rename
from bestiary.concepts.part_map.edit_script import LONGEST_SCRIPT, EditedParts, EditFault, EditHistory
from bestiary.concepts.part_map.foreground import CentroidForeground
from bestiary.concepts.part_map.joined_kinds import PartMeans, refit_kinds
from bestiary.concepts.part_map.part_codebook import PartCodebook
from bestiary.concepts.part_map.part_map import ABSENT, PartMaps
from bestiary.concepts.part_map.part_model import CentroidParts

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


def edited(text: str) -> EditedParts:
    return EditHistory(EditedParts(codebook(), MAPS)).after(text)


def same(ours: PartCodebook, theirs: PartCodebook) -> bool:
    names = ours.part_names == theirs.part_names and ours.kind_names == theirs.kind_names
    return names and all(torch.equal(a, b) for a, b in zip(ours.fine, theirs.fine, strict=True))


def test_colours_stay_with_the_part_they_came_from():
    assert edited("").colors() == (0, 1, 2, 3)
    assert edited("rename body, trunk").colors() == (0, 1, 2, 3)
    assert edited("drop head").colors()[:2] == (1, 2)
    assert edited("merge neck, head").colors() == (0, 2, 3)
    # what is joined keeps the colour of the first of them
    assert edited("drop head\nmerge neck, body").colors()[0] == 1


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
    ours, wanted = edited(line), theirs(codebook())
    assert same(ours.codebook, wanted.codebook)
    assert torch.equal(ours.maps.labels, wanted.apply(MAPS).labels)
    assert torch.equal(ours.maps.codes, wanted.apply(MAPS).codes)


def test_lines_follow_one_another_under_the_names_of_the_moment():
    ours = edited("# names first\nrename neck, throat\n\nmerge head, throat\n  drop body:round\n")
    assert ours.codebook.part_names == ("head", "body", "background")
    assert ours.codebook.kind_names[0] == {0: "red", 1: "blue", 2: "long"}
    # the first picture's body was the round one: it is background now
    assert ours.maps.labels.tolist() == [[[0, 0], [2, 2]], [[0, 0], [0, 2]], [[2, 2], [1, 1]]]
    # the first picture's head is blue, the larger neck of the second gives it "long"; the round body is gone
    assert ours.maps.codes.tolist() == [[1, ABSENT, 0], [2, ABSENT, 0], [ABSENT, 1, 0]]


def test_it_is_known_where_everything_found_has_gone():
    assert edited("merge head, neck\nrename body, belly").parts() == (0, 0, 1, 2)
    assert edited("drop head\nmerge neck, body").parts() == (1, 0, 0, 1)


@pytest.mark.parametrize("text", ["", "\n \n", "# nothing\n"])
def test_no_edit_leaves_everything(text):
    ours = edited(text)
    assert ours.maps is MAPS and ours.parts() == (0, 1, 2, 3)
    assert same(ours.codebook, codebook())


def with_means() -> EditedParts:
    """Twelve pictures of two parts that alternate in kind together, so that their joined part has two kinds."""
    rows = F.one_hot(torch.arange(12) % 2, WIDTH).float()  # (N, d)
    means = torch.stack([rows, rows.roll(1, 1), rows * 0.5, rows * 0], dim=1)  # (N, M, d)
    counts = torch.tensor([2, 1, 1, 4]).repeat(12, 1)
    labels = torch.tensor([[0, 0, 1, 2], [3, 3, 3, 3]], dtype=torch.uint8).repeat(12, 1, 1)
    codes = torch.stack([torch.arange(12) % 2, *torch.zeros(3, 12).long()], dim=1)
    plain = codebook().with_names(codebook().part_names, ({}, {}, {}, {}))
    return EditedParts(plain, PartMaps(labels, codes), found=PartMeans(means, counts), num_kinds=2, seed=3)


def test_joined_parts_get_kinds_of_their_own():
    before = with_means()
    ours = EditHistory(before).after("merge head, neck")
    theirs = refit_kinds(ours.codebook, 0, before.found.joined((0, 0, 1, 2), 0), 2, 3)
    assert ours.codebook.num_kinds == (2, 3, 1)
    assert torch.equal(ours.codebook.fine[0], theirs.codebook.fine[0])
    first = ours.maps.codes[:, 0]
    assert torch.equal(first, theirs.codes) and torch.equal(
        first, torch.where(torch.arange(12) % 2 == 0, first[0], first[1])
    )
    assert first[0] != first[1]
    # what is joined once more goes back to the first means
    again = EditHistory(before).after("merge head, neck\nmerge head, body")
    mean = before.found.joined((0, 0, 0, 1), 0).means[0, 0].float()
    assert torch.allclose(
        mean, (2 * before.found.means[0, 0] + before.found.means[0, 1] + before.found.means[0, 2]) / 4, atol=1e-3
    )
    assert again.codebook.num_kinds == (2, 1)


def test_named_kinds_survive_the_joining_of_their_parts():
    ours = EditHistory(with_means()).after("rename neck:0, long\nmerge head, neck")
    assert ours.codebook.num_kinds == (3, 3, 1) and ours.codebook.kind_names[0] == {2: "long"}


def test_a_line_more_costs_one_edit_and_a_line_less_none(monkeypatch):
    ran = []
    edit = edit_script._edit
    monkeypatch.setattr(edit_script, "_edit", lambda codebook, line: ran.append(line) or edit(codebook, line))
    history = EditHistory(EditedParts(codebook(), MAPS))
    lines = [f"rename {part}, part{part}" for part in range(3)]
    history.after("\n".join(lines[:2]))
    history.after("\n".join(lines))
    history.after("# only a remark\n" + "\n".join(lines[:2]))
    assert ran == lines
    # a line before the others is another history
    other = history.after("\n".join([lines[1], lines[0]]))
    assert ran == [*lines, lines[1], lines[0]]
    assert other.codebook.part_names == ("part0", "part1", "body", "background")


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
        (
            "merge head, body:1",
            "head, body:1: parts cannot be merged with kinds; give either parts, or kinds of one part",
        ),
        ("merge head:0, body:1", "kinds of different parts cannot be merged; merge the parts instead"),
        ("drop head:", "'head:' is neither a part nor a kind: write part, or part:kind"),
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
        edited(f"rename neck, throat\n\n{line}")
    assert str(fault.value).startswith("edits, line 3 (") and cause in str(fault.value)
    assert fault.value.line == 3
    assert fault.value.done.codebook.part_names == ("head", "throat", "body", "background")


def test_a_text_without_end_is_refused():
    with pytest.raises(
        BestiaryError, match=f"the edits have {LONGEST_SCRIPT + 1} characters, the limit is {LONGEST_SCRIPT}"
    ):
        edited("#" * (LONGEST_SCRIPT + 1))
