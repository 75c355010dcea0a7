"""Throughput of a whole part training: samples a second of the loop, and where the time of a step goes.

    python benchmarks/bench_training_loop.py DISCOVERY [--base FOLDER] [--size 128] [--batch 16] [--steps 10] [--dtype auto]

Runs the real loop (batches, forward, backward, clipping, optimiser, log) and prints wall seconds and process CPU seconds a
step, samples a second, and the shares of drawing batches, forward, backward and the rest.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import find_bestiary  # noqa: F401  # isort: skip

from bestiary.trainer.learning.parts.settings import load_recipe
from bestiary.trainer.learning.run.fit import LoopSettings, fit
from bestiary.trainer.learning.run.run_folder import RunFolder
from bestiary.trainer.training.train_parts import PartTask
from bestiary.trainer.training.training_setup import TrainingSetup, prepare

WARM_UP = 3


class Clock:
    """Seconds by name; waits for the GPU before it reads the time."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`."""
        started, cpu = self._now(), time.process_time()
        yield
        self.wall[name] = self.wall.get(name, 0) + self._now() - started
        self.cpu[name] = self.cpu.get(name, 0) + time.process_time() - cpu

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def measure_loop(setup: TrainingSetup, steps: int, folder: Path) -> Clock:
    """The loop as users run it, after a few steps of warm-up."""
    clock = Clock()
    run = RunFolder.create(folder)
    # warm-up and measurement are one run that goes on, so that nothing is set up twice
    for name, count in (("warm-up", WARM_UP), ("loop", WARM_UP + steps)):
        with clock.measure(name):
            fit(setup.objective, setup.groups, setup.batches, LoopSettings(count, log_every=5, save_every=10**6), run)
    return clock


def measure_parts(setup: TrainingSetup, steps: int) -> Clock:
    """Drawing, forward and backward one after the other."""
    clock = Clock()
    # the three pieces of a step, each until the device has finished
    for step in range(steps):
        with clock.measure("draw"):
            batch = setup.batches.draw(step, 0)
        with clock.measure("forward"):
            loss = setup.objective(batch).total
        with clock.measure("backward"):
            loss.backward()
        setup.objective.zero_grad(set_to_none=True)
    return clock


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("discovery", type=Path)
    parser.add_argument("--base", default="demo")
    parser.add_argument("--size", type=int)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--checkpointing", action="store_true")
    arguments = parser.parse_args()
    # one micro-step per step, no previews: only the loop itself
    flags = {
        "discovery.folder": arguments.discovery, "base.path": arguments.base, "images.size": arguments.size,
        "optimizer.batch_size": arguments.batch, "optimizer.accumulation": 1, "run.dtype": arguments.dtype,
        "base.checkpointing": arguments.checkpointing, "run.preview_every": 0,
    }  # fmt: skip
    setup = prepare(PartTask(load_recipe(None, {key: value for key, value in flags.items() if value is not None})))
    with tempfile.TemporaryDirectory() as folder:
        loop = measure_loop(setup, arguments.steps, Path(folder) / "run")
    parts = measure_parts(setup, arguments.steps)
    wall, cpu = (clock["loop"] / arguments.steps for clock in (loop.wall, loop.cpu))
    sys.stdout.write(
        f"{arguments.batch / wall:.1f} samples a second: {wall:.3f} s a step of {arguments.batch} "
        f"({cpu:.3f} CPU seconds) with {torch.get_num_threads()} threads on {setup.denoiser.device} in {setup.denoiser.dtype}\n"
    )
    for name, seconds in parts.cpu.items():
        share = seconds / arguments.steps
        sys.stdout.write(f"  {name:9} {parts.wall[name] / arguments.steps:.3f} s ({share:.3f} CPU seconds)\n")


if __name__ == "__main__":
    main()
