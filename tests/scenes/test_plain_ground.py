"""Things on plain grounds, and grounds that are not plain."""

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.plain_ground import segment_plain


def disc(size: int, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (radius - np.hypot(rows - size / 2, columns - size / 2) + 0.5).clip(0, 1)


def on(ground: np.ndarray, alpha: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (alpha[..., None] * np.array(colour) + (1 - alpha[..., None]) * ground).round().clip(0, 255).astype(np.uint8)


def iou(ours: np.ndarray, theirs: np.ndarray) -> float:
    ours, theirs = ours >= 0.5, theirs >= 0.5
    return float((ours & theirs).sum() / (ours | theirs).sum())


def test_a_red_disc_on_grey() -> None:
    alpha = disc(128, 40)
    found = segment_plain(on(np.full(3, 128.0), alpha, (210, 30, 30)))
    assert found.shape == (128, 128) and found.dtype == np.float32
    assert iou(found, alpha) >= 0.98
    assert np.abs(found - alpha).mean() < 0.01 and found[64, 64] == 1 and found[0, 0] == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_ground_that_changes_evenly_and_has_grain(seed: int) -> None:
    generator = np.random.default_rng(seed)
    ramp = np.linspace(150, 240, 96)[None, :, None] + np.linspace(-20, 20, 96)[:, None, None]
    grain = generator.normal(0, 3, (96, 96, 3))
    alpha = disc(96, 28)
    assert iou(segment_plain(on(ramp + grain, alpha, (40, 90, 60))), alpha) >= 0.97


def test_a_foot_may_reach_the_border() -> None:
    alpha = disc(100, 30)
    alpha[60:, 45:55] = 1
    found = segment_plain(on(np.full(3, 200.0), alpha, (30, 30, 90)))
    assert iou(found, alpha) >= 0.98


def test_a_ground_that_is_not_plain_is_refused() -> None:
    squares = np.indices((96, 96)).sum(0) // 12 % 2
    with pytest.raises(
        BestiaryError, match=r"its border is not plain: \d+% of it differs .* at most 10% may; give a mask"
    ):
        segment_plain(np.dstack([squares * 160 + 40] * 3).astype(np.uint8))
    halves = np.full((96, 96, 3), 220, np.uint8)
    halves[60:] = (90, 60, 40)
    with pytest.raises(BestiaryError, match="its border is not plain"):
        segment_plain(halves)


def test_nothing_on_a_plain_ground_gives_nothing() -> None:
    found = segment_plain(np.full((40, 50, 3), 77, np.uint8))
    assert found.shape == (40, 50) and (found == 0).all()
    assert (segment_plain(np.full((1, 1, 3), 77, np.uint8)) == 0).all()
