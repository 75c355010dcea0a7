"""A prompt for the region of every subject and one for the whole picture, as ComfyUI's conditioning with masks.

ComfyUI's samplers average the noise predictions of all entries by their masks: inside a subject's region its own prompt counts, outside
all regions that of the whole picture.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from ...concepts.denoiser.part_attention_patch import feathered
from ...concepts.errors import BestiaryError
from ...scenes.layout_measures import turned_box
from ...scenes.scene_captions import subject_list
from ...scenes.scene_layout import SceneLayout
from ..host.comfy_objects import Clip, Conditioning
from ..host.socket_types import SceneLayouts

SUBJECT_PLACE, PLACE_PLACE = "{subject}", "{place}"
_FAINT = 1e-3
"""Weight of the whole picture's prompt where regions leave it nothing, so that every pixel has a prompt."""


def region_conditioning(
    clip: Clip, layouts: SceneLayouts, text: str, place: str, feather: float, strength: float
) -> Conditioning:
    """The conditioning of a scene.

    Args:
        clip: encodes the prompts.
        layouts: of one picture, or of every picture of a batch; the same subjects on the same canvas in all.
        text: prompt with `{subject}` and, where it is wanted, `{place}`.
        place: words for the place; those of the layout's author where empty.
        feather: width in pixels of a region's soft edge, inside and outside of it.
        strength: share 0..1 of a subject's own prompt inside its region; the rest is the whole picture's.

    Raises:
        BestiaryError: the text has no `{subject}`, a number is out of its range, or layouts differ in their subjects or size.
    """
    _check(layouts, text, feather, strength)
    names = [one.subject for one in layouts.layouts[0].placements]
    said = [layouts.called.get(name, name) for name in names]
    regions = region_masks(layouts, feather) * strength  # (K, N, H, W)
    rest = (1 - regions.sum(0)).clamp(_FAINT, 1)  # (N, H, W)
    where = place.strip() or layouts.place
    everybody = filled(text, subject_list([("", words) for words in said]), where)
    prompts = [filled(text, subject_list([("", words)]), where) for words in said]
    entries = [*zip(prompts, regions, strict=True), (everybody, rest)]
    return [entry for prompt, mask in entries for entry in _masked(clip, prompt, mask)]


def region_masks(layouts: SceneLayouts, feather: float) -> Tensor:
    """`(K, N, H, W)` in 0..1: the box of every subject in every layout; where boxes overlap their sum is 1 at most."""
    names = [one.subject for one in layouts.layouts[0].placements]
    boxes = np.stack([[_box_mask(layout, name) for layout in layouts.layouts] for name in names])  # (K, N, H, W)
    height, width = boxes.shape[2:]
    masks = feathered(torch.from_numpy(boxes).flatten(0, 1), feather)  # (K * N, h, w)
    masks = torch.nn.functional.interpolate(masks[:, None], (height, width), mode="bilinear").reshape(boxes.shape)
    return masks / masks.sum(0).clamp(min=1)


def filled(text: str, subject: str, place: str) -> str:
    """The prompt with its two places filled in; other braces are text.

    Args:
        text: with `{subject}`, before which an article counts for nothing.
        subject: with its article.
        place: may be empty.
    """
    text = re.sub(r"\b(?:an?|one|the)\s+(?=\{subject\})", "", text, flags=re.I)
    values = {SUBJECT_PLACE: subject, PLACE_PLACE: place}
    found = re.sub(r"\{subject\}|\{place\}", lambda match: values[match[0]], text)
    return re.sub(r" +([,.])", r"\1", " ".join(found.split()))


def _masked(clip: Clip, prompt: str, mask: Tensor) -> Conditioning:
    """The entries of a prompt, in effect where a mask `(N, H, W)` is."""
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    masked = {"mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0}
    return [[states, {**options, **masked}] for states, options in encoded]


def _box_mask(layout: SceneLayout, name: str) -> np.ndarray:
    """`(H, W)`, 1 in the box of a subject."""
    left, top, right, bottom = turned_box(layout.placed(name))
    mask = np.zeros((layout.height, layout.width), np.float32)
    mask[max(0, round(top)) : round(bottom), max(0, round(left)) : round(right)] = 1
    return mask


def _check(layouts: SceneLayouts, text: str, feather: float, strength: float) -> None:
    if SUBJECT_PLACE not in text:
        raise BestiaryError(
            f"text {text[:80]!r} does not say where the subject goes: write {SUBJECT_PLACE} there, as in `a photo of {SUBJECT_PLACE} "
            f"{PLACE_PLACE}`"
        )
    if not 0 <= strength <= 1:
        raise BestiaryError(f"strength is {strength:g}; it must be between 0 and 1")
    if not 0 <= feather < float("inf"):
        raise BestiaryError(f"feather is {feather:g}; it must be 0 pixels or more")
    first = layouts.layouts[0]
    names = {one.subject for one in first.placements}
    for layout in layouts.layouts:
        if {one.subject for one in layout.placements} != names or (layout.width, layout.height) != (
            first.width,
            first.height,
        ):
            raise BestiaryError(
                "the layouts differ in their subjects or their size: make them of the same subjects on one canvas"
            )
