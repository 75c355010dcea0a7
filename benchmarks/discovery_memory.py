"""Memory of a discovery: its peak must not grow with the number of pictures, and what it keeps of each stays small.

Draws folders of several sizes, runs `discover` on each in a process of its own (a peak hides everything below an earlier
one) and prints the peak memory of each, the growth per added picture, and the bytes kept per picture; then the bytes kept
at the width of a vision transformer (768 channels, 8 parts, 16 x 16 patches).

    python benchmarks/discovery_memory.py --sizes 300 2400
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from bestiary.trainer.discovery.discover import DiscoverSettings, discover
from bestiary.trainer.discovery.state import PartShard
from PIL import Image, ImageDraw

KEPT_LIMIT = 13 * 1024
"""Bytes per picture that may be kept."""
SAMPLE_PATCHES, KIND_IMAGES = 64 * 256, 128  # both bounds lie below the smallest folder, so that only streaming grows
_KIB_PER_RSS_UNIT = 1 if sys.platform != "darwin" else 1 / 1024


def main() -> None:
    """Measure every size and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[300, 2400], help="pictures of each folder, rising")
    parser.add_argument("--single", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    # a child of this program measures one folder: the peak of a process never falls
    if options.single:
        sys.stdout.write(json.dumps(_run(*options.single)) + "\n")
        return
    with tempfile.TemporaryDirectory() as place:
        measured = {size: _measure(Path(place), size) for size in options.sizes}
    sys.stdout.write(json.dumps(summarise(measured), indent=1) + "\n")


def summarise(measured: dict[int, dict[str, float]]) -> dict[str, object]:
    """Peaks by folder size, growth per added picture and bytes kept, with the limit they are held against."""
    # by picture, between the smallest and the largest folder
    sizes = sorted(measured)
    growth = measured[sizes[-1]]["peak_kib"] - measured[sizes[0]]["peak_kib"]
    return {
        "peak_mib": {str(size): round(measured[size]["peak_kib"] / 1024, 1) for size in sizes},
        "peak_ratio": round(measured[sizes[-1]]["peak_kib"] / measured[sizes[0]]["peak_kib"], 3),
        "peak_growth_kib_per_picture": round(growth / max(sizes[-1] - sizes[0], 1), 3),
        "kept_bytes_per_picture": measured[sizes[-1]]["kept_bytes"],
        "kept_bytes_per_picture_at_768_channels_8_parts": kept_bytes(768, 8, 16),
        "kept_limit": KEPT_LIMIT,
    }


def kept_bytes(width: int, parts: int, grid: int) -> float:
    """Bytes of one picture in a part shard."""
    # (1,), (1, h, w), (1, M), (1, M, D)
    shard = PartShard(
        torch.zeros(1, dtype=torch.int32),
        torch.zeros(1, grid, grid, dtype=torch.uint8),
        torch.zeros(1, parts, dtype=torch.int32),
        torch.zeros(1, parts, width, dtype=torch.float16),
    )
    return shard.bytes_per_image


def draw_folder(folder: Path, count: int) -> Path:
    """Small pictures of a two-coloured thing on a plain ground."""
    folder.mkdir(parents=True)
    # colours of shape (3,), places of shape (2,)
    rng = np.random.default_rng(0)
    for number in range(count):
        image = Image.new("RGB", (64, 64), tuple(int(level) for level in rng.integers(120, 255, 3)))
        pen, (x, y) = ImageDraw.Draw(image), rng.integers(26, 39, 2)
        colors = [tuple(int(level) for level in rng.integers(0, 255, 3)) for _ in range(2)]
        pen.ellipse((x - 16, y - 6, x + 16, y + 18), fill=colors[0])
        pen.ellipse((x - 8, y - 22, x + 8, y - 4), fill=colors[1])
        image.save(folder / f"{number:06d}.png")
    return folder


def _measure(place: Path, size: int) -> dict[str, float]:
    pictures = draw_folder(place / f"pictures-{size}", size)
    command = [sys.executable, __file__, "--single", str(pictures), str(place / f"parts-{size}")]
    outcome = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(outcome.stdout.splitlines()[-1])


def _run(pictures: Path, out: Path) -> dict[str, float]:
    # small bounds, so that everything that could grow with the folder would show
    settings = DiscoverSettings(
        images=pictures,
        out=out,
        source="descriptor",
        num_parts=3,
        kinds=16,
        sample_patches=SAMPLE_PATCHES,
        kind_images=KIND_IMAGES,
        shard_images=32,
        device="cpu",
    )
    result = discover(settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB_PER_RSS_UNIT
    return {"peak_kib": peak, "kept_bytes": float(result.report["bytes_per_image"])}


if __name__ == "__main__":
    main()
