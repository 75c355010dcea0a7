import torch
from bestiary.concepts.part_map.foreground import average_over_neighbours, neighbour_affinity
from bestiary.concepts.part_map.picture_mixture import BACKGROUND_BANDS, _bands, explain_pictures
from torch import Tensor


def two_part_picture(seed: int) -> tuple[Tensor, Tensor]:
    """A thing whose upper and lower half differ, in looks of its own: features (1, 12, 12, 6), truth (1, 12, 12)."""
    generator = torch.Generator().manual_seed(seed)
    looks = torch.randn(3, 6, generator=generator) * 2
    truth = torch.full((1, 12, 12), 2)
    truth[0, 3:7, 3:9], truth[0, 7:10, 3:9] = 0, 1
    return looks[truth] + 0.2 * torch.randn(1, 12, 12, 6, generator=generator), truth


def vague_places() -> Tensor:
    """Part 0 rather above, part 1 rather below, both rather in the middle: (1, 12, 12, 3)."""
    height = torch.linspace(0, 1, 12).view(1, 12, 1).expand(1, 12, 12)
    center = torch.full((1, 12, 12), 0.3)
    center[0, 2:11, 2:10] = 0.6
    return torch.stack([center * (1 - height), center * height, 1 - center], dim=-1)


def test_edges_follow_each_pictures_own_looks() -> None:
    foreground = vague_places()[..., :2].sum(dim=-1)
    for seed in range(5):
        features, truth = two_part_picture(seed)
        ours = explain_pictures(features, foreground, vague_places()).argmax(dim=-1)
        assert float((ours == truth).float().mean()) > 0.97


def test_shares_sum_to_one_and_pictures_do_not_influence_each_other() -> None:
    first, second = two_part_picture(0)[0], two_part_picture(1)[0]
    places = vague_places().expand(2, -1, -1, -1)
    foreground = places[..., :2].sum(dim=-1)
    both = explain_pictures(torch.cat([first, second]), foreground, places)
    alone = explain_pictures(second, foreground[1:], places[1:])
    assert torch.allclose(both.sum(dim=-1), torch.ones(2, 12, 12), atol=1e-5)
    assert torch.allclose(both[1:], alone, atol=1e-5)


def test_places_where_nothing_ever_lies_stay_background() -> None:
    features, _ = two_part_picture(2)
    places = vague_places()
    places[..., :2] *= 1e-6
    places[..., 2] = 1 - places[..., :2].sum(dim=-1)
    ours = explain_pictures(features, torch.full((1, 12, 12), 0.2), places)
    assert bool((ours.argmax(dim=-1) == 2).all())


def test_bands_share_every_patch() -> None:
    bands = _bands(8, 6)
    assert bands.shape == (8, 6, BACKGROUND_BANDS)
    assert torch.allclose(bands.sum(dim=-1), torch.ones(8, 6), atol=1e-6)


def test_affinity_ignores_what_lies_outside_and_prefers_the_alike() -> None:
    features = torch.zeros(1, 4, 4, 2)
    features[0, :, 2:] = 5.0
    affinity = neighbour_affinity(features)
    assert torch.allclose(affinity.sum(dim=1), torch.ones(1, 4, 4), atol=1e-5)
    left = torch.zeros(1, 4, 4, 1)
    left[0, :, :2] = 1.0
    ours = average_over_neighbours(left, affinity)[0, :, :, 0]
    assert float(ours[:, :2].min()) > 0.8
    assert float(ours[:, 2:].max()) < 0.2
