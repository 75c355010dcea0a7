"""P10: gradients of several processes against each other and against one process with one large batch.

    python benchmarks/gradient_agreement.py DISCOVERY [BASE]

Starts two gloo processes on the CPU and one alone, each computing the gradients of one optimiser step of four pictures with
two micro-steps, and prints the largest difference between the ranks and the relative L2 error to the large batch.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import find_bestiary  # noqa: F401  # isort: skip

from bestiary.trainer.learning.run.fit import Batches
from bestiary.trainer.learning.run.processes import Parallel

PICTURES = 4


def gradients_of_step(objective: torch.nn.Module, batches: Batches, parallel: Parallel, accumulation: int) -> None:
    """The loop's forward and backward passes of one optimiser step; gradients stay in the parameters."""
    module = parallel.wrap(objective)
    for micro_step in range(accumulation):
        with parallel.gradients(module, synchronise=micro_step == accumulation - 1):
            (module(batches.draw(0, micro_step)).total / accumulation).backward()


def run_rank(out: Path, found: Path, model: str) -> None:
    """One process: write its gradients to `out/SIZE-RANK.safetensors`."""
    from bestiary.trainer.learning.parts.settings import load_recipe
    from bestiary.trainer.training.several_processes import join_processes
    from bestiary.trainer.training.train_parts import PartTask
    from bestiary.trainer.training.training_setup import prepare

    torch.set_num_threads(1)
    parallel, device = join_processes("cpu")
    # two processes with two micro-steps make the same batch as one with one
    accumulation = 2 if parallel.size > 1 else 1
    flags = {
        "discovery.folder": found, "base.path": model, "run.device": device, "run.dtype": "fp32", "images.size": 64,
        "run.preview_every": 0, "attention_loss.weight": 1.0, "captions.drop_tokens": 0.5, "lora.rank": 2,
        "optimizer.batch_size": PICTURES // (accumulation * parallel.size), "optimizer.accumulation": accumulation,
    }  # fmt: skip
    # small, in float32, with everything that could make ranks differ: dropped tokens, attention, adapters
    setup = prepare(PartTask(load_recipe(None, flags)), parallel=parallel)
    for number, parameter in enumerate(setup.objective.adapters):  # zeros would hide half of the gradients
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(number))
    gradients_of_step(setup.objective, setup.batches, parallel, accumulation)
    found_gradients = {name: p.grad.contiguous() for name, p in setup.objective.named_parameters()}
    save_file(found_gradients, out / f"{parallel.size}-{parallel.rank}.safetensors")


def start_ranks(size: int, out: Path, found: Path, model: str) -> list[dict[str, torch.Tensor]]:
    """Run `size` processes and read their gradients, each in the shape of its parameter."""
    # a free port, on which the processes find each other
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(size):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        environment = {**os.environ, **own, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, __file__, "--rank", str(out), str(found), model]
        children.append(subprocess.Popen(command, env=environment))
    if any(child.wait() for child in children):
        raise SystemExit("a process failed")
    return [load_file(out / f"{size}-{rank}.safetensors") for rank in range(size)]


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("found", type=Path)
    parser.add_argument("base", nargs="?", default="demo")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first, second = start_ranks(2, Path(folder), arguments.found, arguments.base)
        (whole,) = start_ranks(1, Path(folder), arguments.found, arguments.base)
    # between the ranks number by number; against the large batch as one long vector
    largest = max(float((first[name] - second[name]).abs().max()) for name in first)
    ours = torch.cat([first[name].flatten() for name in sorted(first)])
    theirs = torch.cat([whole[name].flatten() for name in sorted(whole)])
    error = float((ours - theirs).norm() / theirs.norm())
    sys.stdout.write(f"{len(first)} gradients; ranks differ by at most {largest:g} (goal 0)\n")
    sys.stdout.write(f"relative L2 error to one large batch {error:.2e} (goal 1e-5)\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        run_rank(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        main()
