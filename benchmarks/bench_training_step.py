"""P1: one training micro-step, ours against the reference's, paired in one process on one thread, process time.

    python benchmarks/bench_training_step.py --size narrow256|narrow512|full512 [--pairs 3] [--columns one_hot|lse]

Goals: at least 2.0x (narrow256), 2.5x (narrow512), 2.2x (full512), gradients equal to 1e-5 relative L2.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from training_case import NARROW, CaseSize, build_case

SIZES = {
    "narrow256": (CaseSize(256, 1, **NARROW), 2.0),
    "narrow512": (CaseSize(512, 1, **NARROW), 2.5),
    "full512": (CaseSize(512, 1), 2.2),
}


def seconds(step: Callable[[], object]) -> float:
    """Process CPU seconds of one call."""
    start = time.process_time()
    step()
    return time.process_time() - start


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="narrow256")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--columns", choices=("one_hot", "lse"), default="one_hot")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size, goal = SIZES[arguments.size]
    case = build_case(size, arguments.columns)
    losses = float(case.run_reference()), float(case.run_ours())  # also warms both up
    # in pairs: what disturbs the machine disturbs both
    pairs = [(seconds(case.run_reference), seconds(case.run_ours)) for _ in range(arguments.pairs)]
    ratio = statistics.median(theirs / ours for theirs, ours in pairs)
    error = case.gradient_error()
    report = {
        "size": arguments.size,
        "columns": arguments.columns,
        "loss_reference_ours": losses,
        "seconds_reference_ours": [[round(value, 3) for value in pair] for pair in pairs],
        "ratio": round(ratio, 3),
        "goal": goal,
        "gradient_relative_l2": error,
        "met": ratio >= goal and error <= 1e-5,
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
