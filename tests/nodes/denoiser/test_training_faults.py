"""Out of memory told with what to lower, by kind of training; random generators left as they were."""

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError

CUDA = "CUDA out of memory. Tried to allocate 20.00 MiB"
CPU = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"


def _settings(kind: str, **changes: object) -> object:
    from bestiary.trainer.learning.parts.settings import load_recipe
    from bestiary.trainer.learning.spectrum.spectrum_settings import load_spectrum_recipe

    return {"parts": load_recipe, "spectrum": load_spectrum_recipe}[kind](None, changes)


def _told(kind: str, fault: Exception, **changes: object) -> str:
    from bestiary.nodes.denoiser.training_faults import memory_told

    with pytest.raises(BestiaryError) as raised, memory_told(_settings(kind, **changes), 512):
        raise fault
    # the fault holds the tensors of the step, so nothing may hold the fault
    assert raised.value.__cause__ is None and raised.value.__context__ is None
    return str(raised.value)


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError(CUDA), RuntimeError(CPU), RuntimeError("not enough memory")])
def test_part_trainings_are_told_what_to_lower(fault: Exception) -> None:
    assert _told("parts", fault) == (
        "out of memory in training: lower batch_size 2 (raise accumulation in its place), or memory by switching recompute on, "
        "or the image_size 512 of Training Images, or rank 4, or close other programs that use the device"
    )


def test_spectrum_trainings_are_told_what_they_have() -> None:
    assert _told("spectrum", torch.OutOfMemoryError(CUDA)) == (
        "out of memory in training: lower batch_size 2 (raise steps, or optimizer.accumulation in more_settings, in its place), "
        "or memory by switching recompute on, or the image_size 512, or close other programs that use the device"
    )


@pytest.mark.parametrize("kind", ["parts", "spectrum"])
def test_what_is_lowest_already_is_not_told(kind: str) -> None:
    changes = {"optimizer.batch_size": 1, "base.checkpointing": True}
    message = _told(kind, torch.OutOfMemoryError(CUDA), **changes)
    assert message.startswith("out of memory in training: lower the image_size 512") and "recompute" not in message


def test_other_faults_pass_as_they_are() -> None:
    from bestiary.nodes.denoiser.training_faults import memory_told

    for fault in (RuntimeError("shapes"), BestiaryError("mine"), KeyError("x")):
        with pytest.raises(type(fault)) as raised, memory_told(_settings("parts"), 512):
            raise fault
        assert raised.value is fault


def test_random_generators_go_on_as_if_nothing_had_been_drawn() -> None:
    from bestiary.nodes.denoiser.training_faults import random_state_kept

    torch.manual_seed(3), np.random.seed(3)
    theirs = torch.rand(2).tolist(), np.random.rand(2).tolist()
    torch.manual_seed(3), np.random.seed(3)
    with pytest.raises(ValueError), random_state_kept():
        torch.manual_seed(9), np.random.rand(5), torch.rand(5)
        raise ValueError
    assert (torch.rand(2).tolist(), np.random.rand(2).tolist()) == theirs
