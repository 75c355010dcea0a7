import logging

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_map.foreground import (
    CentroidForeground,
    border_patches,
    choose_foreground_cluster,
    fit_foreground,
    foreground_from_file,
    foreground_margin,
    refit_foreground,
    smooth_within_pictures,
)
from torch import Tensor


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestiary.concepts.part_map.foreground._TRAINING_STEPS", 100)
    monkeypatch.setattr("bestiary.concepts.part_map.foreground._BATCH_ROWS", 512)


def scenes(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Things of many looks before a night or a day sky, over one ground: features (N, 12, 12, 8), truth (N, 12, 12).

    Night and day differ more than anything else, so a two-way clustering separates these.
    """
    generator = torch.Generator().manual_seed(seed)
    night, ground, thing = torch.randn(3, 8, generator=generator)
    features, truth = torch.zeros(count, 12, 12, 8), torch.zeros(count, 12, 12, dtype=torch.bool)
    for index in range(count):
        features[index] = 2 * night * (-1) ** index
        features[index, 8:] += ground
        row, column = torch.randint(2, 6, (2,), generator=generator).tolist()
        look = thing + 0.5 * torch.randn(8, generator=generator)
        features[index, row : row + 5, column : column + 5] = night * (-1) ** index + look
        truth[index, row : row + 5, column : column + 5] = True
    features = features + 0.2 * torch.randn(features.shape, generator=generator)
    return features / features.square().sum(dim=-1).mean().sqrt(), truth


def iou(ours: Tensor, theirs: Tensor) -> float:
    return float((ours & theirs).sum() / (ours | theirs).sum())


def blob(border: bool) -> tuple[Tensor, Tensor]:
    """One look inside a blob and another outside; the blob lies in the centre or along the borders."""
    truth = torch.zeros(8, 12, 12, dtype=torch.bool)
    if border:
        truth[:, border_patches(12, 12)] = True
    else:
        truth[:, 3:9, 3:9] = True
    noise = 0.1 * torch.randn(8, 12, 12, 4, generator=torch.Generator().manual_seed(0))
    looks = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    return looks[truth.long()] + noise, truth


def test_things_are_found_though_night_and_day_differ_more() -> None:
    features, truth = scenes(32)
    model = fit_foreground(features, seed=0)
    assert iou(model.probability(features) > 0.5, truth) > 0.85
    assert model.margin > 0.3


def test_new_pictures_are_treated_one_by_one() -> None:
    model = fit_foreground(scenes(32)[0], seed=0)
    features, truth = scenes(10)
    together = model.probability(features)
    alone = torch.cat([model.probability(features[[index]]) for index in range(10)])
    assert torch.allclose(together, alone, atol=1e-6)
    assert iou(alone > 0.5, truth) > 0.85


def test_a_centred_blob_is_the_foreground_whichever_look_it_has(caplog: pytest.LogCaptureFixture) -> None:
    features, truth = blob(border=False)
    with caplog.at_level(logging.WARNING):
        ours = fit_foreground(features, seed=0).probability(features) > 0.5
        swapped = fit_foreground(features[..., [1, 0, 2, 3]], seed=0).probability(features[..., [1, 0, 2, 3]]) > 0.5
    assert iou(ours, truth) > 0.95
    assert iou(swapped, truth) > 0.95
    assert not caplog.records


def test_pictures_without_anything_apart_from_the_borders_warn(caplog: pytest.LogCaptureFixture) -> None:
    features = torch.randn(8, 12, 12, 4, generator=torch.Generator().manual_seed(0)) * 0.5
    with caplog.at_level(logging.WARNING):
        model = fit_foreground(features, seed=0)
    assert model.margin < 0.3
    assert "the foreground is doubtful: it covers the centre only" in caplog.text
    assert "--flip-foreground" in caplog.text


def test_flipping_gives_the_complement() -> None:
    features, _ = blob(border=False)
    ours = fit_foreground(features, seed=0, flip=True)
    theirs = fit_foreground(features, seed=0)
    assert torch.allclose(ours.probability(features), 1 - theirs.probability(features))
    assert ours.margin == pytest.approx(-theirs.margin, abs=1e-6)


@pytest.mark.parametrize("flip", [False, True])
def test_refitting_learns_a_better_mask(flip: bool) -> None:
    features, truth = scenes(32)
    early = fit_foreground(features, seed=0, rounds=1, flip=flip)
    ours = refit_foreground(early, features, None, truth ^ flip, seed=1)
    assert iou((ours.probability(features) > 0.5) ^ flip, truth) > 0.9
    assert ours.flipped == flip
    assert ours.margin == pytest.approx(foreground_margin(truth ^ flip))


def test_saliency_helps_where_looks_say_nothing() -> None:
    _, truth = scenes(24)
    features = 0.3 * torch.randn(24, 12, 12, 4, generator=torch.Generator().manual_seed(5))
    saliency = truth.float() + 0.2 * torch.randn(24, 12, 12, generator=torch.Generator().manual_seed(6))
    model = fit_foreground(features, saliency, seed=0)
    assert iou(model.probability(features, saliency) > 0.5, truth) > 0.7


def test_features_of_another_source_are_refused() -> None:
    model = fit_foreground(scenes(8)[0], seed=0, rounds=1)
    with pytest.raises(BestiaryError, match="the patches have 5 channels, but the foreground model was fitted on 8"):
        model.probability(torch.randn(1, 12, 12, 5))


def test_tiny_grids_are_refused() -> None:
    with pytest.raises(BestiaryError, match="a grid of 3 x 5 patches has no centre"):
        fit_foreground(torch.randn(2, 3, 5, 4), seed=0)


def test_other_grid_sizes_work() -> None:
    model = fit_foreground(scenes(16)[0], seed=0, rounds=2)
    assert model.probability(torch.randn(2, 9, 15, 8)).shape == (2, 9, 15)


def test_margin_by_hand() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1:3, 1:3] = True
    mask[0, 0, :] = True
    assert foreground_margin(mask) == pytest.approx(1 - 4 / 12)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_cluster_in_the_centre_is_chosen_in_both_orders(order: tuple[int, int]) -> None:
    _, truth = blob(border=False)
    labels = torch.tensor(order)[truth.long()]
    index, margin = choose_foreground_cluster(labels)
    assert index == order[1]
    assert margin == pytest.approx(1.0)


def test_centroid_foreground_is_the_nearest_of_two_by_cosine() -> None:
    model = CentroidForeground(torch.tensor([[1.0, 0.0], [0.0, 5.0]]), 1)
    features = torch.tensor([[[[2.0, 1.0], [1.0, 2.0]]]])
    assert model.probability(features).tolist() == [[[0.0, 1.0]]]


def test_models_come_back_from_their_tensors_and_settings() -> None:
    features, _ = blob(border=False)
    for model in (fit_foreground(features, seed=0, rounds=1), CentroidForeground(torch.randn(2, 4), 1, 0.4)):
        again = foreground_from_file(model.tensors(), model.settings())
        assert torch.equal(again.probability(features), model.probability(features))
        assert again.settings() == model.settings()


def test_smoothing_removes_a_lone_patch_and_weight_0_changes_nothing() -> None:
    logit = torch.full((1, 5, 5), -2.0)
    logit[0, 2, 2] = 0.5
    features = torch.zeros(1, 5, 5, 2)
    assert torch.equal(smooth_within_pictures(logit, features, 0.0), torch.sigmoid(logit))
    assert float(smooth_within_pictures(logit, features, 2.0)[0, 2, 2]) < 0.5
