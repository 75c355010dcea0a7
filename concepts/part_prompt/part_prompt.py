r"""The prompt grammar: learned parts named inside plain text, with ComfyUI's weights around both.

    prompt  = { text | "(" prompt [":" weight] ")" | mention }
    mention = "<" [dictionary "."] part ":" kinds ">"      <head:cardinal>  <head:17>  <0:17>  <birds.head:blue jay>
    kinds   = kind | kind "*" factor { "+" kind "*" factor }         <head:17*0.6+blue jay*0.4>

A backslash makes the next character plain: `\(`, `\)`, `\<`, `\\` in text; `\:`, `\.`, `\*`, `\+`, `\@`, `\>` in mentions. `<`
before a space is text unless a closed `< part : kind >` follows. Weights follow ComfyUI: "(x)" multiplies by 1.1, "(x:1.3)"
sets 1.3, brackets nest, and one that is never closed is text. Parsing is pure; `resolve_prompt` looks names up. Nothing
in a prompt is ever a file name. Of the forms of kamwoh/partcraft @ dfe64e1, app.py, `<head:17>` means the same here; `<2:16>`
counts from 0 there and from the dictionary's id base here. A bare "10:30" is text, and nothing is clamped.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, replace
from typing import ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ..denoiser.denoiser import PromptPiece
from ..errors import BestiaryError
from ..name_search import NameIndex, choices_text, same_name, shown_name
from ..part_dictionary.part_dictionary import PartDictionary
from .part_mention import (
    LONGEST_NAME,
    NUMBER,
    PartMention,
    PromptError,
    find_mentions,
    foreign_hint,
    last_plain,
    next_plain,
    unescaped,
)

BRACKET_FACTOR = 1.1
"""Weight of a pair of brackets without a number (ComfyUI)."""
DEEPEST_BRACKETS = 64
ROWS_AT_A_TIME = 4096

_ESCAPED = re.compile(r"\\([()<>\\])")
_BRACKETS = re.compile(r"\\.?|[()<]", re.DOTALL)
"""End of a run of plain text; escaped characters do not end it."""


class Weighed(Protocol):
    """A mention with the weight of its enclosing brackets: a dataclass with a field `weight`."""

    __dataclass_fields__: ClassVar[dict[str, Field]]

    @property
    def weight(self) -> float:
        """1 is neutral."""
        ...


Mention = TypeVar("Mention", bound=Weighed)
Mentions = Mapping[int, tuple[int, Mention]]
"""Start of a mention -> its end and content."""


@dataclass(frozen=True)
class TextSegment:
    """A run of plain text, escapes removed."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class PartPrompt:
    """A parsed prompt."""

    segments: tuple[TextSegment | PartMention, ...]

    @property
    def mentions(self) -> tuple[PartMention, ...]:
        """The mentions in their order."""
        return tuple(segment for segment in self.segments if isinstance(segment, PartMention))


@dataclass(frozen=True)
class ResolvedMention:
    """A mention as numbers."""

    part: int
    kinds: tuple[tuple[int, float], ...]
    """Stored kind ids with their factors."""
    dictionary: str
    weight: float


@dataclass(frozen=True)
class ResolvedPrompt:
    """What a denoiser's text side takes."""

    pieces: tuple[PromptPiece, ...]
    vectors: Tensor
    """`(P, D)` float32, in the order of the vector pieces."""
    mentions: tuple[ResolvedMention, ...]


def parse_part_prompt(text: str) -> PartPrompt:
    """Split a prompt into text and mentions with their weights.

    Raises:
        PromptError: a mention is malformed; the message says the column and what to write.
    """
    return PartPrompt(tuple(weigh_segments(text, find_mentions(text))))


def weigh_segments(text: str, mentions: Mentions[Mention]) -> Iterator[TextSegment | Mention]:
    """Text and mentions in their order, each with the weight that the brackets around it give.

    Raises:
        PromptError: brackets nest too deeply.
    """
    return _weigh(text, 0, len(text), 1.0, mentions, _find_brackets(text, mentions))


def check_brackets(text: str, mentions: Mentions) -> None:
    """Raises PromptError where brackets nest too deeply; ComfyUI's own reading of them ends in a RecursionError there."""
    _find_brackets(text, mentions)


class _Bracket(NamedTuple):
    """A pair of round brackets."""

    closing: int
    """Place of the closing one."""
    own_text: int
    """Place behind the last mention inside, from where on a colon is the bracket's own."""


def _find_brackets(text: str, mentions: Mentions) -> dict[int, _Bracket]:
    """Place of every opening bracket that is closed -> the pair; those in mentions are names' own."""
    # one pass with a stack, so that a thousand open brackets cost no more than a thousand letters
    open_places: list[int] = []
    pairs: dict[int, _Bracket] = {}
    last_mention = 0
    found = _BRACKETS.search(text)
    while found:
        place, then = found.start(), found.end()
        # brackets inside a mention belong to a name
        if place in mentions:
            last_mention = then = mentions[place][0]
        elif text[place] == "(":
            open_places.append(place)
        elif text[place] == ")" and open_places:
            opening = open_places.pop()
            pairs[opening] = _Bracket(place, max(opening + 1, last_mention))
            if len(open_places) >= DEEPEST_BRACKETS:
                raise PromptError(
                    place + 1, f"brackets nest deeper than {DEEPEST_BRACKETS}: write one weight, (text:1.5)"
                )
        found = _BRACKETS.search(text, then)
    return pairs


def _weigh(
    text: str, begin: int, end: int, weight: float, mentions: Mentions[Mention], brackets: Mapping[int, _Bracket]
) -> Iterator[TextSegment | Mention]:
    """The segments of `text[begin:end]` with the outer `weight`; nested brackets are resolved recursively."""
    plain_from = begin
    found = _BRACKETS.search(text, begin, end)
    while found:
        place, then = found.start(), found.end()
        # nothing begins here: on to the next character that may matter
        if place in mentions or place in brackets:
            # the text before a mention or a bracket ends here
            if plain_from < place:
                yield TextSegment(_ESCAPED.sub(r"\1", text[plain_from:place]), weight)
            if place in mentions:
                then, mention = mentions[place]
                yield replace(mention, weight=weight)
            else:
                inner_end, inner_weight = _bracket_weight(text, place + 1, brackets[place], weight)
                yield from _weigh(text, place + 1, inner_end, inner_weight, mentions, brackets)
                then = brackets[place].closing + 1
            plain_from = then
        found = _BRACKETS.search(text, then, end)
    if plain_from < end:
        yield TextSegment(_ESCAPED.sub(r"\1", text[plain_from:end]), weight)


def _bracket_weight(text: str, begin: int, bracket: _Bracket, weight: float) -> tuple[int, float]:
    """Where the content of a bracket ends, and its weight: the number after its last colon, else 1.1 times as much."""
    end = bracket.closing
    # colons inside mentions do not separate a weight
    colon = text.rfind(":", bracket.own_text, end)
    if colon > begin and text[colon - 1] != "\\" and NUMBER.fullmatch(text, colon + 1, end):
        return colon, float(text[colon + 1 : end])
    return end, weight * BRACKET_FACTOR


def resolve_prompt(prompt: PartPrompt, dictionaries: Mapping[str, PartDictionary]) -> ResolvedPrompt:
    """Look every mention up and blend its vectors linearly.

    Args:
        prompt: from `parse_part_prompt`.
        dictionaries: name -> dictionary; all of one backbone. A mention without a dictionary's name is looked for in all.

    Raises:
        PromptError: a dictionary, part or kind is unknown, or a part stands in several dictionaries.
        BestiaryError: the dictionaries belong to different backbones.
    """
    # checked before any name is looked up: vectors of two models cannot stand side by side
    widths = {name: (one.backbone, one.vector_width) for name, one in dictionaries.items()}
    if len(set(widths.values())) > 1:
        raise BestiaryError(f"dictionaries of different base models cannot be used in one prompt: {widths}")
    mentions: list[ResolvedMention] = []
    for mention in prompt.mentions:
        try:
            mentions.append(_resolve(mention, dictionaries))
        except PromptError:
            raise
        except BestiaryError as fault:
            raise PromptError(mention.column, str(fault)) from fault
    # without a mention the vectors are (0, D), so that callers need no special case
    width = next(iter(widths.values()))[1] if widths else 0
    vectors = torch.zeros(len(mentions), width)  # (P, D)
    for name, owner in dictionaries.items():
        own = [(place, one) for place, one in enumerate(mentions) if one.dictionary == name]
        terms = [(place, (one.part, kind), factor) for place, one in own for kind, factor in one.kinds]
        # a few thousand rows at a time: blends may name far more of them than the prompt has vectors
        for begin in range(0, len(terms), ROWS_AT_A_TIME):
            places, pairs, factors = zip(*terms[begin : begin + ROWS_AT_A_TIME], strict=True)
            # factors as typed, not normalised: 1 and 0 give the ends exactly, others may go beyond them
            scaled = owner.vectors(pairs) * torch.tensor(factors).unsqueeze(1)  # (terms, D)
            vectors.index_add_(0, torch.tensor(places), scaled)
    pieces = [_piece(segment) for segment in prompt.segments]
    return ResolvedPrompt(tuple(pieces), vectors, tuple(mentions))


def _piece(segment: TextSegment | PartMention) -> PromptPiece:
    return PromptPiece(segment.text if isinstance(segment, TextSegment) else None, segment.weight)


def _resolve(mention: PartMention, dictionaries: Mapping[str, PartDictionary]) -> ResolvedMention:
    name, part_text = _choose_dictionary(mention, dictionaries)
    owner = dictionaries[name]
    part = owner.find_part(part_text)
    kinds = tuple((owner.find_kind(part, kind), factor) for kind, factor in mention.kinds)
    return ResolvedMention(part, kinds, name, mention.weight)


def _choose_dictionary(mention: PartMention, dictionaries: Mapping[str, PartDictionary]) -> tuple[str, str]:
    """Name of the dictionary a mention means, and its part as typed."""
    hint = None if names_part(mention.target, dictionaries) else foreign_hint(mention.target)
    if hint:
        raise BestiaryError(hint)
    if not dictionaries:
        raise BestiaryError(f"<{unescaped(mention.target)}:...> refers to a part, but no part dictionary is loaded")
    # the whole target may be a part's name, dots included; only then is it cut at its dots, from the left
    whole = unescaped(mention.target)
    holders = [name for name, one in dictionaries.items() if one.part_called(whole) is not None]
    if len(holders) > 1:
        choices = ", ".join(f"<{name}.{whole}:...>" for name in holders)
        raise BestiaryError(f"part {shown_name(whole)} exists in several dictionaries: write one of {choices}")
    if holders:
        return holders[0], whole
    # at which dot the dictionary's name ends is found by trying
    dot = next_plain(mention.target, ".", 0)
    while dot < len(mention.target):
        named, part = unescaped(mention.target[:dot]), unescaped(mention.target[dot + 1 :])
        owner = same_name(named, dictionaries)
        if owner is not None:
            return owner, part
        dot = next_plain(mention.target, ".", dot + 1)
    if next_plain(mention.target, ".", 0) < len(mention.target):
        named = mention.target[: last_plain(mention.target, ".")]
        raise BestiaryError(
            f"unknown dictionary {shown_name(unescaped(named))}: choose {choices_text(named, list(dictionaries))}"
        )
    # with one dictionary its own message lists the parts, the closest first
    if len(dictionaries) == 1:
        return next(iter(dictionaries)), whole
    parts = [f"{name}.{part}" for name, one in dictionaries.items() for part in _trained_parts(one)]
    raise BestiaryError(f"unknown part {shown_name(whole)}: choose {choices_text(whole, parts)}")


def names_part(target: str, dictionaries: Mapping[str, PartDictionary]) -> bool:
    """Whether what stands before the colon of a mention is a part of one of the dictionaries."""
    if any(one.part_called(unescaped(target)) is not None for one in dictionaries.values()):
        return True
    by_name = NameIndex(dictionaries.items())
    dot = next_plain(target[:LONGEST_NAME], ".", 0)
    while dot < min(len(target), LONGEST_NAME):
        owners = by_name.find(unescaped(target[:dot]))
        if owners and owners[0].part_called(unescaped(target[dot + 1 :])) is not None:
            return True
        dot = next_plain(target[:LONGEST_NAME], ".", dot + 1)
    return False


def _trained_parts(dictionary: PartDictionary) -> list[str]:
    return [name for part, name in enumerate(dictionary.part_names) if dictionary.kinds_of(part)]
