import pytest
import torch
from bestiary.concepts.part_map.object_frame import asymmetry, facing_of, fit_facing, object_frame, places_in_frame
from torch import Tensor


def things(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Bodies with a head on one side, moved about: features (N, 16, 16, 3), masks, and which way they face."""
    generator = torch.Generator().manual_seed(seed)
    features = 0.1 * torch.randn(count, 16, 16, 3, generator=generator)
    mask = torch.zeros(count, 16, 16, dtype=torch.bool)
    facing = torch.where(torch.rand(count, generator=generator) < 0.5, 1.0, -1.0)
    for index in range(count):
        row, column = torch.randint(-2, 3, (2,), generator=generator).tolist()
        mask[index, 7 + row : 11 + row, 4 + column : 12 + column] = True
        head = slice(12, 14) if facing[index] > 0 else slice(2, 4)
        mask[index, 5 + row : 8 + row, head.start + column : head.stop + column] = True
        features[index, 5 + row : 8 + row, head.start + column : head.stop + column, 0] += 1
    return features, mask, facing


def test_frame_of_a_rectangle() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 2:4, 1:7] = True
    ours = object_frame(mask)
    assert ours.row.item() == pytest.approx(2.5, abs=1e-3)
    assert ours.column.item() == pytest.approx(3.5, abs=1e-3)
    assert ours.size.item() == pytest.approx(((0.25 + 35 / 12) / 2) ** 0.5, abs=1e-3)


def test_an_empty_mask_has_the_whole_pictures_frame() -> None:
    ours = object_frame(torch.zeros(1, 6, 6, dtype=torch.bool))
    theirs = object_frame(torch.ones(1, 6, 6, dtype=torch.bool))
    assert ours.row.item() == pytest.approx(theirs.row.item())
    assert ours.size.item() == pytest.approx(theirs.size.item(), abs=1e-3)


def test_places_follow_the_thing_and_its_facing() -> None:
    mask = torch.zeros(2, 12, 12, dtype=torch.bool)
    mask[0, 2:6, 1:5] = True
    mask[1, 5:9, 6:10] = True
    places = places_in_frame(mask, torch.tensor([1.0, -1.0]))
    assert torch.allclose(places[0, 2:6, 1:5, 0], places[1, 5:9, 6:10, 0], atol=1e-3)
    assert torch.allclose(places[0, 2:6, 1:5, 1], places[1, 5:9, 6:10, 1].flip(-1), atol=1e-3)


def test_asymmetry_of_a_mirrored_picture_is_its_negative() -> None:
    features, mask, _ = things(3)
    ours = asymmetry(features, mask)
    mirrored = asymmetry(features.flip(2), mask.flip(2))
    assert torch.allclose(ours, -mirrored, atol=1e-4)


def test_all_things_are_turned_the_same_way() -> None:
    features, mask, facing = things(40)
    template, signs = fit_facing(asymmetry(features, mask))
    assert bool((signs * facing == facing[0] * signs[0]).all())
    assert torch.equal(facing_of(features, mask, template), signs)


def test_facing_is_known_for_new_pictures_one_by_one() -> None:
    features, mask, facing = things(40)
    template, signs = fit_facing(asymmetry(features, mask))
    way = facing[0] * signs[0]
    new_features, new_mask, new_facing = things(10, seed=9)
    ours = torch.cat([facing_of(new_features[[i]], new_mask[[i]], template) for i in range(10)])
    assert torch.equal(ours, way * new_facing)
