from dataclasses import replace

import pytest
import torch
from bestiary.concepts.features.patch_features import PatchGrid
from bestiary.concepts.part_map.kmeans import fit_kmeans
from bestiary.concepts.part_map.looks_parts import (
    LooksParts,
    SecondLooks,
    agreement_of_views,
    choose_part_count,
    fit_looks_parts,
    matched_agreement,
    part_clusters,
)
from bestiary.concepts.part_map.sample_views import SampleViews
from torch import Tensor

PARTS, GRID, WIDTH = 4, 12, 16


def things(
    count: int, *, seed: int = 0, kind_spread: float = 3.0, absent: float = 0.0, noise: float = 0.15
) -> tuple[Tensor, Tensor, Tensor]:
    """Things whose four parts lie anywhere, each picture with a look of its own on top: features, mask, truth (PARTS outside).

    The look of a picture is larger than the difference between parts; places say nothing. Part 0 lies in two pieces.
    """
    generator = torch.Generator().manual_seed(seed)
    meaning = torch.randn(PARTS + 1, WIDTH, generator=torch.Generator().manual_seed(99))
    truth = torch.full((count, GRID, GRID), PARTS)
    for index in range(count):
        places = torch.randperm(9, generator=generator)[: PARTS + 1].tolist()  # of a 3 x 3 raster of 4 x 4 patches
        for part, place in zip([0, *range(PARTS)], places, strict=True):
            if part == 1 and float(torch.rand((), generator=generator)) < absent:
                continue
            row, column = place // 3 * 4, place % 3 * 4
            truth[index, row : row + 4, column : column + 4] = part
    kinds = torch.randn(3, WIDTH, generator=generator)
    look = kind_spread * kinds[torch.randint(3, (count, 1, 1), generator=generator)]
    features = meaning[truth] + look + noise * torch.randn(count, GRID, GRID, WIDTH, generator=generator)
    return features / WIDTH**0.5, truth < PARTS, truth


def agreement(labels: Tensor, truth: Tensor) -> float:
    inside = truth < PARTS
    return matched_agreement(labels[inside].clamp_max(PARTS - 1), truth[inside], PARTS)


def test_parts_are_found_by_looks_where_places_say_nothing_and_kinds_differ_more_than_parts() -> None:
    features, mask, truth = things(60)
    model = fit_looks_parts(features, mask, PARTS, seed=0)
    assert agreement(model.labels(features, mask.float(), PARTS), truth) > 0.75
    # without taking each picture's own look out, clusters are kinds: groups of pictures
    plain = torch.zeros_like(truth)
    plain[mask] = fit_kmeans(features[mask], PARTS, seed=0).labels
    assert agreement(plain, truth) < 0.4


def test_two_pieces_of_one_part_far_apart_are_one_part() -> None:
    features, mask, truth = things(60, kind_spread=0.5)
    labels = fit_looks_parts(features, mask, PARTS, seed=0).labels(features, mask.float(), PARTS)
    pieces = labels[truth == 0]
    assert float((pieces == pieces.mode().values).float().mean()) > 0.9


def test_pictures_that_lack_a_part_do_not_lend_its_name_to_another() -> None:
    features, mask, truth = things(80, absent=0.5, kind_spread=0.8)
    rows, picture = features[mask], torch.arange(80).view(-1, 1, 1).expand_as(mask)[mask]
    labels = torch.full_like(truth, PARTS)
    labels[mask] = part_clusters(rows, picture, PARTS, seed=0)
    assert agreement(labels, truth) > 0.9


def test_a_picture_is_labelled_alone_as_in_a_batch_and_moved_as_before() -> None:
    features, mask, _ = things(30, kind_spread=0.5)
    model = fit_looks_parts(features, mask, PARTS, seed=0)
    together = model.labels(features, mask.float(), PARTS)
    alone = torch.cat([model.labels(features[[i]], mask[[i]].float(), PARTS) for i in range(30)])
    assert torch.equal(together, alone)
    mirrored = model.labels(features.flip(2), mask.flip(2).float(), PARTS)
    assert torch.equal(mirrored.flip(2), together)


def test_patches_outside_the_foreground_are_background_and_owners_are_followed() -> None:
    features, mask, _ = things(20, kind_spread=0.3)
    model = fit_looks_parts(features, mask, PARTS, seed=0)
    joined = LooksParts(model.weight, model.bias, torch.tensor([0, 1, 1, 2]))
    labels, ours = joined.labels(features, mask.float(), 3), model.labels(features, mask.float(), 4)
    assert bool((labels[~mask] == 3).all())
    assert torch.equal(labels[mask], torch.tensor([0, 1, 1, 2])[ours[mask]])
    shares = model.shares(features, mask.float())
    assert torch.allclose(shares.sum(dim=-1), torch.ones(mask.shape), atol=1e-5)


def test_the_number_of_parts_is_the_one_halves_of_the_set_agree_on() -> None:
    features, mask, _ = things(120, kind_spread=0.5, noise=0.3)
    number, stability = choose_part_count(features, mask, seed=0)
    assert number == PARTS
    assert set(stability) == set(range(3, 13))
    assert stability[PARTS] > 0.9 > stability[12]


def test_too_few_patches_to_measure_give_the_fewest_parts() -> None:
    features, mask, _ = things(2)
    assert choose_part_count(features, mask & (torch.rand(mask.shape) < 0.1), seed=0)[0] == 3


@pytest.mark.parametrize(("second", "expected"), [([1, 1, 0, 0], 1.0), ([0, 1, 0, 1], 0.0)])
def test_agreement_of_labellings_is_up_to_names_and_above_chance(second: list[int], expected: float) -> None:
    assert matched_agreement(torch.tensor([0, 0, 1, 1]), torch.tensor(second), 2) == pytest.approx(expected, abs=1e-6)


def second_looks(features: Tensor, mask: Tensor, *, flip_sign: bool) -> SecondLooks:
    """Mirror images of all pictures; `flip_sign`: their features tell which way a thing faces."""
    n, h, w = mask.shape
    place = torch.arange(h * w).view(h, w).flip(1).expand(n, h, w)
    seen = features.flip(2).clone()
    if flip_sign:
        seen[..., -1] *= -1
    return SecondLooks(SampleViews(PatchGrid(seen), torch.arange(n), place), seen, mask.flip(2))


def test_parts_that_a_mirror_swaps_are_taught_to_be_seen_alike() -> None:
    features, mask, _ = things(60, kind_spread=0.3)
    # one channel says which side of the thing a patch is on, and louder than everything else
    side = (torch.arange(mask.shape[2]) - (mask.shape[2] - 1) / 2).sign().view(1, 1, -1, 1).expand(*mask.shape, 1)
    features = torch.cat([features, 3 * features.std() * side], dim=-1)
    again = second_looks(features, mask, flip_sign=True)
    alone = fit_looks_parts(features, mask, 2 * PARTS, seed=0)
    taught = fit_looks_parts(features, mask, 2 * PARTS, seed=0, again=again)
    before, after = (agreement_of_views(model, features, mask, again) for model in (alone, taught))
    assert after > before + 0.1


def test_views_that_disagree_end_the_number_of_parts() -> None:
    features, mask, _ = things(120, kind_spread=0.5, noise=0.3)
    agreeing = second_looks(features, mask, flip_sign=False)
    assert choose_part_count(features, mask, seed=0, again=agreeing)[0] in (PARTS, PARTS + 1)
    elsewhere = SampleViews(agreeing.views.grid, agreeing.views.picture, agreeing.views.place.flip(1))
    assert choose_part_count(features, mask, seed=0, again=replace(agreeing, views=elsewhere))[0] == 3
