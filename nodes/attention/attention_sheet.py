"""A recorded sampling as the browser's heat-map viewer takes it: one grey picture of all maps, and a few words beside it.

Letters: S steps shown, B pictures, P parts, (h, w) grid of the maps.
"""

from __future__ import annotations

import math

import torch
from comfy_api.latest import io, ui
from torch import Tensor
from torch.nn import functional

from .attention_record import RecordedSampling

MOST_STEPS = 32
"""Steps that can be told apart; more are averaged in groups."""
MOST_PICTURES = 4
LARGEST_EDGE = 48
"""Longer edge of a map; finer ones are averaged."""


def sheet_of_maps(sampling: RecordedSampling) -> tuple[Tensor, dict[str, object]]:
    """All maps in one picture, tile by tile, and what a reader needs to find them.

    Returns:
        `(1, S * B * h, P * w, 3)` in 0..1, grey: rows are steps and within them pictures, columns are parts; every part is
        divided by its `peaks`, its largest value, so that steps can be compared. And the facts: `parts` (names), `steps`
        (first and last of each row of steps, from 1), `pictures`, `grid` (h, w), `peaks` (probabilities).
    """
    maps = sampling.maps[:, :MOST_PICTURES]  # (steps, B, P, h, w)
    # more steps than fit are averaged in groups
    groups = torch.arange(len(maps)).chunk(min(MOST_STEPS, len(maps)))
    maps = torch.stack([_mean_where_held(maps[group], sampling.held[group]) for group in groups])  # (S, B, P, h, w)
    steps, pictures, parts, height, width = maps.shape
    # finer maps than a viewer can show are averaged
    factor = math.ceil(max(height, width) / LARGEST_EDGE)
    if factor > 1:
        maps = functional.avg_pool2d(maps.flatten(0, 2)[:, None], factor, ceil_mode=True)[:, 0]
        height, width = maps.shape[-2:]
        maps = maps.view(steps, pictures, parts, height, width)
    peaks = maps.amax((0, 1, 3, 4)).clamp(min=1e-12)  # (P,)
    grey = maps / peaks.view(-1, 1, 1)
    # rows: steps and in them pictures; columns: parts
    sheet = grey.permute(0, 1, 3, 2, 4).reshape(1, steps * pictures * height, parts * width, 1)
    facts = {
        "parts": [part.title for part in sampling.parts],
        "steps": [[int(group[0]) + 1, int(group[-1]) + 1] for group in groups],
        "pictures": pictures,
        "grid": [height, width],
        "peaks": [float(peak) for peak in peaks],
    }
    # pictures are written by cutting off, not rounding: the nearest level must stay the nearest
    return ((sheet * 255).round() / 255 + 0.25 / 255).clamp(0, 1).expand(-1, -1, -1, 3), facts


def _mean_where_held(maps: Tensor, held: Tensor) -> Tensor:
    """Mean `(B, P, h, w)` of some steps `(n, B, P, h, w)`, each part over the steps `(n, P)` at which a prompt held it."""
    weights = held.float() / held.float().sum(0).clamp(min=1)
    return torch.einsum("nbphw,np->bphw", maps, weights)


def saved_maps(
    sampling: RecordedSampling, image: Tensor | None, node: type[io.ComfyNode] | None = None
) -> dict[str, object]:
    """The maps and the pictures `(B, H, W, 3)` under them as files of the temporary folder, and the facts beside them."""
    sheet, facts = sheet_of_maps(sampling)
    pictures = [] if image is None else ui.PreviewImage(image[: facts["pictures"]], cls=node).as_dict()["images"]
    return {**facts, "sheet": ui.PreviewImage(sheet, cls=node).as_dict()["images"][0], "grounds": pictures}
