"""The parts and kinds requested by a prompt or by chosen parts, translated from a dictionary to a codebook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...concepts.errors import BestiaryError
from ...concepts.name_search import NameIndex, choices_text, number_ranges, same_names, shown_name
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.part_prompt.part_prompt import ResolvedMention, parse_part_prompt, resolve_prompt
from ..host.socket_types import ChosenParts, NamedDictionary
from ..part_map.part_drawing import kind_name
from ..part_prompt.chosen_parts import written_parts

_FOREIGN_IDS = {"class": "classes", "whole": "whole pictures"}
_LISTED = 6


@dataclass(frozen=True)
class AskedPart:
    """A requested kind of a part, in the codebook's numbers."""

    part: int
    kind: int
    blended: bool = False
    """True if a blend was requested; `kind` is then the one with the largest share."""


def read_asked_parts(
    prompt: str, chosen: ChosenParts | None, named: NamedDictionary, codebook: PartCodebook
) -> list[AskedPart]:
    """The parts in a prompt, followed by the chosen parts.

    Raises:
        BestiaryError: nothing is requested, a name is unknown, or the dictionary does not match the codebook.
    """
    text = f"{prompt} {written_parts(chosen) if chosen else ''}"
    mentions = resolve_prompt(parse_part_prompt(text), {named.name: named.dictionary}).mentions
    if not mentions:
        raise BestiaryError(
            f"the prompt {shown_name(prompt)} requests no part and no part is connected: write for example <head:3>, or connect Part"
        )
    match = match_dictionary(named, codebook)
    return [_asked(mention, match) for mention in mentions]


def match_dictionary(named: NamedDictionary, codebook: PartCodebook) -> Mapping[tuple[int, int], tuple[int, int]]:
    """(part, kind) of a dictionary -> (part, kind) of a codebook, by name where both have one, else by number.

    Raises:
        BestiaryError: the dictionary was not trained with a codebook, or the codebook lacks some of its kinds.
    """
    owner = named.dictionary
    if foreign := _FOREIGN_IDS.get(str(owner.provenance.get("ids"))):
        raise BestiaryError(
            f"dictionary {shown_name(named.name)} was trained on {foreign}, whose numbers do not refer to a codebook: "
            "use bestiary evaluate parts with --labels"
        )
    if not codebook.fine:
        raise BestiaryError("the codebook has parts but no kinds: finish its discovery first")
    parts = _match_parts(named, codebook)
    match, lacking = {}, []
    # collect all missing pairs, so that one message lists them
    for part, kind in sorted(owner.row_of):
        found = _match_kind(owner, part, kind, codebook, parts[part])
        if found is None:
            lacking.append((part, kind))
        else:
            match[part, kind] = (parts[part], found)
    if lacking:
        raise BestiaryError(_lacking_text(named, codebook, parts, lacking))
    return match


def _match_parts(named: NamedDictionary, codebook: PartCodebook) -> dict[int, int]:
    """Part of the dictionary -> part of the codebook."""
    owner = named.dictionary
    names = codebook.part_names
    trained = sorted({part for part, _ in owner.row_of})
    alike = {part: same_names(owner.part_names[part], names) for part in trained}
    by_name = {part: places[0] for part, places in alike.items() if places}
    found = dict(by_name)
    for part in trained:
        if part in found:
            continue
        # matching by number must not claim a part that another one has matched by name
        if part >= len(names) or part in by_name.values():
            raise BestiaryError(
                f"dictionary {shown_name(named.name)} has the part {shown_name(owner.part_names[part])}, but the codebook has none "
                f"of this name or number: its parts are {choices_text(owner.part_names[part], codebook.part_names)}; "
                "use the codebook that the dictionary was trained with"
            )
        found[part] = part
    return found


def _match_kind(owner: PartDictionary, part: int, kind: int, codebook: PartCodebook, own_part: int) -> int | None:
    names = codebook.kind_names[own_part] if own_part < len(codebook.kind_names) else {}
    wanted = owner.kind_names[part].get(kind, "")
    named = NameIndex((name, number) for number, name in names.items()).find(wanted) if wanted.strip() else []
    if named:
        return named[0]
    return kind if kind < codebook.num_kinds[own_part] else None


def _lacking_text(
    named: NamedDictionary, codebook: PartCodebook, parts: Mapping[int, int], lacking: list[tuple[int, int]]
) -> str:
    owner = named.dictionary
    listed = ", ".join(f"{owner.part_names[part]}:{owner.kind_label(part, kind)}" for part, kind in lacking[:_LISTED])
    more = f" and {len(lacking) - _LISTED} more" if len(lacking) > _LISTED else ""
    part = parts[lacking[0][0]]
    known = number_ranges(range(codebook.num_kinds[part])) or "none"
    return (
        f"dictionary {shown_name(named.name)} has kinds that the codebook lacks: {listed}{more}. The kinds of part "
        f"{shown_name(codebook.part_names[part])} in the codebook are {known}: use the codebook that the dictionary was "
        "trained with, and the dictionary without drawn kinds"
    )


def _asked(mention: ResolvedMention, match: Mapping[tuple[int, int], tuple[int, int]]) -> AskedPart:
    kind, _ = max(mention.kinds, key=lambda share: share[1])
    return AskedPart(*match[mention.part, kind], blended=len(mention.kinds) > 1)


def asked_text(codebook: PartCodebook, asked: AskedPart) -> str:
    """The requested kind in words."""
    name = kind_name(codebook, asked.part, asked.kind)
    return f"{name} (most of a blend)" if asked.blended else name
