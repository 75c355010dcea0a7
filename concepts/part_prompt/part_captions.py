"""Training captions: the part tokens of one picture, each time in a random order and sentence.

kamwoh/partcraft @ dfe64e1, train_dreamcreature_sd.py:454-487. All random numbers come from the given numpy
Generator, so that a seed determines every caption. Of a picture with several things each has a slot, and its parts stand
together: "a photo of a <parts> bird and a <parts> bird". Letters: N pictures, M parts, S slots, P learned vectors of a caption.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..denoiser.denoiser import PromptPiece
from ..errors import BestiaryError
from ..part_map.part_map import ABSENT
from .prompt_templates import PHOTO_TEMPLATES


@dataclass(frozen=True)
class CaptionStyle:
    """Settings for captions; the defaults are those of the published runs."""

    template_probability: float = 0.5
    """Probability of a sentence around the tokens instead of the tokens alone, 0..1."""
    templates: tuple[str, ...] = PHOTO_TEMPLATES
    """Sentences, each with one `{}`."""
    shuffle: bool = True
    """Use a random order of the parts."""
    drop_probability: float = 0.0
    """Probability of dropping some parts of a caption with at least two, 0..1 (0.5 with --drop_tokens of the reference)."""
    keep_count: int | None = None
    """Number of parts that such a caption keeps; None keeps half of them, rounded down, at least one."""
    class_noun: str = ""
    """Plain word after the tokens, such as "bird"; empty for none."""

    def __post_init__(self) -> None:
        """Raises BestiaryError if a value is out of range."""
        for name in ("template_probability", "drop_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise BestiaryError(f"{name} is {getattr(self, name)}: give a probability from 0 to 1")
        # each sentence has one placeholder for the tokens
        broken = [template for template in self.templates if template.count("{}") != 1]
        if broken or (self.template_probability and not self.templates):
            raise BestiaryError(f"templates need exactly one {{}} each: {broken[0] if broken else 'none was given'!r}")
        if self.keep_count is not None and self.keep_count < 1:
            raise BestiaryError(f"keep_count is {self.keep_count}: enter at least 1")


@dataclass(frozen=True)
class PartCaption:
    """One caption with its learned vectors."""

    pieces: tuple[PromptPiece, ...]
    """Text and vectors in their order."""
    parts: tuple[int, ...]
    """Part of each vector, or its column slot * M + part, in the order of the pieces."""
    kinds: tuple[int, ...]
    """Kind of each vector, in the same order."""

    def codes(self, num_parts: int) -> Tensor:
        """One row `(M,)` long of codes `(B, M)`: kind of every part, ABSENT where the caption does not name it."""
        codes = torch.full((num_parts,), ABSENT, dtype=torch.long)
        codes[list(self.parts)] = torch.tensor(self.kinds, dtype=torch.long)
        return codes

    def places_by_part(self, positions: Tensor, num_parts: int) -> Tensor:
        """Positions `(P,)` in caption order -> one row `(M,)` of `(B, M)` in part order, -1 where a part is not named."""
        places = torch.full((num_parts,), -1, dtype=torch.long)
        places[list(self.parts)] = positions
        return places


def build_part_caption(
    codes: Tensor | np.ndarray, rng: np.random.Generator, style: CaptionStyle | None = None, *, slots: int = 1
) -> PartCaption:
    """A caption of the parts a picture shows.

    Args:
        codes: `(S * M,)`, one row of codes `(N, S * M)`: kind of every part, ABSENT (or any negative number) where the picture does not
            show it.
        rng: source of all chance.
        style: None for the defaults.
        slots: S, things of the picture; those that show no part are not named.

    Raises:
        BestiaryError: the picture shows no part.
    """
    style = style or CaptionStyle()
    shown = [part for part, kind in enumerate(codes.tolist()) if kind >= 0]
    if not shown:
        raise BestiaryError(
            f"a picture with codes {codes.tolist()} shows no part and cannot be captioned: leave it out"
        )
    parts = len(codes) // slots
    things = [[part for part in shown if part // parts == slot] for slot in range(slots)]
    things = [thing for thing in things if thing]
    if style.shuffle and len(things) > 1:
        things = [things[index] for index in rng.permutation(len(things))]
    named = [_chosen(thing, rng, style) for thing in things]
    order = [part for thing in named for part in thing]
    pieces = _in_sentence(thing_pieces([len(thing) for thing in named], style.class_noun), rng, style)
    return PartCaption(tuple(pieces), tuple(order), tuple(int(codes[part]) for part in order))


def thing_pieces(counts: Sequence[int], noun: str = "") -> list[PromptPiece]:
    """Things of so many vectors each, with the noun behind each but the last and `and a` between them."""
    pieces: list[PromptPiece] = []
    for place, count in enumerate(counts):
        if place:
            link = " and a " if place == len(counts) - 1 else " , a "
            pieces.append(PromptPiece(f" {noun}{link}" if noun else link))
        pieces += [PromptPiece(None)] * count
    return pieces


def _chosen(thing: list[int], rng: np.random.Generator, style: CaptionStyle) -> list[int]:
    """The parts of one thing in their order, perhaps without some."""
    # part numbers stay beside the order, because every vector must find its mask again
    if style.shuffle:
        thing = [thing[index] for index in rng.permutation(len(thing))]
    # after shuffling, so that every part is dropped equally often
    if len(thing) > 1 and rng.random() < style.drop_probability:
        thing = thing[: style.keep_count or max(1, len(thing) // 2)]
    return thing


def _in_sentence(vectors: list[PromptPiece], rng: np.random.Generator, style: CaptionStyle) -> list[PromptPiece]:
    """The vectors, perhaps inside a sentence, perhaps followed by the class noun."""
    before = after = ""
    if rng.random() < style.template_probability:
        before, after = style.templates[int(rng.integers(len(style.templates)))].split("{}")
    # the noun stands inside the sentence, right behind the tokens
    after = f" {style.class_noun}{after}" if style.class_noun else after
    return [*_text(before), *vectors, *_text(after)]


def _text(text: str) -> list[PromptPiece]:
    return [PromptPiece(text)] if text.strip() else []


def supervised_codes(codes: Tensor, classes: Tensor, background: int | None) -> Tensor:
    """Codes with the picture's own class as the kind of every part it shows; the background keeps its discovered kind.

    Args:
        codes: `(N, M)`, ABSENT where a part is not shown.
        classes: `(N,)` class of every picture, 0 or more.
        background: index of the background part, None if there is none.

    Returns:
        `(N, M)` in the dtype of `codes`.
    """
    # absent parts stay absent: a class says nothing of what a picture shows
    given = classes.to(codes.dtype).unsqueeze(1).expand_as(codes)  # (N, M)
    replaced = torch.where(codes < 0, codes, given)  # (N, M)
    if background is not None:
        replaced[:, background] = codes[:, background]
    return replaced
