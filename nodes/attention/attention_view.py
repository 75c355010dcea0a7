"""Turns a record of attention into heat maps, an overview, masks and a text with figures.

Letters: B pictures, P parts shown, F = B * P frames, picture by picture.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.name_search import NameIndex, choices_text, shown_name
from .attention_pictures import (
    blank_picture,
    heat_frame,
    overview,
    percent,
    picture_of,
    plain_frame,
    resized_weights,
    stretched,
)
from .attention_record import AttentionRecord, RecordedPart, RecordedSampling

NODE = "Show Attention"


@dataclass(frozen=True)
class AttentionView:
    """Outputs of the node."""

    frames: Tensor
    """`(F, H', W', 3)` heat maps with their names below, in 0..1."""
    overviews: Tensor
    """`(B, H'', W'', 3)` one sheet per picture with all its heat maps."""
    masks: Tensor
    """`(F, H, W)` in 0..1, with the size of the picture."""
    text: str


def view_attention(
    record: AttentionRecord,
    latent: Tensor | None,
    image: Tensor | None,
    parts: str,
    first: int,
    last: int,
    opacity: float,
    threshold: float,
) -> AttentionView:
    """Draw the maps of one recorded sampling.

    Args:
        record: the record of the patch.
        latent: `(B, C, h, w)` result of the sampler; selects the sampling.
        image: `(B, H, W, 3)` the picture to draw over; None draws over a dark background.
        parts: names or labels separated by commas; empty shows all.
        first, last: steps, counted from 1.
        opacity: 0..1 of the heat maps.
        threshold: masks are 1 where the attention reaches this share of its range and 0 elsewhere; 0 keeps them soft.

    Raises:
        BestiaryError: nothing is connected or recorded, no such part or step, or pictures of another sampling.
    """
    if latent is None and image is None:
        raise BestiaryError(
            f"{NODE}: connect the LATENT of the sampler, its decoded IMAGE, or both; they make this node run after it"
        )
    # select sampling, steps and parts before drawing: every user error is raised here
    sampling = record.find(latent)
    maps, held = sampling.mean(first, last)  # (B, P, h, w), (P,)
    shown = _chosen(sampling, held, parts, first, last)
    maps = maps[:, shown]
    if image is not None and len(image) != len(maps):
        raise BestiaryError(
            f"{NODE}: {len(image)} pictures are connected, but the sampling made {len(maps)}; connect the pictures it made"
        )
    titles = [sampling.parts[i].title for i in shown]
    frames, overviews = _draw(maps, image, sampling.latent_size, titles, opacity)
    return AttentionView(
        _stacked(frames),
        _stacked(overviews),
        _masks(maps, image, sampling.latent_size, threshold),
        _described(sampling, maps, titles, (first, last)),
    )


def _chosen(sampling: RecordedSampling, held: Tensor, names: str, first: int, last: int) -> list[int]:
    """Indices of the parts `(P,)` to show, in the requested order."""
    if not sampling.parts:
        raise BestiaryError(f"{NODE}: the prompts of this sampling contain no part tokens; write them with Part Prompt")
    # parts whose prompt was active in these steps
    active = [i for i in range(len(sampling.parts)) if held[i]]
    wanted = [name for name in re.split(r"[,;\n]", names) if name.strip()]
    chosen = active if not wanted else list(dict.fromkeys(i for name in wanted for i in _named(sampling.parts, name)))
    silent = [sampling.parts[i].title for i in chosen if not held[i]]
    if silent or not chosen:
        raise BestiaryError(
            f"{NODE}: nothing was recorded of {', '.join(silent) or 'any part'} in steps {first} to {last}; "
            + (sampling.notice or "choose more steps, or a part whose prompt is active in them")
        )
    return chosen


def _named(parts: tuple[RecordedPart, ...], name: str) -> list[int]:
    # accept the part alone, its label with the kind, or the title with "(negative)"
    named = ((text, i) for i, part in enumerate(parts) for text in dict.fromkeys((part.title, part.label, part.part)))
    found = list(dict.fromkeys(NameIndex(named).find(name)))
    if not found:
        choices = list(dict.fromkeys(text for part in parts for text in (part.part, part.title)))
        raise BestiaryError(
            f"{NODE}: no part {shown_name(name.strip())} was recorded; available: {choices_text(name, choices)}"
        )
    return found


def _draw(
    maps: Tensor, image: Tensor | None, latent: tuple[int, int], titles: list[str], opacity: float
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Frames of all pictures, and an overview of each."""
    frames, overviews = [], []
    for number, of_picture in enumerate(maps):  # (P, h, w)
        # without a connected picture the maps are drawn over a dark background
        ground = blank_picture(latent) if image is None else picture_of(image[number])
        weights, low, high = stretched(of_picture)
        facts = zip(weights, titles, low.tolist(), high.tolist(), strict=True)
        own = [heat_frame(ground, part, title, least, most, opacity) for part, title, least, most in facts]
        frames += own
        overviews.append(overview(own if image is None else [plain_frame(ground, "picture"), *own]))
    return frames, overviews


def _masks(maps: Tensor, image: Tensor | None, latent: tuple[int, int], threshold: float) -> Tensor:
    """`(F, H, W)` attention of every part normalised to 0..1, binary with a threshold."""
    # size of the picture, or 8 times the latent if none is connected
    size = (latent[0] * 8, latent[1] * 8) if image is None else (image.shape[1], image.shape[2])
    weights = resized_weights(stretched(maps.flatten(0, 1))[0], size)
    return weights if threshold <= 0 else (weights >= threshold).float()


def _described(sampling: RecordedSampling, maps: Tensor, titles: list[str], steps: tuple[int, int]) -> str:
    """One line per part and picture: strength and centre of its attention."""
    first, last = steps[0], min(steps[1], sampling.maps.shape[0])
    lines = [f"steps {first} to {last} of {sampling.maps.shape[0]}"]
    # coordinates of the cell centres as shares of the picture
    down, across = (torch.linspace(0.5 / n, 1 - 0.5 / n, n) for n in maps.shape[-2:])
    for number, of_picture in enumerate(maps):  # (P, h, w)
        for title, part in zip(titles, of_picture, strict=True):
            whole = part.sum().clamp(min=1e-12)
            x, y = float((part.sum(0) @ across) / whole), float((part.sum(1) @ down) / whole)
            name = f"picture {number + 1}, {title}" if len(maps) > 1 else title
            lines.append(
                f"{name}: {percent(float(part.max()))} of the attention at its peak, {percent(float(part.mean()))} on "
                f"average, middle {100 * x:.0f} % from the left and {100 * y:.0f} % from the top"
            )
    if sampling.notice:
        lines.append(sampling.notice)
    return "\n".join(lines)


def _stacked(pictures: list[Image.Image]) -> Tensor:
    """Pictures of one size as an IMAGE `(F, H, W, 3)` in 0..1."""
    return torch.stack([torch.from_numpy(np.asarray(picture).copy()) for picture in pictures]).float() / 255
