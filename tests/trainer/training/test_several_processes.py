"""Two gloo processes: equal gradients on both, equal to one large batch of one process (P10)."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bestiary.trainer.learning.run.processes import SingleProcess
from bestiary.trainer.training.several_processes import join_processes, shared_text
from safetensors.torch import load_file

ROOT = Path(__file__).parents[3]
BENCHMARK = ROOT / "benchmarks" / "gradient_agreement.py"


def run_ranks(size: int, out: Path, found: Path, model: Path) -> list[dict[str, torch.Tensor]]:
    """Gradients of every rank after one optimiser step of four pictures in all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(BENCHMARK), "--rank", str(out), str(found), str(model)]
        children.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    faults = [child.communicate()[1] for child in children]
    assert all(child.returncode == 0 for child in children), faults
    return [load_file(out / f"{size}-{rank}.safetensors") for rank in range(size)]


@pytest.mark.train
def test_two_processes_have_the_gradients_of_one_large_batch(tmp_path, make_discovery, tiny_folder) -> None:
    found = make_discovery(tmp_path)
    first, second = run_ranks(2, tmp_path, found, tiny_folder("bestiary-demo"))
    (whole,) = run_ranks(1, tmp_path, found, tiny_folder("bestiary-demo"))
    assert first.keys() == whole.keys() and len(first) > 10
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(tensor.abs().sum() > 0 for tensor in whole.values())
    ours = torch.cat([first[name].flatten() for name in sorted(first)])
    theirs = torch.cat([whole[name].flatten() for name in sorted(whole)])
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


def test_alone_nothing_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    parallel, device = join_processes("auto")
    assert parallel == SingleProcess() and device == "auto"
    assert shared_text(parallel, "mine") == "mine"
    assert torch.equal(parallel.sum(torch.ones(2)), torch.ones(2))
