"""A single process needs no group; devices that are not here are refused."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.discovery.processes import WorkGroup, join_work_group


def test_a_single_process_owns_all_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    group = join_work_group("cpu")
    assert group == WorkGroup(0, 1, "cpu") and group.is_first
    assert all(group.owns(piece) for piece in range(5))
    group.meet()


def test_pieces_are_dealt_out_once() -> None:
    groups = [WorkGroup(rank, 3) for rank in range(3)]
    assert [sum(group.owns(piece) for group in groups) for piece in range(10)] == [1] * 10
    assert [group.is_first for group in groups] == [True, False, False]


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert join_work_group("auto").device == "cpu"
    with pytest.raises(BestiaryError) as fault:
        join_work_group("cuda:1")
    assert str(fault.value).startswith("--device cuda:1: PyTorch sees no CUDA GPU; choose cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [join_work_group(device).device for device in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda:0",
        "cuda:0",
        "cuda:1",
        "cpu",
    ]
    with pytest.raises(
        BestiaryError, match="--device cuda:2 does not exist: this machine has 2 GPUs; choose cuda:0 to cuda:1"
    ):
        join_work_group("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "0", ""])
def test_devices_nobody_knows(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(BestiaryError, match=f"--device '{name}' is unknown: choose auto, cpu, cuda, cuda:1"):
        join_work_group(name)


def test_an_apple_gpu_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(BestiaryError, match="--device mps: PyTorch sees no Apple GPU; choose cpu"):
        join_work_group("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert join_work_group("mps").device == "mps"
