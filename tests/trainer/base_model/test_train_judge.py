"""Tests of the judge's training: lessons, loss, accuracy, a whole run on a handful of drawings."""

import numpy as np
import pytest
import torch
from bestiary.demo.attribute_judge import AttributeJudge
from bestiary.demo.species import PARTS, is_held_out
from bestiary.trainer.base_model import train_judge as module
from bestiary.trainer.base_model.train_judge import (
    VISIBLE_PIXELS,
    JudgeLessons,
    any_species,
    draw_lessons,
    judge_accuracy,
    judge_loss,
    main,
    train_judge,
)


@pytest.fixture(scope="module")
def lessons():
    return draw_lessons(6, 3)


def test_the_judge_learns_held_out_looks_too():
    rng = np.random.default_rng(0)
    looks = [(part, any_species(rng).look(part)) for part in PARTS * 12]
    share = np.mean([is_held_out(part, look.shape, look.pattern) for part, look in looks])
    assert 0.1 < share < 0.6


def test_lessons_hold_truth_and_cover_of_every_part(lessons):
    assert lessons.images.shape == (6, 3, 128, 128) and lessons.images.dtype == torch.uint8
    assert lessons.classes.shape == (6, 5, 3) and lessons.shares.shape == (6, 5, 16, 16)
    assert float(lessons.shares.min()) >= 0 and float(lessons.shares.float().sum(dim=1).max()) <= 1.01
    pixels = lessons.shares.float().sum(dim=(2, 3)) * 64
    assert torch.equal(lessons.visible, pixels >= VISIBLE_PIXELS)
    again = draw_lessons(6, 3)
    assert torch.equal(again.images, lessons.images) and torch.equal(again.classes, lessons.classes)


def test_hidden_parts_are_neither_taught_nor_counted(lessons):
    torch.manual_seed(0)
    judge = AttributeJudge((32, 32, 32, 32)).eval()
    images, shares = lessons.images.float() / 255, lessons.shares.float()
    visible = torch.ones(6, 5, dtype=torch.bool)
    visible[:, 2] = False
    wrong = lessons.classes.clone()
    wrong[:, 2] = (wrong[:, 2] + 1) % 5
    ours, theirs = (judge_loss(judge, images, classes, shares, visible) for classes in (wrong, lessons.classes))
    torch.testing.assert_close(ours, theirs)
    counted = [
        judge_accuracy(judge, JudgeLessons(lessons.images, c, shares, visible)) for c in (wrong, lessons.classes)
    ]
    assert counted[0] == counted[1]


def test_accuracy_is_the_share_of_visible_parts_judged_right(lessons, monkeypatch):
    judge = AttributeJudge((32, 32, 32, 32))
    answers = lessons.classes.clone()
    answers[0, :, 0] += 1  # all five colours of one picture wrong
    monkeypatch.setattr(judge, "classes", lambda images: answers)
    visible = torch.ones(6, 5, dtype=torch.bool)
    shown = JudgeLessons(lessons.images, lessons.classes, lessons.shares, visible)
    assert judge_accuracy(judge, shown) == {"color": round(5 / 6, 4), "pattern": 1.0, "shape": 1.0}


@pytest.mark.train
def test_a_run_writes_a_judge_that_loads_and_repeats_by_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "judge_accuracy", lambda judge, lessons: {"pictures": float(len(lessons.images))})
    monkeypatch.setattr(module, "FRESH_DRAWINGS", 2)
    ours, theirs, other = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors"))
    assert train_judge(ours, seed=1, pictures=4, steps=2, batch=2) == {"pictures": 2.0}
    main(["--out", str(other), "--seed", "2", "--pictures", "4", "--steps", "1"])
    train_judge(theirs, seed=1, pictures=4, steps=2, batch=2)
    assert ours.read_bytes() == theirs.read_bytes() != other.read_bytes()
    assert ours.stat().st_size < 1_000_000
    assert AttributeJudge.load(ours).judge(torch.rand(1, 3, 128, 128))["tail"]["shape"].shape == (1,)
