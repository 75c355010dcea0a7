"""A recorded sampling for the browser's heat-map viewer: one grey picture with all maps, and its description.

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
"""Maximum number of separate steps; more are averaged in groups."""
MOST_PICTURES = 4
LARGEST_EDGE = 48
"""Maximum longer edge of a map; finer maps are averaged."""


def sheet_of_maps(sampling: RecordedSampling) -> tuple[Tensor, dict[str, object]]:
    """All maps as tiles of one picture, and the facts needed to locate them.

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
    # average fine maps: the viewer would download megabytes per sampling otherwise
    factor = math.ceil(max(height, width) / LARGEST_EDGE)
    if factor > 1:
        maps = functional.avg_pool2d(maps.flatten(0, 2)[:, None], factor, ceil_mode=True)[:, 0]
        height, width = maps.shape[-2:]
        maps = maps.view(steps, pictures, parts, height, width)
    peaks = maps.amax((0, 1, 3, 4)).clamp(min=1e-12)  # (P,)
    grey = maps / peaks.view(-1, 1, 1)
    # tile rows are (step, picture), tile columns are parts
    sheet = grey.permute(0, 1, 3, 2, 4).reshape(1, steps * pictures * height, parts * width, 1)
    facts = {
        "parts": [part.title for part in sampling.parts],
        "steps": [[int(group[0]) + 1, int(group[-1]) + 1] for group in groups],
        "pictures": pictures,
        "grid": [height, width],
        "peaks": [float(peak) for peak in peaks],
    }
    # ComfyUI truncates when it writes 8-bit pictures: the offset of a quarter level keeps the rounded value
    return ((sheet * 255).round() / 255 + 0.25 / 255).clamp(0, 1).expand(-1, -1, -1, 3), facts


def _mean_where_held(maps: Tensor, held: Tensor) -> Tensor:
    """Mean `(B, P, h, w)` of some steps `(n, B, P, h, w)`, each part over the steps `(n, P)` at which a prompt held it."""
    weights = held.float() / held.float().sum(0).clamp(min=1)
    return torch.einsum("nbphw,np->bphw", maps, weights)


def saved_maps(
    sampling: RecordedSampling, image: Tensor | None, node: type[io.ComfyNode] | None = None
) -> dict[str, object]:
    """The maps and the pictures `(B, H, W, 3)` below them as files in the temporary folder, with the facts."""
    sheet, facts = sheet_of_maps(sampling)
    pictures = [] if image is None else ui.PreviewImage(image[: facts["pictures"]], cls=node).as_dict()["images"]
    return {**facts, "sheet": ui.PreviewImage(sheet, cls=node).as_dict()["images"][0], "grounds": pictures}
