"""Masks of the pictures of a graph, with the doubts that the gate has about each."""

from __future__ import annotations

import torch
from torch import Tensor

from ...scenes.cutout import CutoutOptions, cut_in_place
from ...scenes.cutout_gate import faults_of
from ..host.graph_progress import GraphProgress
from .scene_pictures import as_planes, as_tensor, checked_pictures
from .segmentation_weights import needed_segment


def cut_all(
    images: Tensor, weights: str, options: CutoutOptions, progress: GraphProgress
) -> tuple[Tensor, Tensor, str]:
    """Pictures `(B, H, W, 3)` with the subject's colours along its edge, masks `(B, H, W)` and a line on each.

    Args:
        images: `(B, H, W, 3)` in 0..1.
        weights: a choice of the menu.
        options: how masks are cleaned.
        progress: counts pictures.

    Raises:
        BestiaryError: as `needed_segment`, no pictures, or a border that is not plain where the plain ground was chosen.
        InterruptProcessingException: the user cancelled.
    """
    pictures = as_planes(checked_pictures(images)[..., :3])  # (B, H, W, 3)
    segment = needed_segment(weights)
    progress.begin(len(pictures))
    cut, lines = [], []
    for number, picture in enumerate(pictures, start=1):
        progress.add()
        mask = segment(picture)
        doubts = faults_of(mask)
        cut.append(cut_in_place(picture, mask, options))
        share = float((cut[-1][..., 3] >= 128).mean())
        doubt = f"; look at it: {'; '.join(doubts)}" if doubts else ""
        lines.append(f"picture {number}: the subject covers {share:.1%}{doubt}")
    progress.finish()
    done = as_tensor(cut)  # (B, H, W, 4)
    return done[..., :3].contiguous(), torch.clone(done[..., 3]), "\n".join(lines)
