"""Tests of the gate for painted scenes: each fault of a picture is found and named, a good one passes."""

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.scene_gate import MOST_FIDELITY, SceneLimits, judge_scene


@pytest.fixture
def scene() -> tuple[np.ndarray, np.ndarray]:
    """A canvas `(64, 96, 3)` with a bright square on a patterned place, and the mask of the square."""
    random = np.random.default_rng(0)
    canvas = (0.3 + 0.2 * random.random((64, 96, 3))).astype(np.float32)
    mask = np.zeros((64, 96), np.uint8)
    mask[16:48, 32:64] = 255
    canvas[mask > 0] = (0.8, 0.4, 0.3)
    return canvas, mask


def test_an_unchanged_scene_is_exact_and_kept(scene):
    canvas, mask = scene
    judged = judge_scene(canvas, canvas, mask)
    assert (judged.fidelity, judged.faults) == (MOST_FIDELITY, ()) and abs(judged.seam - 1) < 1e-6


def test_fidelity_is_the_peak_signal_to_noise_ratio_inside_the_subjects(scene):
    canvas, mask = scene
    painted = canvas + np.float32(0.1)
    judged = judge_scene(painted, canvas, mask)
    assert abs(judged.fidelity - 20) < 0.01
    assert judged.faults[0].startswith("subjects changed: 20.0 dB, at least 30.0 are wanted")
    assert not judge_scene(painted, canvas, mask, SceneLimits(fidelity=None)).faults


def test_an_empty_place_is_found(scene):
    canvas, mask = scene
    painted = np.where(mask[..., None] > 0, canvas, np.float32(0.4))
    faults = judge_scene(painted, canvas, mask).faults
    assert len(faults) == 1 and faults[0].startswith("empty: the place varies by 0.000")


def test_a_seam_is_found(scene):
    canvas, mask = scene
    soft = np.where(mask[..., None] > 0, canvas, canvas + np.float32(0.12))
    hard = np.where(mask[..., None] > 0, canvas, canvas - np.float32(0.3))
    step = judge_scene(hard, canvas, mask, SceneLimits(seam=2)).seam
    assert step > 2 > judge_scene(soft, canvas, mask).seam
    assert judge_scene(hard, canvas, mask, SceneLimits(seam=2)).faults[0].startswith("seams: the edge")


def test_a_thing_beside_the_subjects_is_found(scene):
    canvas, mask = scene
    things = mask.copy()
    assert judge_scene(canvas, canvas, mask, things=things).extra == 0
    things[2:14, 70:90] = 255
    judged = judge_scene(canvas, canvas, mask, things=things)
    assert abs(judged.extra - 12 * 20 / 1024) < 1e-9 and judged.faults[0].startswith("extra: something as large as 23%")


def test_faults_say_what_is_wrong(scene):
    canvas, mask = scene
    with pytest.raises(BestiaryError, match=r"differ in size \(96 x 60, 96 x 64\): all must be equal"):
        judge_scene(canvas[:60], canvas, mask)
    with pytest.raises(BestiaryError, match="the mask shows no subject"):
        judge_scene(canvas, canvas, mask * 0)
