"""A joined part's means are the means over all its patches, and its kinds are fitted from them alone."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_map.foreground import CentroidForeground
from bestiary.concepts.part_map.joined_kinds import PartMeans, refit_kinds
from bestiary.concepts.part_map.part_codebook import FeatureSpace, PartCodebook
from bestiary.concepts.part_map.part_map import ABSENT
from bestiary.concepts.part_map.part_model import CentroidParts

WIDTH = 3


def codebook() -> PartCodebook:
    """Two parts with one kind each, and the background."""
    return PartCodebook(
        feature_spec={"name": "descriptor"},
        width=WIDTH,
        grid=(1, 3),
        part_names=("head", "body", "background"),
        background=2,
        foreground=CentroidForeground(torch.eye(2, WIDTH), 0),
        parts=CentroidParts(torch.eye(WIDTH), torch.arange(3), filled=False),
        fine=tuple(torch.eye(WIDTH).split(1)),
        kind_centers=torch.ones(3, WIDTH),
        kind_names=({}, {}, {}),
    )


def test_joined_means_weigh_every_patch_alike():
    torch.manual_seed(0)
    patches = torch.randn(5, 7, WIDTH)  # (N, patches, d)
    theirs = patches.mean(1)
    split = PartMeans(
        torch.stack([patches[:, :2].mean(1), torch.randn(5, WIDTH), patches[:, 2:].mean(1)], dim=1),
        torch.tensor([[2, 9, 5]]).repeat(5, 1),
    )
    ours = split.joined((1, 0, 1), 1)
    assert ours.counts.tolist() == [[7]] * 5
    assert torch.allclose(ours.means[:, 0].float(), theirs, atol=2e-3)  # kept in half precision


def test_a_picture_without_the_parts_has_zeros():
    ours = PartMeans(torch.zeros(2, 2, WIDTH), torch.tensor([[0, 0], [3, 0]])).joined((0, 0), 0)
    assert ours.means.isfinite().all() and ours.counts.tolist() == [[0], [3]]


def two_looks(pictures: int) -> PartMeans:
    """Pictures of two looks in turn; the last shows nothing."""
    means = F.one_hot(torch.arange(pictures) % 2, WIDTH).float().unsqueeze(1)  # (N, 1, d)
    counts = torch.full((pictures, 1), 4)
    counts[-1] = 0
    return PartMeans(means, counts)


@pytest.mark.parametrize("most", [None, 8])
def test_one_part_gets_new_kinds_and_the_others_keep_theirs(most):
    before = codebook()
    ours = refit_kinds(before, 1, two_looks(11), num_kinds=2, seed=0, most=most)
    assert ours.codebook.num_kinds == (1, 2, 1)
    for part in (0, 2):
        assert torch.equal(ours.codebook.fine[part], before.fine[part])
        assert torch.equal(ours.codebook.kind_centers[part], before.kind_centers[part])
    assert torch.equal(before.fine[1], codebook().fine[1])
    assert len(set(ours.codes[:10:2].tolist())) == len(set(ours.codes[1:10:2].tolist())) == 1
    assert ours.codes[0] != ours.codes[1] and ours.codes[-1] == ABSENT
    # the codebook of the part alone and the whole one tell the same
    means, counts = torch.zeros(11, 3, WIDTH), torch.zeros(11, 3, dtype=torch.long)
    means[:, 1:2], counts[:, 1:2] = two_looks(11).means, two_looks(11).counts
    assert torch.equal(ours.codebook.kind_of(means, counts)[:, 1], ours.codes)


def test_a_codebook_without_spaces_gets_them_and_its_other_kinds_stay():
    before = replace(codebook(), detail_space=FeatureSpace(torch.zeros(WIDTH), torch.eye(WIDTH)))
    ours = refit_kinds(before, 1, two_looks(11), num_kinds=2, seed=0).codebook
    assert ours.kind_spaces.shape == (3, WIDTH, WIDTH)
    means, counts = torch.randn(11, 3, WIDTH), torch.ones(11, 3, dtype=torch.long)
    assert torch.equal(ours.kind_of(means, counts)[:, ::2], before.kind_of(means, counts)[:, ::2])
    codes = ours.kind_of(two_looks(11).means.expand(-1, 3, -1), counts)[:10, 1]
    assert len(set(codes[::2].tolist())) == len(set(codes[1::2].tolist())) == 1 and codes[0] != codes[1]
    # and once there, they are kept
    again = refit_kinds(ours, 0, two_looks(11), num_kinds=2, seed=0).codebook
    assert torch.equal(again.kind_spaces[1:], ours.kind_spaces[1:])


def test_more_kinds_than_pictures_are_refused():
    with pytest.raises(BestiaryError, match="6 kinds of part 'body' were requested, but only 4 pictures show it"):
        refit_kinds(codebook(), 1, two_looks(5), num_kinds=6, seed=0)
