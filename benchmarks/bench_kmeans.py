"""Clustering: ours against scikit-learn's KMeans in one run on one thread (goal P5 of the performance page).

    python benchmarks/bench_kmeans.py

Synthetic unit features of 768 channels with a power-law spectrum and overlapping parts. For both sizes it prints process
CPU seconds, inertia as the mean of 1 - cosine, and their ratios. The goals: at least 30 times as fast with 8 clusters and
10 times with 256, at no more than 1.005 times the inertia.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from bestiary.concepts.part_map.kmeans import assign, fit_kmeans
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

CASES = {"parts": (102_400, 8), "kinds": (6_144, 256)}
GOALS = {"parts": 30.0, "kinds": 10.0}
WIDTH = 768
PARTS = 8


def synthetic_features(rows: int, seed: int) -> Tensor:
    """Unit rows `(rows, 768)`: a shared mean, 8 overlapping parts, and a spectrum that falls as a power of its index."""
    generator = torch.Generator().manual_seed(seed)
    # parts, what all rows share, and noise, all under one falling spectrum
    spectrum = torch.arange(1, WIDTH + 1).float() ** -0.6
    parts = torch.randn(PARTS, WIDTH, generator=generator) * spectrum
    shared = torch.randn(WIDTH, generator=generator) * 3 * spectrum
    chosen = torch.randint(PARTS, (rows,), generator=generator)
    noise = torch.randn(rows, WIDTH, generator=generator) * spectrum
    return F.normalize(shared + parts[chosen] + 0.8 * noise, dim=1)


def timed_ours(x: Tensor, k: int, seed: int) -> tuple[float, float]:
    """CPU seconds and inertia of ours over rows `(n, d)`."""
    started = time.process_time()
    result = fit_kmeans(x, k, seed=seed)
    return time.process_time() - started, result.inertia


def timed_theirs(x: Tensor, k: int, seed: int) -> tuple[float, float]:
    """CPU seconds of scikit-learn over rows `(n, d)`, and the inertia of its clusters' directions."""
    started = time.process_time()
    model = KMeans(k, n_init=5, max_iter=1000, random_state=seed).fit(x.numpy())
    seconds = time.process_time() - started
    _, similarity = assign(x, torch.from_numpy(model.cluster_centers_))
    return seconds, 1 - float(similarity.mean())


def main(seed: Annotated[int, typer.Option()] = 0, repeats: Annotated[int, typer.Option()] = 3) -> None:
    """Print both sizes; ours is the median of `repeats`, scikit-learn runs once."""
    torch.set_num_threads(1)
    for name, (rows, k) in CASES.items():
        # the same rows for both, on one thread
        x = synthetic_features(rows, seed)
        runs = sorted(timed_ours(x, k, seed) for _ in range(repeats))
        ours, our_inertia = runs[len(runs) // 2]
        with threadpool_limits(1):
            theirs, their_inertia = timed_theirs(x, k, seed)
        typer.echo(
            f"{name}: n={rows:,} k={k}  ours {ours:.2f} s, inertia {our_inertia:.6f}  "
            f"scikit-learn {theirs:.2f} s, inertia {their_inertia:.6f}  "
            f"{theirs / ours:.1f}x as fast (goal {GOALS[name]:.0f}x) at {our_inertia / their_inertia:.4f} of the inertia"
        )


if __name__ == "__main__":
    typer.run(main)
