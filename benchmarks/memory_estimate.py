"""P11: the memory estimate before a training against what a step really takes.

    python benchmarks/memory_estimate.py DISCOVERY [--base FOLDER] [--size 128] [--batch 4] [--checkpointing] [--dtype fp32]

On a GPU the measure is CUDA's allocator; on a CPU the sum of living storages in a real forward and backward pass, which
leaves out what libraries use inside an operation. Prints the estimate, the measure and their ratio (goal 0.9 to 1.1).
"""

import argparse
import sys
import time
from pathlib import Path

import find_bestiary  # noqa: F401  # isort: skip

from bestiary.trainer.learning.parts.settings import load_recipe
from bestiary.trainer.training.memory_estimate import estimate_memory, measure_memory
from bestiary.trainer.training.train_parts import PartTask
from bestiary.trainer.training.training_setup import prepare

MIB = 2**20


def main() -> None:
    """Estimate, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("discovery", type=Path)
    parser.add_argument("--base", default="demo")
    parser.add_argument("--size", type=int)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()
    flags = {
        "discovery.folder": arguments.discovery, "base.path": arguments.base, "images.size": arguments.size,
        "optimizer.batch_size": arguments.batch, "base.checkpointing": arguments.checkpointing,
        "run.dtype": arguments.dtype, "run.preview_every": 0,
    }  # fmt: skip
    # one real batch of the training, estimated first and then measured
    setup = prepare(PartTask(load_recipe(None, {key: value for key, value in flags.items() if value is not None})))
    batch = setup.batches.draw(0, 0)
    started = time.monotonic()
    ours = estimate_memory(setup.objective, batch)
    seconds = time.monotonic() - started
    theirs = measure_memory(setup.objective, batch)
    for name in ("frozen", "learned", "activations", "total"):
        estimated, measured = getattr(ours, name), getattr(theirs, name)
        ratio = f"  ratio {estimated / measured:.4f}" if measured else ""
        sys.stdout.write(f"{name:12} estimated {estimated / MIB:9.2f} MiB  measured {measured / MIB:9.2f} MiB{ratio}\n")
    sys.stdout.write(f"estimated in {seconds:.1f} s without computing; measured on {setup.denoiser.device}\n")


if __name__ == "__main__":
    main()
