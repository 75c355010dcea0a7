r"""Grammar of staged prompts: spectra, parts on stages, and text that changes during sampling.

    mention = "<" name ["*" strength] [at] ">"                 <corgi>   <corgi*0.7>   <corgi@layout>
            | "<" part ":" kinds [at] ">"                      <head:cardinal@layout,content>
    at      = "@" stages ["|" words]                           <corgi@1-3|a dog>: the words are used at all other stages
    edit    = "[" [before ":"] after ":" share "]"             [a cat:a dog:0.4] changes after 40 % of the schedule

`\<`, `\>`, `\@`, `\|`, `\*`, `\[`, `\]` are plain. Stages are written as in attribute_presets.py, columns count from 1.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from ..name_search import shown_name
from ..part_prompt.part_mention import (
    NUMBER,
    PartMention,
    PromptError,
    check_length,
    find_all,
    last_plain,
    next_plain,
    read_mention,
    read_stages,
    unescaped,
)

DEEPEST_EDITS = 64
"""Maximum nesting of square brackets."""
_ESCAPE = re.compile(r"\\.?", re.DOTALL)


@dataclass(frozen=True)
class SpectrumMention:
    """A mention of a spectrum."""

    name: str
    column: int
    """First character of the mention, counted from 1."""
    strength: float = 1.0
    stages: str | None = None
    """Text after the `@`; None means every stage."""
    otherwise: str = ""
    """The words after a `|`, used at the other stages."""
    weight: float = 1.0


StagedMention = SpectrumMention | PartMention
StagedMentions = Mapping[int, tuple[int, StagedMention]]
"""Start of a mention -> its end and content, counted from 0."""


@dataclass(frozen=True)
class PromptEdit:
    """Text that changes during sampling; positions count from 0."""

    start: int
    """Position of the opening bracket."""
    end: int
    """Place behind the closing one."""
    middle: int
    """Place of the colon between before and after; `start` where nothing stands before."""
    last: int
    """Place of the colon before the share."""
    share: float
    """Share of the way, 0 to 1, at which the text changes."""


def find_staged_mentions(text: str) -> dict[int, tuple[int, StagedMention]]:
    """Start of every mention -> its end and content, counted from 0.

    Raises:
        PromptError: a mention is malformed.
    """
    return find_all(text, _read)


def _read(text: str, start: int) -> tuple[int, StagedMention] | None:
    end = next_plain(text, "<>", start + 1)
    inside = text[start + 1 : end]
    # "a < b" is text; the words after a bar may contain colons
    named = next_plain(inside, "@|", 0)
    if end == len(text) or text[end] != ">" or next_plain(inside[:named], ":", 0) < named:
        return read_mention(text, start, staged=True)
    if not inside[:1].strip():
        return None
    name, strength = _name_and_strength(inside[:named], start + 2)
    stages, otherwise = read_stages(inside[named:], start + 2 + named)
    return end + 1, SpectrumMention(name, start + 1, strength, stages, otherwise)


def _name_and_strength(text: str, column: int) -> tuple[str, float]:
    # the last star counts: names may hold plain ones
    star = last_plain(text, "*")
    name = text if star < 0 else text[:star]
    if not name.strip():
        raise PromptError(column, f"'<{text[:40]}>' does not name a spectrum: write <name>, or \\< for a literal <")
    check_length(name, column)
    if star < 0:
        return unescaped(name).strip(), 1.0
    if not NUMBER.fullmatch(text[star + 1 :]):
        raise PromptError(
            column + star + 1,
            f"{shown_name(text[star + 1 :])} is not a strength: write a number such as 0.6, or \\* for a literal *",
        )
    return unescaped(name).strip(), float(text[star + 1 :])


def find_edits(text: str, mentions: StagedMentions) -> tuple[PromptEdit, ...]:
    """All edits of a prompt, inner ones before those around them; square brackets without a share are plain text.

    Raises:
        PromptError: a share is beyond 1, as in prompts that count steps, or edits nest too deeply.
    """
    edits: list[PromptEdit] = []
    # brackets wait on a stack until their end shows whether they were an edit
    open_places: list[tuple[int, int, list[int]]] = []  # place, round brackets around it, its colons
    round_depth = place = 0
    while place < len(text):
        if place in mentions:
            place = mentions[place][0]
            continue
        letter = text[place]
        if letter == "[":
            open_places.append((place, round_depth, []))
        elif letter in "()":
            round_depth += 1 if letter == "(" else -1
        # a colon within round brackets is a weight's
        elif letter == ":" and open_places and round_depth <= open_places[-1][1]:
            open_places[-1][2].append(place)
        elif letter == "]" and open_places:
            start, round_depth, colons = open_places.pop()
            found = _edit(text, start, place, colons)
            if found and len(open_places) >= DEEPEST_EDITS:
                raise PromptError(start + 1, f"prompt edits nest deeper than {DEEPEST_EDITS}: use fewer levels")
            edits += found
        place += 2 if letter == "\\" else 1
    return tuple(edits)


def _edit(text: str, start: int, closing: int, colons: list[int]) -> list[PromptEdit]:
    # plain square brackets: no share at their end
    if not 1 <= len(colons) <= 2 or not NUMBER.fullmatch(text, colons[-1] + 1, closing):
        return []
    share = float(text[colons[-1] + 1 : closing])
    if not 0 <= share <= 1:
        raise PromptError(
            colons[-1] + 2,
            f"{share:g} is not a fraction of the schedule: write 0 to 1, such as [a:b:0.4] (not a number of steps), "
            "or \\[ for a literal [",
        )
    return [PromptEdit(start, closing + 1, colons[0] if len(colons) == 2 else start, colons[-1], share)]


def masked(text: str, edits: tuple[PromptEdit, ...], way: float) -> str:
    """The prompt as it reads at a share of the way: what does not stand there is blanked with NUL, so places stay."""
    # how many blanks begin and end at every place: one pass, however many edits there are
    changes = [0] * (len(text) + 1)

    def blank(begin: int, end: int) -> None:
        changes[begin] += 1
        changes[end] -= 1

    for edit in edits:
        blank(edit.start, edit.start + 1)
        blank(edit.last, edit.end)
        after = way >= edit.share - 1e-9
        # before, the colon in the middle, after: one of the two sides goes
        blank(edit.middle, edit.middle + 1)
        blank(*((edit.start, edit.middle) if after else (edit.middle, edit.last)))
    # escapes of square brackets are read here, all others later
    for escape in _ESCAPE.finditer(text):
        if escape[0][1:] in ("[", "]"):
            blank(escape.start(), escape.start() + 1)
    return "".join("\0" if hidden else letter for letter, hidden in zip(text, accumulate(changes), strict=False))
