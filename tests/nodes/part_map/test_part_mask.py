"""Masks of parts: their place, growing by circles, feathering, inverting."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_map.part_map import PartMaps
from bestiary.nodes.part_map.part_mask import grown, mask_of_parts, part_masks, softened
from bestiary.nodes.part_map.seen_parts import SeenParts


def seen() -> SeenParts:
    """Two pictures of 32 x 32: head left and wing right, then all background."""
    labels = torch.full((2, 4, 4), 2, dtype=torch.uint8)
    labels[0, :, :2], labels[0, :, 2:] = 0, 1
    return SeenParts(
        ("head", "wing", "background"), 2, PartMaps(labels, torch.zeros(2, 3).long()), (32, 32), "centre square"
    )


def dot() -> torch.Tensor:
    mask = torch.zeros(1, 41, 41)
    mask[0, 20, 20] = 1
    return mask


def test_a_mask_is_its_parts_area():
    mask = mask_of_parts(seen(), "head")
    assert mask.shape == (2, 32, 32)
    assert mask[0, :, :14].min() > 0.99 and mask[0, :, 18:].max() < 0.01 and mask[1].max() == 0


def test_parts_together_have_no_seam():
    mask = mask_of_parts(seen(), "head, wing")
    assert torch.allclose(mask[0], torch.ones(32, 32), atol=1e-5)
    assert torch.equal(mask, mask_of_parts(seen(), "foreground"))


def test_masks_of_all_parts_are_those_of_each():
    masks = part_masks(seen())
    assert [mask.shape for mask in masks] == [(2, 32, 32)] * 3
    for name, mask in zip(seen().part_names, masks, strict=True):
        assert torch.equal(mask, mask_of_parts(seen(), name))
    assert torch.allclose(sum(masks), torch.ones(2, 32, 32), atol=1e-5)


def test_inverting_is_the_rest_and_comes_last():
    plain = mask_of_parts(seen(), "head", grow=3, feather=1.5)
    assert torch.equal(mask_of_parts(seen(), "head", grow=3, feather=1.5, invert=True), 1 - plain)


def test_growing_adds_pixels_all_around():
    for pixels in (1, 2, 7, 12):
        mask = grown(dot(), pixels)[0]
        assert mask[20].sum() == mask[:, 20].sum() == 2 * pixels + 1
        circle = 3.14159 * (pixels + 0.5) ** 2
        assert 0.6 * circle < mask.sum() < 1.25 * circle
        assert torch.equal(mask, mask.T) and torch.equal(mask, mask.flip(0))


def test_shrinking_undoes_growing():
    block = torch.zeros(1, 40, 40)
    block[0, 15:25, 12:28] = 1
    assert torch.equal(grown(grown(block, 5), -5), block)
    assert torch.equal(grown(block, -3)[0, 18:22, 15:25], torch.ones(4, 10)) and grown(block, -3).sum() == 40
    assert torch.equal(grown(block, 0), block)


def test_soft_masks_stay_soft_when_grown():
    assert grown(dot() * 0.25, 2).unique().tolist() == [0, 0.25]


def test_feathering_is_a_gaussian_that_keeps_its_mass():
    blurred = softened(dot(), 3.0)[0]
    assert blurred.sum() == pytest.approx(1, abs=1e-4)
    place = torch.arange(41.0) - 20
    assert float((blurred.sum(0) * place.square()).sum()) == pytest.approx(9, rel=0.05)
    assert torch.equal(softened(dot(), 0), dot())


def test_feathering_leaves_a_full_mask_full():
    assert torch.allclose(softened(torch.ones(1, 20, 30), 6.0), torch.ones(1, 20, 30), atol=1e-6)


def test_an_unknown_part_is_told():
    with pytest.raises(BestiaryError, match="unknown part 'beak': choose 'head'"):
        mask_of_parts(seen(), "beak")
