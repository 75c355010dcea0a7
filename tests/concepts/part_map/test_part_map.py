"""Part maps: one-hot masks of the labels."""

import torch
from bestiary.concepts.part_map.part_map import ABSENT, PartMaps


def test_masks_are_the_labels_part_by_part() -> None:
    labels = torch.tensor([[[0, 2], [2, 1]], [[3, 3], [3, 3]]], dtype=torch.uint8)  # (N, h, w)
    masks = PartMaps(labels, torch.full((2, 4), ABSENT)).masks(4)
    assert masks.shape == (2, 4, 2, 2) and masks.dtype == torch.bool
    assert masks[0].long().tolist() == [[[1, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 1], [1, 0]], [[0, 0], [0, 0]]]
    assert (masks.sum(1) == 1).all() and masks[1, 3].all()


def test_labels_of_parts_beyond_the_number_asked_for_are_in_no_mask() -> None:
    maps = PartMaps(torch.tensor([[[0, 200]]], dtype=torch.uint8), torch.zeros(1, 1).long())
    assert maps.masks(1).tolist() == [[[[True, False]]]]
