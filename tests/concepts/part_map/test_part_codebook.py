"""The codebook: means and kinds by hand, names found, files that come back and files that do not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.features.patch_features import PatchGrid
from bestiary.concepts.files.concept_file import CODEBOOK_KIND, write_concept_file
from bestiary.concepts.part_map.foreground import CentroidForeground
from bestiary.concepts.part_map.part_codebook import FeatureSpace, PartCodebook, _within_marks
from bestiary.concepts.part_map.part_map import ABSENT
from bestiary.concepts.part_map.part_model import CentroidParts

WIDTH = 4


def codebook(**changes: object) -> PartCodebook:
    """Patches along channel 0 are head, 1 body, 3 background."""
    fields = {
        "feature_spec": {"name": "descriptor"},
        "width": WIDTH,
        "grid": (2, 2),
        "part_names": ("head", "body", "background"),
        "background": 2,
        "foreground": CentroidForeground(torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 1]]), 0),
        "parts": CentroidParts(torch.eye(WIDTH)[:2], torch.arange(2), filled=False),
        "fine": (
            F.normalize(torch.tensor([[1.0, 0, 1, 0], [1, 0, -1, 0]]), dim=1),
            torch.eye(WIDTH)[1:2],
            torch.eye(WIDTH)[3:],
        ),
        "kind_names": ({0: "Red", 1: "blue jay"}, {}, {}),
        "statistics": {"inertia": 0.25},
    }
    return PartCodebook(**{**fields, **changes})


def grid() -> PatchGrid:
    """Picture 0: head twice (third channel 1 and 3), body, background. Picture 1: background alone."""
    first = [[[2.0, 0, 1, 0], [2, 0, 3, 0]], [[0, 5, 0, 0], [0, 0, 0, 1]]]
    return PatchGrid(torch.tensor([first, [[[0.0, 0, 0, 1]] * 2] * 2]), None)


def test_labels_means_and_kinds_by_hand() -> None:
    ours = codebook()
    labels = ours.label(grid())
    assert labels.dtype == torch.uint8
    assert labels.tolist() == [[[0, 0], [1, 2]], [[2, 2], [2, 2]]]
    means, counts = ours.part_means(grid(), labels)
    assert counts.tolist() == [[2, 1, 1], [0, 0, 4]]
    assert means[0].tolist() == [[2, 0, 2, 0], [0, 5, 0, 0], [0, 0, 0, 1]]
    assert means[1, :2].abs().sum() == 0
    assert ours.kind_of(means, counts).tolist() == [[0, 0, 0], [ABSENT, ABSENT, 0]]
    maps = ours.segment(grid())
    assert torch.equal(maps.labels, labels) and maps.codes.tolist() == [[0, 0, 0], [ABSENT, ABSENT, 0]]


def test_a_picture_is_treated_by_itself() -> None:
    together, ours = grid(), codebook()
    alone = [ours.segment(PatchGrid(together.features[row : row + 1], None)) for row in range(2)]
    assert torch.equal(torch.cat([maps.codes for maps in alone]), ours.segment(together).codes)


def test_centers_are_taken_off_before_kinds_are_compared() -> None:
    around = codebook(kind_centers=torch.tensor([[0.0, 0, 4, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    assert around.segment(grid()).codes[0, 0] == 1  # (2, 0, 2) less (0, 0, 4) points the other way


def test_kinds_are_compared_in_a_space_of_their_part() -> None:
    plain = codebook()
    same = codebook(kind_spaces=torch.eye(WIDTH).repeat(3, 1, 1))
    assert torch.equal(same.segment(grid()).codes, plain.segment(grid()).codes)
    # a space that turns all looks around turns the kinds of that part, and of no other
    turned = codebook(kind_spaces=torch.stack([-torch.eye(WIDTH), torch.eye(WIDTH), torch.eye(WIDTH)]))
    ours, theirs = turned.segment(grid()).codes, plain.segment(grid()).codes
    assert ours[0, 0] != theirs[0, 0] and torch.equal(ours[:, 1:], theirs[:, 1:])
    assert torch.equal(turned.as_compared(torch.ones(2, WIDTH), 0), -torch.ones(2, WIDTH))


def test_a_space_is_applied_before_everything_else() -> None:
    turn = torch.eye(WIDTH)[[3, 0, 1, 2]]  # channels moved on by one
    moved = codebook(space=FeatureSpace(torch.full((WIDTH,), 0.5), turn))
    shifted = PatchGrid(grid().features @ turn.T + 0.5, None)
    assert torch.equal(moved.segment(shifted).codes, codebook().segment(grid()).codes)


def test_similarity_of_kinds_is_the_cosine_of_their_centroids() -> None:
    ours = codebook(fine=(torch.tensor([[1.0, 0, 0, 0], [3.0, 4, 0, 0]]), torch.eye(4)[:1], torch.eye(4)[:1]))
    assert ours.kind_similarity(0, 0, 1) == pytest.approx(0.6)
    assert ours.kind_similarity(0, 1, 1) == pytest.approx(1)


@pytest.mark.parametrize(("text", "part"), [("head", 0), (" HEAD ", 0), ("1", 1), (" 1 ", 1), ("background", 2)])
def test_parts_are_found(text: str, part: int) -> None:
    assert codebook().find_part(text) == part


@pytest.mark.parametrize(("text", "kind"), [("red", 0), ("Blue Jay", 1), ("blue_jay", 1), ("1", 1), (" 0 ", 0)])
def test_kinds_are_found(text: str, kind: int) -> None:
    assert codebook().find_kind(0, text) == kind


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(
        BestiaryError, match=r"unknown part 'haed' \(did you mean 'head'\?\): parts are head, body, background"
    ):
        codebook().find_part("haed")
    with pytest.raises(BestiaryError, match="unknown part '3': parts are head, body, background"):
        codebook().find_part("3")
    with pytest.raises(BestiaryError, match="unknown kind '2' of part 'head': kinds are 0 to 1 or Red, blue jay"):
        codebook().find_kind(0, "2")
    with pytest.raises(BestiaryError, match="unknown kind '0' of part 'body': kinds are none"):
        codebook(fine=()).find_kind(1, "0")


def test_a_codebook_without_kinds_gives_none() -> None:
    with pytest.raises(BestiaryError, match="this codebook has parts but no kinds yet: finish the discovery first"):
        codebook(fine=()).segment(grid())


def test_features_of_another_source_are_refused() -> None:
    message = r"the patch features have 7 channels, but this codebook was fitted on 4 \(source 'descriptor'\): use this feature source"
    with pytest.raises(BestiaryError, match=message):
        codebook().segment(PatchGrid(torch.zeros(1, 2, 2, 7), None))
    narrow = codebook(space=FeatureSpace(torch.zeros(9), torch.zeros(9, WIDTH)))
    with pytest.raises(BestiaryError, match="have 4 channels, but this codebook was fitted on 9"):
        narrow.segment(grid())


@pytest.mark.parametrize("with_space", [False, True])
def test_everything_comes_back_from_a_file(tmp_path: Path, with_space: bool) -> None:
    space = FeatureSpace(torch.full((WIDTH,), 1 / 3), torch.eye(WIDTH) / 3) if with_space else None
    spaces = torch.randn(3, WIDTH, WIDTH) if with_space else None
    theirs = codebook(space=space, kind_centers=torch.randn(3, WIDTH), kind_spaces=spaces)
    theirs.save(tmp_path / "c.parts.safetensors")
    ours = PartCodebook.load(tmp_path / "c.parts.safetensors")
    for name in ("feature_spec", "width", "grid", "part_names", "background", "kind_names", "statistics", "num_kinds"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert torch.equal(ours.kind_centers, theirs.kind_centers)
    assert all(torch.equal(one, other) for one, other in zip(ours.fine, theirs.fine, strict=True))
    assert torch.equal(ours.segment(grid()).labels, theirs.segment(grid()).labels)
    assert (ours.space is None) == (ours.kind_spaces is None) == (space is None)
    assert torch.equal(ours.segment(grid()).codes, theirs.segment(grid()).codes)
    if space is not None:
        assert torch.equal(ours.space.projection, space.projection)
        assert torch.equal(ours.kind_spaces, spaces)


def test_tensors_take_half_the_room_where_nothing_is_lost(tmp_path: Path) -> None:
    exact, rough = tmp_path / "exact", tmp_path / "rough"
    codebook(kind_centers=torch.ones(3, WIDTH)).save(exact)
    codebook(kind_centers=torch.full((3, WIDTH), 1 / 3)).save(rough)
    assert exact.stat().st_size < rough.stat().st_size
    assert torch.equal(PartCodebook.load(rough).kind_centers, torch.full((3, WIDTH), 1 / 3))


def test_incomplete_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.parts.safetensors"
    write_concept_file(path, {"kinds.0": torch.zeros(2, 2)}, {"kind": CODEBOOK_KIND, "width": 4})
    with pytest.raises(
        BestiaryError, match=r"c.parts.safetensors is not a complete part codebook: .*; discover the parts"
    ):
        PartCodebook.load(path)
    write_concept_file(path, {}, {"kind": "part-dictionary"})
    with pytest.raises(BestiaryError, match="is a part-dictionary file, but a parts file is required"):
        PartCodebook.load(path)
    with pytest.raises(BestiaryError, match="could not read"):
        PartCodebook.load(tmp_path / "gone")


def test_other_names_change_nothing_else() -> None:
    theirs = codebook()
    ours = theirs.with_names(("a", "b", "c"), ({}, {}, {}))
    assert ours == replace(theirs, part_names=("a", "b", "c"), kind_names=({}, {}, {}))


def test_labels_cover_what_is_marked_and_nothing_else() -> None:
    labels = torch.tensor([[[0, 2, 2], [2, 2, 1]], [[0, 0, 1], [2, 2, 2]]], dtype=torch.uint8)
    marked = torch.tensor([[[1.0, 1.0, 0.0], [0.9, 0.0, 1.0]], [[torch.nan] * 3] * 2])
    assert _within_marks(labels, marked, 2).tolist() == [[[0, 0, 2], [0, 2, 1]], [[0, 0, 1], [2, 2, 2]]]
    assert _within_marks(labels, torch.zeros(2, 2, 3), 2).unique().tolist() == [2]
