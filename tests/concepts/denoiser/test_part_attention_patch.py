"""Columns of parts against the explicit softmax, their sums on one grid, and what regions add to the scores."""

import math

import pytest
import torch
from bestiary.concepts.denoiser.part_attention_patch import (
    PartMapSum,
    feathered,
    full_mask,
    part_columns,
    region_scores,
    token_places,
)
from torch import Tensor
from torch.nn import functional


def draw(rows: int = 2, queries: int = 12, tokens: int = 7, heads: int = 3, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(rows, n, heads * width, generator=generator) for n in (queries, tokens))


def explicit(q: Tensor, k: Tensor, heads: int, parts: list[list[int]], mask: Tensor | float = 0.0) -> Tensor:
    q, k = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k))
    mean = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + mask).softmax(-1).mean(1)  # (R, N, K)
    return torch.stack([mean[..., places].sum(-1) for places in parts], dim=1)


PARTS = [[1], [], [2, 6]]


@pytest.mark.parametrize("score_bytes", [1, 2 * 2 * 12 * 7 * 4, 2**20])
def test_columns_equal_the_softmax_however_many_heads_at_once(score_bytes: int) -> None:
    q, k = draw()
    ours = part_columns(q, k, 3, token_places(PARTS, 7, 7), score_bytes=score_bytes)
    assert ours.shape == (2, 3, 12)
    assert (ours - explicit(q, k, 3, PARTS)).abs().max() < 1e-6
    assert ours[:, 1].abs().max() == 0


@pytest.mark.parametrize("shape", [(12, 7), (2, 12, 7), (1, 12, 7), (2, 3, 12, 7), (2, 1, 1, 7)])
@pytest.mark.parametrize("kind", ["added", "bool"])
def test_masks_of_every_shape_count(shape: tuple[int, ...], kind: str) -> None:
    q, k = draw()
    mask = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    added = mask
    if kind == "bool":
        mask = mask > -0.5
        mask[..., 0] = True
        added = torch.zeros(shape).masked_fill(~mask, -math.inf)
    full = added if added.ndim != 3 else added[:, None]
    ours = part_columns(q, k, 3, token_places(PARTS, 7, 7), mask, score_bytes=1)
    assert (ours - explicit(q, k, 3, PARTS, full)).abs().max() < 1e-6


def test_a_prompt_repeated_to_the_length_of_another_is_folded() -> None:
    q, k = draw()
    short = part_columns(q, k, 3, token_places(PARTS, 7, 7))
    repeated = part_columns(q, k.repeat(1, 3, 1), 3, token_places(PARTS, 7, 21))
    assert (short - repeated).abs().max() < 1e-6


def test_tokens_that_another_pack_appended_take_their_share() -> None:
    q, k = draw()
    longer = torch.cat((k, torch.randn(2, 4, 15, generator=torch.Generator().manual_seed(2))), dim=1)
    ours = part_columns(q, longer, 3, token_places(PARTS, 7, 7))
    assert (ours - explicit(q, longer, 3, PARTS)).abs().max() < 1e-6


def test_places_name_every_repetition() -> None:
    assert token_places([[3], [4, 5], []], 77, 154).tolist() == [[3, 80, -1, -1], [4, 81, 5, 82], [-1] * 4]
    assert token_places([[]], 77, 77).tolist() == [[-1]]


def test_half_precision_stays_close() -> None:
    q, k = draw()
    ours = part_columns(q.bfloat16(), k.bfloat16(), 3, token_places(PARTS, 7, 7))
    assert ours.dtype == torch.float32
    assert (ours - explicit(q, k, 3, PARTS)).abs().max() < 0.02


def test_full_mask_keeps_numbers_and_turns_bool_into_them() -> None:
    assert full_mask(torch.ones(3, 4)).shape == (1, 1, 3, 4)
    assert full_mask(torch.ones(2, 3, 4)).shape == (2, 1, 3, 4)
    assert full_mask(torch.tensor([[True, False]])).tolist() == [[[[0.0, -math.inf]]]]


def test_layers_count_alike_and_parts_only_where_they_are_held() -> None:
    maps = PartMapSum(1, 2, (4, 4), torch.device("cpu"))
    maps.add(torch.full((1, 2, 16), 0.2), (4, 4), [True, True])
    maps.add(torch.full((1, 2, 4), 0.4), (2, 2), [True, False])
    maps_mean = maps.mean()
    assert torch.allclose(maps_mean[0, 0], torch.full((4, 4), 0.3))
    assert maps.held().tolist() == [True, True]
    # the second layer belongs to a prompt without the part: callers give zeros there
    assert PartMapSum(1, 2, (4, 4), torch.device("cpu")).held().tolist() == [False, False]


def test_a_prompt_with_an_area_fills_its_piece_of_the_grid() -> None:
    maps = PartMapSum(2, 1, (4, 4), torch.device("cpu"))
    maps.add(torch.full((2, 1, 8), 0.5), (4, 2), [True], area=(8, 4, 0, 4), latent=(8, 8))
    assert maps.mean()[1, 0].tolist() == [[0, 0, 0.5, 0.5]] * 4
    # the whole and the piece overlap: the mean of both there
    maps.add(torch.full((2, 1, 16), 0.1), (4, 4), [True])
    assert torch.allclose(maps.mean()[0, 0, 0], torch.tensor([0.1, 0.1, 0.3, 0.3]))


def test_two_sums_are_taken_together_as_if_they_were_one() -> None:
    first, second, whole = (PartMapSum(1, 2, (2, 2), torch.device("cpu")) for _ in range(3))
    for sums, value, held in ((first, 0.2, [True, False]), (second, 0.6, [True, True])):
        for one in (sums, whole):
            one.add(torch.full((1, 2, 4), value), (2, 2), held)
    first.take_in(second)
    assert torch.equal(first.mean(), whole.mean()) and torch.equal(first.held(), whole.held())


def test_areas_at_the_edge_keep_at_least_one_cell() -> None:
    maps = PartMapSum(1, 1, (2, 2), torch.device("cpu"))
    maps.add(torch.ones(1, 1, 1), (1, 1), [True], area=(1, 1, 63, 63), latent=(64, 64))
    assert maps.mean()[0, 0].tolist() == [[0, 0], [0, 1]]


def half(height: int = 40, width: int = 50) -> Tensor:
    mask = torch.zeros(1, height, width)
    mask[..., : width // 2] = 1
    return mask


def test_scores_are_the_logarithm_of_the_area_resized_mask() -> None:
    scores = region_scores(half(), 1.0, (4, 6)).view(4, 6)
    theirs = functional.interpolate(half()[None], (4, 6), mode="area")[0, 0].clamp(min=1e-4).log()
    assert torch.allclose(scores, theirs, atol=1e-5)
    assert scores.min().item() == pytest.approx(math.log(1e-4))
    assert scores.max().item() == 0


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_strength_is_the_weight_taken_away_outside(strength: float) -> None:
    weights = region_scores(half(), strength, (4, 2)).exp().view(4, 2)
    assert torch.allclose(weights[:, 0], torch.ones(4))
    assert torch.allclose(weights[:, 1], torch.full((4,), max(1 - strength, 1e-4)))


def test_strength_0_and_a_mask_of_ones_add_exactly_nothing() -> None:
    assert region_scores(half(), 0.0, (4, 6)).abs().max() == 0
    assert region_scores(torch.ones(1, 8, 8), 1.0, (8, 8)).abs().max() == 0


def test_an_area_sees_its_piece_of_the_mask() -> None:
    right = region_scores(half(8, 8), 1.0, (4, 2), area=(8, 4, 0, 4), latent=(8, 8))
    left = region_scores(half(8, 8), 1.0, (4, 2), area=(8, 4, 0, 0), latent=(8, 8))
    assert torch.allclose(right, torch.full((1, 8), math.log(1e-4)))
    assert left.abs().max() == 0


def test_masks_coarser_than_the_layer_are_stretched() -> None:
    scores = region_scores(half(1, 2), 1.0, (4, 4)).view(4, 4)
    assert scores[:, :2].abs().max() == 0
    assert scores[:, 2:].max().item() == pytest.approx(math.log(1e-4))


def test_feather_softens_the_edge_alone() -> None:
    soft = feathered(half(64, 64), 16)
    assert soft.shape == (1, 64, 64)
    row = soft[0, 32]
    assert row[0] > 0.999 and row[-1] < 0.001
    assert 0.3 < row[31] < 0.7
    assert (row.diff() <= 1e-6).all()
    # the edge takes about the asked pixels
    assert 8 <= int(((row > 0.05) & (row < 0.95)).sum()) <= 20


def test_feather_works_along_both_edges() -> None:
    across = feathered(half(64, 64), 16)
    down = feathered(half(64, 64).transpose(1, 2), 16)
    assert torch.allclose(across, down.transpose(1, 2), atol=1e-6)


def test_feather_0_and_even_masks_stay_as_they_are() -> None:
    assert feathered(half(), 0) is not None
    assert torch.equal(feathered(half(), 0), half())
    assert torch.equal(feathered(torch.ones(2, 30, 20), 50), torch.ones(2, 30, 20))


def test_large_masks_are_blurred_at_a_moderate_size() -> None:
    soft = feathered(half(512, 1024), 64)
    assert soft.shape == (1, 128, 256)
    assert soft.min() >= 0 and soft.max() <= 1
