"""The gate of repainted scenes: nothing painted, a halo, an empty place, another subject; and what is fit."""

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.repaint_gate import RepaintLimits, extra_share, judge_repaint, seam, subject_psnr

HEIGHT, WIDTH = 96, 128


def disc(x: int, y: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.where((columns - x) ** 2 + (rows - y) ** 2 < radius**2, 255, 0).astype(np.uint8)


@pytest.fixture
def union() -> np.ndarray:
    return disc(64, 48, 24)


def textured(level: int, seed: int = 0) -> np.ndarray:
    """A place of one brightness with grain."""
    grain = np.random.default_rng(seed).integers(-30, 31, (HEIGHT, WIDTH, 1))
    return np.clip(level + grain, 0, 255).repeat(3, axis=2).astype(np.uint8)


@pytest.fixture
def canvas(union: np.ndarray) -> np.ndarray:
    return np.where(union[..., None] > 0, np.uint8([200, 60, 40]), textured(120))


def on(place: np.ndarray, canvas: np.ndarray, union: np.ndarray) -> np.ndarray:
    return np.where(union[..., None] > 0, canvas, place)


def test_a_new_place_is_fit_and_its_scores_are_told(canvas, union) -> None:
    restored = on(textured(60, 1), canvas, union)
    painted = np.clip(restored.astype(int) + 10, 0, 255).astype(np.uint8)
    verdict = judge_repaint(painted, restored, canvas, union)
    assert verdict.reasons == ()
    assert set(verdict.scores) == {"psnr", "change", "detail", "seam"}
    assert verdict.scores["psnr"] == pytest.approx(20 * np.log10(255 / 10), abs=0.01)
    assert verdict.scores["change"] == pytest.approx(60 / 255, abs=0.01)


def test_grain_of_the_place_is_no_seam_and_a_halo_is_one(canvas, union) -> None:
    clean = on(textured(60, 1), canvas, union)
    assert seam(clean, union) < 0.08
    # a ring of the old, lighter place is left around the subject
    halo = np.where((disc(64, 48, 28) > 0)[..., None], textured(200), clean)
    halo = on(halo, canvas, union)
    assert seam(halo, union) > 0.4
    verdict = judge_repaint(halo, halo, canvas, union)
    assert len(verdict.reasons) == 1 and verdict.reasons[0].startswith("a seam shows around the subjects (seam 0.")


def test_a_place_that_is_as_before_or_empty_is_refused(canvas, union) -> None:
    same = judge_repaint(canvas, canvas, canvas, union)
    assert [reason.split(" (")[0] for reason in same.reasons] == ["the model painted nothing new"]
    grey = on(np.full_like(canvas, 40), canvas, union)
    empty = judge_repaint(grey, grey, canvas, union)
    assert [reason.split(" (")[0] for reason in empty.reasons] == ["the place around the subjects is empty"]
    loose = RepaintLimits(least_change=0, least_detail=0)
    assert judge_repaint(canvas, canvas, canvas, union, loose).reasons == ()


def test_further_subjects_are_found_beside_the_known_ones(canvas, union) -> None:
    restored = on(textured(60, 1), canvas, union)
    other = disc(16, 20, 12)
    seen = judge_repaint(restored, restored, canvas, union, find_things=lambda picture: np.maximum(union, other))
    assert [reason.split(" (")[0] for reason in seen.reasons] == ["another subject was painted"]
    assert seen.scores["extra"] == pytest.approx((other > 0).mean(), abs=1e-3)
    known = judge_repaint(restored, restored, canvas, union, find_things=lambda picture: disc(64, 48, 27))
    assert known.reasons == () and known.scores["extra"] == 0
    speck = disc(10, 10, 2)
    assert extra_share(speck, union) == 0


def test_fidelity_is_that_of_whole_pixels(canvas, union) -> None:
    assert subject_psnr(canvas, canvas, union) == 100
    assert subject_psnr(canvas, canvas, np.zeros_like(union)) == 100
    assert subject_psnr(255 - canvas, canvas, union) < 10


def test_a_subject_that_fills_the_picture_has_no_place_to_judge(canvas) -> None:
    whole = np.full(canvas.shape[:2], 255, np.uint8)
    verdict = judge_repaint(canvas, canvas, canvas, whole)
    assert verdict.reasons == () and "change" not in verdict.scores


def test_limits_and_sizes_are_checked(canvas, union) -> None:
    with pytest.raises(BestiaryError, match="most_seam 2 is out of range"):
        RepaintLimits(most_seam=2)
    with pytest.raises(BestiaryError, match="128 x 96, 128 x 96, 128 x 96, 64 x 96"):
        judge_repaint(canvas, canvas, canvas, union[:, :64])
