"""Parts selected in the graph: created from a dictionary, combined, and written into a prompt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.name_search import plain_name, shown_name
from ...concepts.part_dictionary.new_kinds import random_kinds, with_new_kinds
from ...concepts.part_prompt.mention_writing import KindBlend, blended_vector, written_kinds, written_mention
from ...concepts.part_prompt.part_mention import PartMention, find_mentions, unescaped
from ..host.socket_types import ALL_PARTS, PARTS_PLACE, ChosenPart, ChosenParts, NamedDictionary

MentionKey = tuple[str, tuple[tuple[str, float], ...]]
"""Normalised form of a mention for comparison: its target, and its kinds with their factors."""


def choose_kinds(named: NamedDictionary, part: int, kinds: KindBlend, weight: float = 1.0) -> ChosenPart:
    """A part with its kinds and their vector `(D,)`, so that it can be used without loading the dictionary."""
    owner = named.dictionary
    vector = blended_vector(owner, part, kinds)  # (D,)
    return ChosenPart(named.name, owner.part_names[part], written_kinds(owner, part, kinds), weight, vector)


def draw_random(
    named: NamedDictionary, part: str, seed: int, spread: float, weight: float = 1.0
) -> tuple[ChosenParts, NamedDictionary]:
    """One new kind of a part, or for "all" of every part except the background; and the dictionary extended by them.

    Raises:
        BestiaryError: an unknown part, or a spread out of range.
    """
    owner = named.dictionary
    if plain_name(part) == ALL_PARTS:
        trained = [index for index in range(len(owner.part_names)) if owner.kinds_of(index)]
        # fall back to the background if it is the only trained part
        numbers = [index for index in trained if index != owner.background] or trained
    else:
        numbers = [owner.find_part(part)]
    origin = {"drawn_from": named.name, "seed": seed, "spread": spread}
    extended, ids = with_new_kinds(owner, random_kinds(owner, numbers, seed, spread), origin)
    grown = NamedDictionary(named.name, extended)
    drawn = [choose_kinds(grown, *pair, weight) for pair in zip(numbers, (((kind, 1.0),) for kind in ids), strict=True)]
    return ChosenParts(tuple(drawn)), grown


def written_part(chosen: ChosenPart) -> str:
    """The mention of one part, "<birds.head:cardinal>" or "(<birds.head:cardinal>:1.2)"."""
    return written_mention(chosen.dictionary, chosen.part, chosen.kind, chosen.weight)


def written_parts(chosen: ChosenParts) -> str:
    """The mentions of all parts in order, separated by spaces as in training captions."""
    return " ".join(written_part(part) for part in chosen.parts)


def combine_parts(groups: Iterable[ChosenParts | None], *, allow_repeats: bool = False) -> ChosenParts:
    """All parts in order.

    Raises:
        BestiaryError: there is none, or a part occurs twice without `allow_repeats`.
    """
    parts = [part for group in groups if group is not None for part in group.parts]
    if not parts:
        raise BestiaryError("no part is connected: connect at least one from Part, Blend Kinds or Random Kind")
    seen: dict[str, ChosenPart] = {}
    for part in parts:
        earlier = seen.get(plain_name(part.part))
        seen[plain_name(part.part)] = part
        if earlier is not None and not allow_repeats:
            raise BestiaryError(
                f"part {shown_name(part.part)} is requested twice, as {written_part(earlier)} and {written_part(part)}: "
                "disconnect one of them, or enable allow_repeats"
            )
    return ChosenParts(tuple(parts))


def fill_template(template: str, chosen: ChosenParts | None) -> str:
    """A prompt with the parts in place of {parts}, or appended; without parts {parts} is removed."""
    if chosen is None:
        return re.sub(rf" ?{re.escape(PARTS_PLACE)}", "", template)
    mentions = written_parts(chosen)
    if PARTS_PLACE in template:
        return template.replace(PARTS_PLACE, mentions)
    return f"{template} {mentions}" if template.strip() else mentions


def repeat_notice(typed: Sequence[tuple[str, str]], chosen: ChosenParts | None) -> str | None:
    """Notice about a part that occurs twice in a prompt, None if there is none.

    Linked parts are repeated only with `allow_repeats` of `combine_parts`, so repetitions among them are not reported.

    Args:
        typed: name and mention of every part in the text, as typed.
        chosen: the linked parts.
    """
    seen = {
        plain_name(part.part): f"by connection as {written_part(part)}" for part in (chosen.parts if chosen else ())
    }
    for part, mention in typed:
        place = f"in the text as {mention}"
        if (earlier := seen.get(plain_name(part))) is not None:
            return (
                f"part {shown_name(part)} is named twice, {earlier} and {place}: "
                "remove one of them, unless you want both"
            )
        seen[plain_name(part)] = place
    return None


def key_of(mention: PartMention) -> MentionKey:
    """Normalised form of a mention: differences in case and spacing of names are ignored, as in the grammar."""
    kinds = tuple((plain_name(kind), factor) for kind, factor in mention.kinds)
    return plain_name(unescaped(mention.target)), kinds


def parts_by_mention(chosen: ChosenParts | None) -> dict[MentionKey, ChosenPart]:
    """The parts with their own vector, by their mention in a prompt.

    Raises:
        BestiaryError: two different parts have the same mention, so that a prompt cannot distinguish them.
    """
    found: dict[MentionKey, ChosenPart] = {}
    vectors: dict[MentionKey, Tensor] = {}
    for part in chosen.parts if chosen else ():
        if part.vector is None:
            continue
        mention = written_mention(part.dictionary, part.part, part.kind)
        ((_, content),) = find_mentions(mention).values()
        found.setdefault(key_of(content), part)
        # in the text a mention can refer to only one vector
        earlier = vectors.setdefault(key_of(content), part.vector)
        if earlier.shape != part.vector.shape or not torch.equal(earlier, part.vector):
            raise BestiaryError(
                f"two different parts have the same mention {mention}: load their dictionaries under different names, "
                "or draw the second one from the dictionary output of the first one"
            )
    return found
