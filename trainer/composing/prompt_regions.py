"""Prompts of their own for regions of a picture, above one prompt for the whole: what `--region` and `--layout` say, and their masks.

Noise predictions of all prompts are averaged by the masks, as ComfyUI does with masked conditionings. Letters: K regions.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...concepts.denoiser.part_attention_patch import feathered
from ...concepts.errors import BestiaryError
from ...concepts.name_search import choices_text, same_name
from ...scenes.layout_measures import turned_box
from ...scenes.scene_layout import SceneLayout

Box = tuple[float, float, float, float]
"""Left, top, right and bottom as shares of the picture, 0 to 1."""
PLACES: dict[str, Box] = {
    "left": (0, 0, 0.5, 1),
    "right": (0.5, 0, 1, 1),
    "top": (0, 0, 1, 0.5),
    "bottom": (0, 0.5, 1, 1),
    "middle": (0.25, 0.25, 0.75, 0.75),
}
_NUMBERS = re.compile(r"\s*([\d.]+)%\s*,\s*([\d.]+)%\s*,\s*([\d.]+)%\s*,\s*([\d.]+)%\s*")


@dataclass(frozen=True)
class PromptRegion:
    """A box of the picture and its prompt."""

    box: Box
    prompt: str


def read_regions(texts: Sequence[str], layout: SceneLayout | None = None) -> list[PromptRegion]:
    """Regions from texts such as `left: a photo of a <head:3> bird`.

    Before the colon stands one of `PLACES`, a subject of the layout, or left, top, width and height such as `0%,0%,50%,100%`.

    Raises:
        BestiaryError: a text without place or prompt, an unknown place, a box outside the picture, or a layout without any prompt.
    """
    if layout is not None and not texts:
        name = layout.placements[0].subject if layout.placements else "cat"
        raise BestiaryError(
            f"--layout says where subjects stand, and --region what is there: add --region '{name}: a photo of ...'"
        )
    return [_read_region(text, layout) for text in texts]


def region_masks(boxes: Sequence[Box], size: tuple[int, int], grid: tuple[int, int], feather: float) -> Tensor:
    """`(K, h, w)` in 0..1, at most 1 in sum.

    Args:
        boxes: as shares of the picture.
        size: height and width of the picture in pixels.
        grid: height and width of the latents.
        feather: width of the soft edge in pixels.
    """
    height, width = size
    hard = torch.zeros(len(boxes), height, width)  # (K, H, W)
    for mask, (left, top, right, bottom) in zip(hard, boxes, strict=True):
        mask[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = 1
    soft = functional.interpolate(feathered(hard, feather)[:, None], grid, mode="area")[:, 0]  # (K, h, w)
    return soft / soft.sum(0).clamp(min=1)


def _read_region(text: str, layout: SceneLayout | None) -> PromptRegion:
    place, colon, prompt = text.partition(":")
    names = {} if layout is None else {one.subject: one for one in layout.placements}
    if not colon or not prompt.strip():
        raise BestiaryError(
            f"--region {text!r}: write a place and a prompt, for example --region 'left: a photo of a bird'"
        )
    if numbers := _NUMBERS.fullmatch(place):
        return PromptRegion(_box_of(text, *(float(number) / 100 for number in numbers.groups())), prompt.strip())
    subject = same_name(place.strip(), names)
    if subject is not None and layout is not None:
        left, top, right, bottom = turned_box(names[subject])
        shares = (left / layout.width, top / layout.height, right / layout.width, bottom / layout.height)
        return PromptRegion(_clipped(text, shares), prompt.strip())
    if place.strip().lower() not in PLACES:
        known = choices_text(place.strip(), [*names, *PLACES])
        raise BestiaryError(
            f"--region {text!r}: {place.strip()!r} is no place: write {known}, or left, top, width and height such as 0%,0%,50%,100%"
        )
    return PromptRegion(PLACES[place.strip().lower()], prompt.strip())


def _box_of(text: str, left: float, top: float, width: float, height: float) -> Box:
    if left + width > 1.0001 or top + height > 1.0001:
        raise BestiaryError(
            f"--region {text!r}: the box leads out of the picture: left and width, top and height, are 100% at most"
        )
    return _clipped(text, (left, top, left + width, top + height))


def _clipped(text: str, box: Box) -> Box:
    left, top, right, bottom = (min(1.0, max(0.0, side)) for side in box)
    if right <= left or bottom <= top:
        raise BestiaryError(f"--region {text!r}: its box is empty or outside the picture: give it a width and a height")
    return left, top, right, bottom
