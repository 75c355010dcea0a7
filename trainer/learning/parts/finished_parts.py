"""From what a training has learned to its part dictionary: trained rows only, names, thumbnails, adapters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ....concepts.files.thumbnail_atlas import ThumbnailAtlas
from ....concepts.part_dictionary.part_dictionary import PartDictionary
from .part_objective import PartObjective
from .training_kinds import TrainingKinds

logger = logging.getLogger("bestiary")
THUMBNAIL_EDGE = 96
"""Pixels."""


@torch.no_grad()
def learned_dictionary(
    objective: PartObjective,
    kinds: TrainingKinds,
    tiles: Mapping[tuple[int, int], Image.Image],
    provenance: dict[str, object],
) -> PartDictionary:
    """The dictionary of the objective's present weights; a (part, kind) that no training picture shows has no row."""
    backbone = objective.denoiser.backbone
    table = objective.projector.collapse().float().cpu()  # (M, K + 1, D)
    rows = kinds.rows()
    vectors = torch.stack([table[part, kind] for part, kind in rows])  # (R, D)
    # collapsed vectors only: the projector is not needed to use them
    return PartDictionary(
        backbone=backbone.name,
        part_names=kinds.part_names,
        kind_names=tuple(
            {kind: name for kind, name in names.items() if (part, kind) in set(rows)}
            for part, names in enumerate(kinds.kind_names)
        ),
        background=kinds.background,
        rows=torch.tensor(rows, dtype=torch.long),  # (R, 2)
        embeddings={name: piece.contiguous() for name, piece in backbone.split_vector(vectors).items()},
        lora=objective.denoiser.network.adapters.tensors() if objective.named_adapters() else {},
        thumbnails=ThumbnailAtlas.from_images(tiles, THUMBNAIL_EDGE),
        provenance=provenance,
    )


def cut_thumbnails(kinds: TrainingKinds, square: Callable[[int], Image.Image]) -> dict[tuple[int, int], Image.Image]:
    """For every (part, kind) the part cut from the picture that shows most of it; whole pictures for the background.

    `square` gives the square picture of a row of `kinds`.
    """
    chosen = {pair: _best_picture(kinds, *pair) for pair in kinds.rows()}
    cut: dict[tuple[int, int], Image.Image] = {}
    # every picture is read once, for all thumbnails that it gives
    for row in sorted(set(chosen.values())):
        picture = square(row)
        for (part, kind), best in chosen.items():
            if best == row:
                cut[part, kind] = picture.crop(_part_box(kinds, row, part, picture.width))
    return {pair: cut[pair] for pair in chosen}


def _best_picture(kinds: TrainingKinds, part: int, kind: int) -> int:
    # labels are (N, h, w): the picture with most patches of the part
    rows = np.flatnonzero(kinds.codes[:, part] == kind)
    areas = (kinds.labels[rows] == part).sum((1, 2))
    return int(rows[areas.argmax()])


def _part_box(kinds: TrainingKinds, row: int, part: int, edge: int) -> tuple[int, int, int, int]:
    """Square box (left, top, right, bottom) in pixels around a part, a patch wider on every side."""
    labels = kinds.labels[row]  # (h, w)
    if part == kinds.background or len(kinds.part_names) == 1 or not (labels == part).any():
        return (0, 0, edge, edge)
    # extent of the part in patches, as half an edge in pixels with one patch to spare
    ys, xs = np.nonzero(labels == part)
    cell = edge / labels.shape[0]
    half = (max(np.ptp(ys), np.ptp(xs)) + 1) / 2 * cell + cell
    half = min(half, edge / 2)
    middle = ((ys.min() + ys.max() + 1) / 2 * cell, (xs.min() + xs.max() + 1) / 2 * cell)
    # moved inside the picture where it would leave it
    top, left = (float(np.clip(centre - half, 0, edge - 2 * half)) for centre in middle)
    return (round(left), round(top), round(left + 2 * half), round(top + 2 * half))


def write_dictionary(dictionary: PartDictionary, path: Path) -> Path:
    """Write a dictionary and read it back before its path is given out."""
    dictionary.save(path)
    PartDictionary.load(path)
    return path
