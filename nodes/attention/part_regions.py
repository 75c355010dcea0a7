"""Regions that confine a part: validation of the user's mask and of its use in a sampling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ...concepts.denoiser.part_attention_patch import feathered
from ...concepts.errors import BestiaryError
from ...concepts.name_search import choices_text, plain_name, shown_name
from ...concepts.part_prompt.prompt_words import PromptWords
from ..host.socket_types import PartSpan

NODE = "Part Regions"


@dataclass(frozen=True, eq=False)
class PartRegion:
    """One part and the mask that confines it."""

    part: str
    """Name of the part, its label with the kind, or a word of the prompt, as the user typed it."""
    mask: Tensor = field(repr=False)
    """`(B, H, W)` in 0..1, feathered."""
    strength: float
    start: float
    """Start of its active range, share of the sampling 0..1."""
    end: float
    block: str | None = None
    """Id of the node that shows warnings."""

    def __deepcopy__(self, memo: dict) -> PartRegion:
        """Returns itself: it is immutable, and models are cloned by deep copies of their options."""
        return self

    @cached_property
    def active(self) -> bool:
        """False if it has no effect: strength 0, an empty range, or a mask that is 1 everywhere."""
        return self.strength > 0 and self.start < self.end and bool((self.mask < 1).any())

    def covers(self, span: PartSpan) -> bool:
        """True if the region applies to this mention of a part."""
        return plain_name(self.part) in (plain_name(span.part), plain_name(span.label))


def make_region(
    part: str, mask: Tensor, strength: float, start: float, end: float, feather: float, block: str | None = None
) -> PartRegion:
    """A validated region.

    Args:
        part: name of a part or a label such as "head:cardinal".
        mask: `(B, H, W)` or `(H, W)`, clipped to 0..1.
        strength: 0..1.
        start, end: shares of the sampling 0..1.
        feather: width of the soft edge in pixels of the mask.
        block: id of the node that shows warnings.

    Raises:
        BestiaryError: no name, an empty or invalid mask, a value out of range.
    """
    # values may come from links, which ComfyUI does not check against the ranges of the inputs
    if not part.strip():
        raise BestiaryError(f'{NODE}: part is {part!r}; type the name of a part of the prompt, such as "head"')
    for name, value in (("strength", strength), ("start_percent", start), ("end_percent", end)):
        if not 0 <= value <= 1:
            raise BestiaryError(f"{NODE}: {name} is {value:g}; it must be between 0 and 1")
    if start >= end:
        raise BestiaryError(f"{NODE}: start_percent {start:g} is not before end_percent {end:g}")
    if not 0 <= feather < float("inf"):
        raise BestiaryError(f"{NODE}: feather is {feather:g}; it must be 0 pixels or more")
    return PartRegion(part.strip(), feathered(_checked_mask(mask, part), feather), strength, start, end, block)


def _checked_mask(mask: Tensor, part: str) -> Tensor:
    """`(B, H, W)` float32 in 0..1."""
    mask = mask.detach().float().unsqueeze(0) if mask.ndim == 2 else mask.detach().float()
    if mask.ndim != 3 or mask.numel() == 0:
        raise BestiaryError(
            f"{NODE}: the mask of {shown_name(part)} has shape {tuple(mask.shape)}; a MASK is (B, H, W)"
        )
    if not torch.isfinite(mask).all():
        raise BestiaryError(f"{NODE}: the mask of {shown_name(part)} contains NaN or infinity; draw or load it again")
    # an empty mask would suppress the part everywhere, which is never intended
    empty = (mask.flatten(1).amax(1) <= 0).nonzero().flatten().tolist()
    if empty:
        which = "" if len(mask) == 1 else f" number {empty[0] + 1} of {len(mask)}"
        raise BestiaryError(
            f"{NODE}: the mask{which} of {shown_name(part)} is empty, so the part cannot appear anywhere; "
            "paint the area where it is allowed, or invert the mask"
        )
    return mask.clamp(0, 1)


def check_regions(
    regions: Iterable[PartRegion], spans: Iterable[PartSpan], images: int, prompts: Sequence[PromptWords] = ()
) -> None:
    """Check that regions can be applied in this sampling.

    Raises:
        BestiaryError: no prompt contains the part or word, or the number of masks is neither one nor `images`.
    """
    spans = list(spans)
    for region in regions:
        if not any(map(region.covers, spans)) and not any(prompt.places(region.part) for prompt in prompts):
            # offer the parts and words that the prompts do contain, each name once
            names = dict.fromkeys(name for span in spans for name in (span.part, span.label))
            names |= dict.fromkeys(name for prompt in prompts for name in prompt.names())
            held = f"choose one of {choices_text(region.part, list(names))}" if names else (
                "they contain no part tokens at all; write them with Part Prompt"
            )  # fmt: skip
            kind = "part or word" if prompts else "part"
            raise BestiaryError(
                f"{NODE}: no prompt of this sampler contains the {kind} {shown_name(region.part)}; {held}"
            )
        if len(region.mask) not in (1, images):
            raise BestiaryError(
                f"{NODE}: {len(region.mask)} masks of {shown_name(region.part)} for {images} pictures; "
                "give one mask, or one for every picture"
            )
