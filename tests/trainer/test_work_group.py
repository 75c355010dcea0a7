"""A single process needs no group; devices that are not here are refused."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.work_group import WorkGroup, join_work_group


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
    assert str(fault.value).startswith("--device cuda:1: PyTorch sees no CUDA GPU here; choose cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [join_work_group(device).device for device in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda:0",
        "cuda:0",
        "cuda:1",
        "cpu",
    ]
