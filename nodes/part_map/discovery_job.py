"""Discovery in a graph: validation of pictures and masks, features with progress, and the fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.features.patch_features import FeatureSource, PatchGrid
from ...concepts.part_map.foreground import LOW_MARGIN
from ...concepts.part_map.joined_kinds import PartMeans
from ...concepts.part_map.part_areas import patch_shares
from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.part_map.part_discovery import MOST_STAGES, discover_parts
from ...concepts.part_map.part_map import PartMaps
from ...concepts.part_map.sample_checks import area_doubts, plain_pictures, refuse_copies, refuse_few
from ...concepts.part_map.sample_views import SampleViews, look_again, viewed_pictures
from ...concepts.pictures.square_fit import SquareFit, seen_box
from ...trainer.learning.discovery.discovery_doubts import UsualPictures, doubt_text, most_doubtful, part_sureness
from ...trainer.learning.discovery.part_names import PartPlaces, propose_names
from ..host.graph_progress import GraphProgress
from .part_pictures import as_squares, checked_images
from .seen_parts import SeenParts, describe_images, joined_grids, seen_from_maps

_FEWEST_COMPARED = 4
_PICTURES_PER_STAGE = 4
"""Progress weight of a stage of the fit, in pictures."""


@dataclass(frozen=True)
class DiscoveryChoice:
    """Settings of a discovery chosen by the user."""

    num_parts: int = 0
    """Foreground parts; 0 estimates the number."""
    num_kinds: int = 0
    """Kinds per part; 0 estimates the number."""
    seed: int = 0
    flip_foreground: bool = False
    fit: SquareFit = "centre square"


@dataclass(frozen=True)
class FoundParts:
    """A codebook and its part maps of the pictures it was fitted on."""

    codebook: PartCodebook
    images: list[Tensor]
    """Per entry of the list `(B, H, W, 3)`, validated."""
    seen: list[SeenParts]
    """One per entry."""
    means: PartMeans | None = field(default=None, repr=False)
    """Part means of all pictures, from which the kinds of merged parts are fitted."""
    sure: Tensor | None = field(default=None, repr=False)
    """`(N, M)` 0..1: certainty of the labels of each part's patches; None after edits that changed the parts."""
    origin: object = field(default=None, repr=False)
    """Source of these parts, which this reference keeps alive."""


def find_parts(
    images: Sequence[Tensor],
    masks: Sequence[Tensor] | None,
    source: FeatureSource,
    choice: DiscoveryChoice,
    progress: GraphProgress,
) -> FoundParts:
    """Discover the parts of all pictures of a list of images `(B, H, W, 3)`; sizes may differ between entries.

    Args:
        masks: foregrounds `(B, H, W)`, one per picture, in any grouping; None detects the foreground.

    Raises:
        BestiaryError: invalid pictures or masks, no foreground, fewer pictures than kinds.
    """
    several = len(images) > 1
    checked = [
        checked_images(entry, f" in entry {n} of the list" if several else "") for n, entry in enumerate(images, 1)
    ]
    marked = None if masks is None else _checked_masks(masks, checked)
    _refuse_nothing(checked, source)
    total = sum(len(entry) for entry in checked)
    progress.begin(total + MOST_STAGES * _PICTURES_PER_STAGE)
    # the fit needs autograd in places, which ComfyUI's inference mode would forbid
    with torch.inference_mode(False), torch.no_grad():
        grid = joined_grids([describe_images(entry, source, choice.fit, progress.add) for entry in checked])
        if source.name != "descriptor":
            refuse_copies(grid, "of the input images")
        shares = None if marked is None else _on_grid(marked, grid, choice.fit)
        codebook, maps = discover_parts(
            grid,
            spec=source.spec,
            num_parts=choice.num_parts or None,
            num_kinds=choice.num_kinds or None,
            seed=choice.seed,
            flip_foreground=choice.flip_foreground,
            foreground_masks=shares,
            views=None if grid.detail is None else _views(checked, source, choice),
            on_stage=lambda: progress.add(_PICTURES_PER_STAGE),
        )
        means, counts = codebook.part_means(grid, maps.labels)  # (N, M, d), (N, M)
        sure = part_sureness(codebook.confidence(grid, maps.labels), maps.labels, codebook.num_parts)
        codebook = codebook.with_names(_names_by_place(codebook, maps), codebook.kind_names)
    progress.finish()
    seen = seen_by_entry(
        codebook, maps, [((entry.shape[1], entry.shape[2]), len(entry)) for entry in checked], choice.fit
    )
    return FoundParts(codebook, checked, seen, PartMeans(means.half(), counts), sure)


def _views(images: Sequence[Tensor], source: FeatureSource, choice: DiscoveryChoice) -> SampleViews | None:
    """Second views of some pictures of images `(B, H, W, 3)`."""
    single = [image for entry in images for image in entry]
    chosen = (
        (row, as_squares(single[row][None], source.image_size, choice.fit)[0]) for row in viewed_pictures(len(single))
    )
    return look_again(chosen, source, seed=choice.seed)


def doubts(codebook: PartCodebook, seen: Sequence[SeenParts] = ()) -> str | None:
    """Warnings for the report if the foreground is doubtful or very small, else None."""
    shown = [entry.maps.labels != codebook.background for entry in seen]  # (B, h, w) each
    areas = [share for some in shown for share in some.flatten(1).float().mean(1).tolist()]
    found = area_doubts(areas)
    margin = codebook.statistics.get("foreground_margin", 1.0)
    if margin < LOW_MARGIN:
        found.insert(0, _margin_text(margin))
    return "\n".join(found) or None


def unsure_pictures(found: FoundParts, most: int = 3) -> list[str]:
    """Descriptions of the pictures that differ most from the others, most unusual first; empty for fewer than 4 pictures."""
    codebook, sure = found.codebook, found.sure
    if sure is None or len(sure) < _FEWEST_COMPARED:
        return []
    counts = _patch_counts(found)
    usual = UsualPictures(codebook.num_parts, codebook.background)
    usual.add(counts, sure)
    odd = most_doubtful(usual.doubts(0, counts, sure), most)
    return [f"picture {doubt.row + 1}: {doubt_text(doubt.part, doubt.what, codebook.part_names)}" for doubt in odd]


def part_confidence(found: FoundParts) -> list[float]:
    """Certainty of the labels of every part, 0..1; empty if unknown."""
    if found.sure is None:
        return []
    usual = UsualPictures(found.codebook.num_parts, found.codebook.background)
    usual.add(_patch_counts(found), found.sure)
    return usual.confidence()


def _patch_counts(found: FoundParts) -> Tensor:
    """Patches of every part in every picture (N, M)."""
    labels = torch.cat([entry.maps.labels for entry in found.seen]).flatten(1).long()  # (N, h * w)
    return torch.stack([torch.bincount(row, minlength=found.codebook.num_parts) for row in labels])


def _names_by_place(codebook: PartCodebook, maps: PartMaps) -> tuple[str, ...]:
    places = PartPlaces(codebook.num_parts, codebook.background)
    places.add(maps.labels)
    return propose_names(places)


def _refuse_nothing(images: Sequence[Tensor], source: FeatureSource) -> None:
    """Raises BestiaryError if the pictures `(B, H, W, 3)` are too few for the source, or all plain."""
    total = sum(len(entry) for entry in images)
    plain = sum(int(plain_pictures(entry.permute(0, 3, 1, 2)).sum()) for entry in images)
    if plain == total:
        raise BestiaryError(
            f"no foreground found: all {total} pictures are one plain colour; connect pictures of an object"
        )
    # the other sources have always accepted any number of pictures: old graphs must keep working
    if source.name == "imagenet":
        refuse_few(total, "in the input images")


def _margin_text(margin: float) -> str:
    return (
        f"The foreground is doubtful: it covers the centre only {margin:.2f} more than the borders (at least "
        f"{LOW_MARGIN:.2f} expected). Check the overlays; try flip_foreground, a foreground mask or another feature_source."
    )


def seen_by_entry(
    codebook: PartCodebook,
    maps: PartMaps,
    entries: Sequence[tuple[tuple[int, int], int]],
    fit: SquareFit,
    color_numbers: tuple[int, ...] = (),
) -> list[SeenParts]:
    """Maps of all N pictures as one record per entry; an entry is the size (H, W) and the number of its pictures."""
    counts = [count for _, count in entries]
    pieces = zip(entries, maps.labels.split(counts), maps.codes.split(counts), strict=True)
    return [
        seen_from_maps(codebook, PartMaps(labels, codes), size, fit, color_numbers)
        for (size, _), labels, codes in pieces
    ]


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
            raise BestiaryError(f"foreground mask {number} contains NaN or infinity: check the node that made it")
    if not any(bool((mask > 0.5).any()) for mask in single):
        raise BestiaryError(
            f"all {len(single)} foreground masks are empty: paint the object white, or leave the input foreground unconnected"
        )
    # mask nodes may return values outside 0..1
    return [mask.clamp(0, 1) for mask in single]


def _on_grid(masks: Sequence[Tensor], grid: PatchGrid, fit: SquareFit) -> Tensor:
    _, height, width, _ = grid.features.shape  # (N, h, w, D)
    shares = [patch_shares(mask, (height, width), seen_box(mask.shape[1], mask.shape[0], fit)) for mask in masks]
    return torch.stack(shares)  # (N, h, w)
