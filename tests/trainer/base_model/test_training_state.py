"""Tests of stage states: resume, moving average, schedule, log."""

import json
import time

import pytest
import torch
from bestiary.trainer.base_model.training_state import (
    RunLog,
    StagePlan,
    StageState,
    rate_share,
    step_generator,
)
from torch import nn


def _state(path, seed: int = 0) -> StageState:
    torch.manual_seed(seed)
    return StageState({"layer": nn.Linear(4, 3)}, path, learning_rate=0.01, ema_decay=0.9)


def _train(state: StageState, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        inputs = torch.randn(8, 4, generator=step_generator(1, 1, state.step))
        loss = (state.modules["layer"](inputs) - inputs[:, :3]).square().mean()
        losses.append(float(loss.detach()))
        state.descend(loss, rate_share(state.step, 20, warmup=2))
    return losses


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = _state(tmp_path / "whole.pt")
    theirs = _train(whole, 12)
    first = _state(tmp_path / "split.pt")
    ours = _train(first, 5)
    first.save()
    second = _state(tmp_path / "split.pt", seed=99)
    assert second.load() and second.step == 5
    ours += _train(second, 7)
    assert ours == theirs
    for a, b in zip(whole.parameters + whole.averages, second.parameters + second.averages, strict=True):
        assert torch.equal(a, b)


def test_loading_without_a_file_says_no(tmp_path):
    assert _state(tmp_path / "none.pt").load() is False


def test_swapping_averages_twice_changes_nothing(tmp_path):
    state = _state(tmp_path / "x.pt")
    _train(state, 6)
    weights, averages = ([t.detach().clone() for t in some] for some in (state.parameters, state.averages))
    state.swap_averages()
    assert all(torch.equal(a, b) for a, b in zip(state.parameters, averages, strict=True))
    state.swap_averages()
    assert all(torch.equal(a, b) for a, b in zip(state.parameters, weights, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(weights, averages, strict=True))


def test_a_saved_state_leaves_no_temporary_file(tmp_path):
    state = _state(tmp_path / "x.pt")
    state.save()
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_the_learning_rate_rises_stays_and_falls():
    shares = [rate_share(step, 1000, warmup=100, decay_from=0.6) for step in range(1001)]
    assert shares[0] == pytest.approx(0.01) and shares[99] == 1 and shares[100:600] == [1.0] * 500
    falling = shares[600:]
    assert all(a >= b for a, b in zip(falling, falling[1:], strict=False)) and falling[-1] == pytest.approx(0.02)


def test_step_numbers_are_independent_of_the_past():
    ours, theirs = (torch.randn(4, generator=step_generator(1, 2, 7)) for _ in range(2))
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, torch.randn(4, generator=step_generator(1, 2, 8)))
    assert not torch.equal(ours, torch.randn(4, generator=step_generator(1, 1, 7)))


def test_a_plan_knows_its_deadline():
    plan = StagePlan(seed=0, steps=1, batch=1, save_every=1)
    assert not plan.expired()
    assert StagePlan(0, 1, 1, 1, deadline=time.monotonic() - 1).expired()
    assert not StagePlan(0, 1, 1, 1, deadline=time.monotonic() + 100).expired()


def test_log_lines_are_json(tmp_path):
    log = RunLog(tmp_path / "deep" / "log.jsonl")
    log.write(stage="a", step=1)
    log.write(stage="a", step=2)
    lines = [json.loads(line) for line in (tmp_path / "deep" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and "time" in lines[0]
