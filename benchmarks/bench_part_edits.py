"""What editing discovered parts costs beside discovering them again, and what areas of parts cost, in one run on one thread.

    python benchmarks/bench_part_edits.py [--pictures 100]

Discovers parts in drawn creatures with the descriptor and prints process CPU seconds of that, and of one more line of edits: a
rename, a merge that fits new kinds, and taking it back. Then the areas of six parts over a 500 x 375 picture, axis by axis as
`part_areas` does, against cubic interpolation in the plane (torch's grid_sample).
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from bestiary.concepts.features.patch_features import DescriptorFeatures
from bestiary.concepts.part_map.edit_script import EditedParts, EditHistory
from bestiary.concepts.part_map.joined_kinds import PartMeans
from bestiary.concepts.part_map.part_areas import part_areas
from bestiary.concepts.part_map.part_discovery import discover_parts
from bestiary.concepts.pictures.square_fit import seen_box
from bestiary.demo.creatures import held_out_set
from torch import Tensor

SIZE, PARTS, GRID, REPEATS = (375, 500), 6, 32, 20


def seconds(call: Callable[[], object]) -> float:
    """Process CPU seconds of one call."""
    started = time.process_time()
    call()
    return time.process_time() - started


def discovered(pictures: int) -> tuple[EditedParts, float]:
    """Parts of drawn creatures as they are found, and the seconds it took."""
    images = torch.stack([torch.from_numpy(one.image.copy()) for one in held_out_set(pictures, seed=0)])
    squares = images.permute(0, 3, 1, 2).float() / 255  # (N, 3, H, W)
    source = DescriptorFeatures()
    started = time.process_time()
    # features and all levels, as a graph does them
    squares = F.interpolate(squares, source.image_size, mode="bilinear", antialias=True)
    grid = source(squares)
    codebook, maps = discover_parts(grid, spec=source.spec)
    taken = time.process_time() - started
    return EditedParts(codebook, maps, found=PartMeans(*codebook.part_means(grid, maps.labels))), taken


def plane_areas(labels: Tensor) -> Tensor:
    """Areas `(M, H, W)` of labels `(h, w)` by interpolation in the plane."""
    left, top, right, bottom = seen_box(SIZE[1], SIZE[0])
    x = (torch.arange(SIZE[1]) + 0.5 - left) / (right - left) * 2 - 1
    y = (torch.arange(SIZE[0]) + 0.5 - top) / (bottom - top) * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[None]  # (1, H, W, 2)
    hills = F.one_hot(labels.long(), PARTS).permute(2, 0, 1)[None].float()  # (1, M, h, w)
    return torch.softmax(24 * F.grid_sample(hills, grid, "bicubic", "border", align_corners=False)[0], dim=0)


def main(pictures: Annotated[int, typer.Option(help="Drawn creatures.")] = 100) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    found, whole = discovered(pictures)
    typer.echo(f"discovery of {pictures} pictures: {whole:.2f} s")
    history, names = EditHistory(found), found.codebook.part_names
    # each line builds on what the ones above it left
    renamed = f"rename {names[0]}, first"
    for what, text in (
        ("rename", renamed),
        ("merge with new kinds", f"{renamed}\nmerge first, {names[1]}"),
        ("taken back", renamed),
    ):
        cost = seconds(lambda text=text: history.after(text))
        typer.echo(f"{what}: {1e3 * cost:.2f} ms, {cost / whole:.6f} of a discovery")
    labels = torch.randint(0, PARTS, (GRID, GRID), generator=torch.Generator().manual_seed(0))
    box = seen_box(SIZE[1], SIZE[0])
    ours = min(seconds(lambda: part_areas(labels, PARTS, PARTS - 1, SIZE, box)) for _ in range(REPEATS))
    theirs = min(seconds(lambda: plane_areas(labels)) for _ in range(REPEATS))
    typer.echo(f"areas: {1e3 * ours:.2f} ms, in the plane {1e3 * theirs:.2f} ms, ratio {theirs / ours:.1f}")


if __name__ == "__main__":
    typer.run(main)
