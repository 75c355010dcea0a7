"""P3: host synchronisations and kernels of one training micro-step, ours against the reference's, batch 2.

    python benchmarks/bench_dispatch.py [--columns one_hot|lse]

Goals: no synchronisation, at most 0.72 of the reference's operations that are no views.
"""

import argparse
import json
import sys
from collections.abc import Callable

import torch
from dispatch_counter import DispatchCounter
from training_case import NARROW, CaseSize, build_case

GOAL = 0.72


def count(step: Callable[[], object]) -> DispatchCounter:
    """Run a step once and count."""
    with DispatchCounter() as counter:
        step()
    return counter


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", choices=("one_hot", "lse"), default="one_hot")
    parser.add_argument("--list", action="store_true", help="also list our operations by number")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # small enough to be quick: the number of operations does not depend on the size
    case = build_case(CaseSize(256, 2, **NARROW), arguments.columns)
    theirs, ours = count(case.run_reference), count(case.run_ours)
    ratio = ours.kernels / theirs.kernels
    report = {
        "columns": arguments.columns,
        "kernels_reference_ours": [theirs.kernels, ours.kernels],
        "ratio": round(ratio, 3),
        "goal": GOAL,
        "syncs_reference_ours": [theirs.syncs, ours.syncs],
        "our_syncs": dict(ours.waits),
        "their_syncs": dict(theirs.waits),
        "met": ratio <= GOAL and ours.syncs == 0,
    }
    if arguments.list:
        report["operations"] = {"reference": theirs.operations.most_common(), "ours": ours.operations.most_common()}
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
