"""The memory estimate against what a real step takes, without computing anything and without traces."""

import pytest
import torch
from bestiary.trainer.learning.parts.settings import load_recipe
from bestiary.trainer.training.memory_estimate import StorageHighWater, estimate_memory, measure_memory
from bestiary.trainer.training.train_parts import PartTask
from bestiary.trainer.training.training_setup import TrainingSetup, prepare


@pytest.fixture(scope="module")
def found(tmp_path_factory, make_discovery):
    return make_discovery(tmp_path_factory.mktemp("memory"))


def setup_of(found, folder, **flags: object) -> TrainingSetup:
    flags = {"images.size": 64, "run.preview_every": 0, "run.dtype": "fp32", "run.device": "cpu", **flags}
    return prepare(PartTask(load_recipe(None, {"discovery.folder": found, "base.path": str(folder), **flags})))


def test_the_high_water_mark_counts_what_lives_at_once() -> None:
    counter = StorageHighWater()
    with counter:
        first = torch.zeros(1000)  # 4000 bytes
        view = first.view(10, 100)[1:]
        del first
        second = torch.ones(500) + 1  # two of 2000 bytes for a moment
        del view
        third = torch.zeros(250)
    assert counter.peak == 4000 + 2 * 2000
    assert counter.now == 2000 + 1000
    del second, third
    assert counter.now == 0


def test_tensors_that_were_there_do_not_count() -> None:
    known, counter = torch.zeros(1000), StorageHighWater()
    counter.ignore([known])
    with counter:
        known.add_(1)
        known.view(10, 100).mul_(2)
    assert counter.peak == 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_is_what_a_step_takes(tiny_folder, found, checkpointing: bool) -> None:
    setup = setup_of(found, tiny_folder("bestiary-demo"), **{"base.checkpointing": checkpointing})
    batch = setup.batches.draw(0, 0)
    ours = estimate_memory(setup.objective, batch)
    theirs = measure_memory(setup.objective, batch)
    assert (ours.frozen, ours.learned) == (theirs.frozen, theirs.learned)
    assert ours.activations == pytest.approx(theirs.activations, rel=0.02)
    assert ours.total == ours.frozen + ours.learned + ours.activations


def test_estimating_computes_nothing_and_leaves_gradients_alone(tiny_folder, found) -> None:
    setup = setup_of(found, tiny_folder("bestiary-demo"))
    parameter = next(setup.objective.parameters())
    parameter.grad = torch.full_like(parameter, 7.0)
    before = parameter.detach().clone()
    small = estimate_memory(setup.objective, setup.batches.draw(0, 0))
    assert torch.equal(parameter, before) and (parameter.grad == 7).all()
    averaged = estimate_memory(setup.objective, setup.batches.draw(0, 0), ema=True)
    assert averaged.learned * 3 == small.learned * 4
    larger = setup_of(found, tiny_folder("bestiary-demo"), **{"optimizer.batch_size": 8})
    assert estimate_memory(larger.objective, larger.batches.draw(0, 0)).activations > 2 * small.activations
