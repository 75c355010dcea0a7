"""Training state: learning rates by step, the running average, and bit-exact restoring."""

from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.run.fit import ParameterGroup, TrainingState, schedule_factor
from bestiary.trainer.learning.run.run_folder import RunFolder
from torch import nn


def make_state(ema: float = 0.0, width: int = 3) -> TrainingState:
    table = nn.Parameter(torch.linspace(-1, 1, 4 * width).view(4, width))
    bias = nn.Parameter(torch.linspace(0, 1, width))
    groups = [ParameterGroup("tokens", {"table": table}, 0.1), ParameterGroup("lora", {"bias": bias}, 0.01, 0.5)]
    return TrainingState(groups, ema=ema)


def train(state: TrainingState, steps: int) -> None:
    for _ in range(steps):
        table, bias = state.parameters.values()
        ((table * (state.step + 1)).sin().sum() + (bias * table).square().sum()).backward()
        state.advance()


def test_warm_up_then_constant_or_cosine() -> None:
    warm = [schedule_factor(step, 100, 4, "constant") for step in range(6)]
    assert warm == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert schedule_factor(0, 100, 0, "cosine") == 1
    assert schedule_factor(50, 100, 0, "cosine") == pytest.approx(0.505)
    assert schedule_factor(99, 100, 0, "cosine") == pytest.approx(0.01, abs=1e-3)


def test_every_group_keeps_its_own_rate_and_decay() -> None:
    state = make_state()
    state.set_learning_rates(0.5)
    assert [(g["lr"], g["weight_decay"]) for g in state.optimizer.param_groups] == [(0.05, 0), (0.005, 0.5)]


def test_the_first_step_moves_by_the_learning_rate_as_adam_does() -> None:
    state = make_state()
    before = state.parameters["tokens.table"].detach().clone()
    state.parameters["tokens.table"].grad = torch.full_like(before, 3.0)
    state.advance()
    moved = before - state.parameters["tokens.table"].detach()
    torch.testing.assert_close(moved, torch.full_like(before, 0.1))
    assert state.step == 1


def test_a_young_average_follows_fast_and_an_old_one_slowly() -> None:
    state = make_state(ema=0.9)
    start = state.average["tokens.table"].clone()
    train(state, 1)
    theirs = torch.lerp(start, state.parameters["tokens.table"].detach(), 1 - 2 / 11)
    torch.testing.assert_close(state.average["tokens.table"], theirs)
    state.step = 10_000
    before = state.average["tokens.table"].clone()
    train(state, 1)
    torch.testing.assert_close(
        state.average["tokens.table"], torch.lerp(before, state.parameters["tokens.table"].detach(), 0.1)
    )


def test_averaged_weights_are_lent_and_given_back_after_a_fault() -> None:
    state = make_state(ema=0.9)
    train(state, 3)
    own = {name: p.detach().clone() for name, p in state.parameters.items()}
    average = {name: tensor.clone() for name, tensor in state.average.items()}
    with pytest.raises(RuntimeError), state.averaged():
        assert all(torch.equal(state.parameters[name], average[name]) for name in own)
        raise RuntimeError
    assert all(torch.equal(state.parameters[name], own[name]) for name in own)
    assert all(torch.equal(state.average[name], average[name]) for name in own)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_restored_state_goes_on_bit_for_bit(tmp_path: Path, ema: float) -> None:
    run = RunFolder.create(tmp_path / "run")
    whole, first, second = make_state(ema), make_state(ema), make_state(ema)
    train(whole, 7)
    train(first, 3)
    run.save_state(first.step, first.tensors(), first.notes(), keep=1)
    second.restore(run.newest_state())
    train(second, 4)
    ours, theirs = second.tensors(), whole.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if not name.startswith("random."))


def test_random_number_generators_are_restored(tmp_path: Path) -> None:
    run, state = RunFolder.create(tmp_path / "run"), make_state()
    torch.manual_seed(5)
    np.random.seed(5)
    np.random.rand(3)
    run.save_state(0, state.tensors(), state.notes(), keep=1)
    theirs = (torch.rand(3), np.random.rand(3))
    make_state().restore(run.newest_state())
    assert torch.equal(torch.rand(3), theirs[0]) and np.array_equal(np.random.rand(3), theirs[1])


def test_a_state_of_other_shapes_is_refused(tmp_path: Path) -> None:
    run, state = RunFolder.create(tmp_path / "run"), make_state()
    run.save_state(7, state.tensors(), state.notes(), keep=1)
    message = r"state of step 7 does not match: parameter.tokens.table has shape \(4, 3\), expected \(4, 5\)"
    with pytest.raises(BestiaryError, match=message):
        make_state(width=5).restore(run.newest_state())
    with pytest.raises(BestiaryError, match=r"average.tokens.table is missing"):
        make_state(ema=0.5).restore(run.newest_state())
