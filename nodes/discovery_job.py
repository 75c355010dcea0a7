"""Finding parts in the pictures of a graph: pictures and masks checked, features with progress, then the method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..concepts.errors import BestiaryError
from ..concepts.parts.foreground import LOW_MARGIN
from ..concepts.parts.joined_kinds import PartMeans
from ..concepts.parts.part_areas import patch_shares
from ..concepts.parts.part_codebook import PartCodebook
from ..concepts.parts.part_discovery import MOST_STAGES, discover_parts
from ..concepts.parts.part_map import PartMaps
from ..concepts.patch_features import FeatureSource, PatchGrid
from ..concepts.square_fit import SquareFit, seen_box
from .graph_progress import GraphProgress
from .part_pictures import checked_images
from .part_sight import SeenParts, describe_images, joined_grids, seen_from_maps

_PICTURES_PER_STAGE = 4
"""A piece of the fit is shown as long as this many pictures."""


@dataclass(frozen=True)
class DiscoveryChoice:
    """What a user chose."""

    num_parts: int = 0
    """Parts of the foreground; 0 chooses."""
    num_kinds: int = 0
    """Kinds per part; 0 measures."""
    seed: int = 0
    flip_foreground: bool = False
    fit: SquareFit = "centre square"


@dataclass(frozen=True)
class FoundParts:
    """A codebook and what it sees in the pictures it was made from."""

    codebook: PartCodebook
    images: list[Tensor]
    """Per entry of the list `(B, H, W, 3)`, checked."""
    seen: list[SeenParts]
    """One per entry."""
    means: PartMeans | None = field(default=None, repr=False)
    """Of the parts in all pictures: what kinds of joined parts are fitted from."""
    origin: object = field(default=None, repr=False)
    """What these parts were made from, kept as long as they are."""


def find_parts(
    images: Sequence[Tensor],
    masks: Sequence[Tensor] | None,
    source: FeatureSource,
    choice: DiscoveryChoice,
    progress: GraphProgress,
) -> FoundParts:
    """Discover the parts of all pictures of a list of images `(B, H, W, 3)`, sizes may differ between entries.

    Args:
        masks: foregrounds `(B, H, W)`, one per picture, in any grouping; None finds the foreground.

    Raises:
        BestiaryError: bad pictures or masks, no foreground, fewer pictures than kinds.
    """
    several = len(images) > 1
    checked = [
        checked_images(entry, f" in entry {n} of the list" if several else "") for n, entry in enumerate(images, 1)
    ]
    marked = None if masks is None else _checked_masks(masks, checked)
    total = sum(len(entry) for entry in checked)
    progress.begin(total + MOST_STAGES * _PICTURES_PER_STAGE)
    # fitting needs gradients, which the executor's inference mode would forbid
    with torch.inference_mode(False), torch.no_grad():
        grid = joined_grids([describe_images(entry, source, choice.fit, progress.add) for entry in checked])
        shares = None if marked is None else _on_grid(marked, grid, choice.fit)
        codebook, maps = discover_parts(
            grid,
            spec=source.spec,
            num_parts=choice.num_parts or None,
            num_kinds=choice.num_kinds or None,
            seed=choice.seed,
            flip_foreground=choice.flip_foreground,
            foreground_masks=shares,
            on_stage=lambda: progress.add(_PICTURES_PER_STAGE),
        )
        means, counts = codebook.part_means(grid, maps.labels)  # (N, M, d), (N, M)
    progress.finish()
    seen = seen_by_entry(codebook, maps, [(tuple(entry.shape[1:3]), len(entry)) for entry in checked], choice.fit)
    return FoundParts(codebook, checked, seen, PartMeans(means.half(), counts))


def doubts(codebook: PartCodebook) -> str | None:
    """A warning for the report where the foreground does not stand apart, else None."""
    margin = codebook.statistics.get("foreground_margin", 1.0)
    if margin >= LOW_MARGIN:
        return None
    return (
        f"The foreground is doubtful: it covers the centre only {margin:.2f} more than the borders (at least "
        f"{LOW_MARGIN:.2f} expected). Look at the overlays; try flip_foreground, a foreground mask or another feature_source."
    )


def seen_by_entry(
    codebook: PartCodebook, maps: PartMaps, entries: Sequence[tuple[tuple[int, int], int]], fit: SquareFit
) -> list[SeenParts]:
    """Maps of all N pictures as one record per entry; an entry is the size (H, W) of its pictures and how many they are."""
    counts = [count for _, count in entries]
    pieces = zip(entries, maps.labels.split(counts), maps.codes.split(counts), strict=True)
    return [seen_from_maps(codebook, PartMaps(labels, codes), size, fit) for (size, _), labels, codes in pieces]


def _checked_masks(masks: Sequence[Tensor], images: Sequence[Tensor]) -> list[Tensor]:
    """One mask (H, W) per picture, of its picture's size."""
    single = [mask for entry in masks for mask in entry.reshape(-1, *entry.shape[-2:]).float().cpu()]
    sizes = [tuple(entry.shape[1:3]) for entry in images for _ in range(len(entry))]
    if len(single) != len(sizes):
        raise BestiaryError(
            f"{len(single)} foreground masks for {len(sizes)} pictures: connect one mask per picture, or none"
        )
    for number, (mask, (height, width)) in enumerate(zip(single, sizes, strict=True), start=1):
        if tuple(mask.shape) != (height, width):
            raise BestiaryError(
                f"foreground mask {number} has {mask.shape[1]} x {mask.shape[0]} pixels, its picture {width} x {height}: "
                "resize the mask (Load Image gives a 64 x 64 one for pictures without transparency: leave it unconnected)"
            )
        if not bool(torch.isfinite(mask).all()):
            raise BestiaryError(
                f"foreground mask {number} holds values that are not numbers: check the node that made it"
            )
    if not any(bool((mask > 0.5).any()) for mask in single):
        raise BestiaryError(
            f"all {len(single)} foreground masks are empty: mark the thing in white, or leave the input foreground unconnected"
        )
    return [mask.clamp(0, 1) for mask in single]


def _on_grid(masks: Sequence[Tensor], grid: PatchGrid, fit: SquareFit) -> Tensor:
    shares = [
        patch_shares(mask, tuple(grid.features.shape[1:3]), seen_box(mask.shape[1], mask.shape[0], fit))
        for mask in masks
    ]
    return torch.stack(shares)  # (N, h, w)
