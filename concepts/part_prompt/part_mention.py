"""Mentions of learned parts, `<part:kind>`: search in a text and parsing.

The grammar is in part_prompt.py. Columns count characters from 1.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from ..errors import BestiaryError
from ..name_search import shown_name

Found = TypeVar("Found")
NUMBER = re.compile(r"\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)\s*")
"""A factor or a weight in the text."""
LONGEST_NAME = 1000
"""Maximum characters of a name in a mention."""

_FOREIGN_TAGS = {
    **dict.fromkeys(("lora", "lyco", "locon", "loha", "lokr"), "Load LoRA (MODEL and CLIP)"),
    **dict.fromkeys(("hypernet", "hypernetwork"), "Hypernetwork Loader (MODEL)"),
}
"""Tags of A1111 and related programs in angle brackets, and the ComfyUI node for the same purpose."""

_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


class PromptError(BestiaryError):
    """An error in a prompt; `column` counts characters from 1."""

    def __init__(self, column: int, cause: str) -> None:
        """`cause` gives the error and the correction."""
        super().__init__(f"prompt, column {column}: {cause}")
        self.column = column


@dataclass(frozen=True)
class PartMention:
    """A part and a kind, or a blend of kinds, as typed."""

    target: str
    """What stands before the colon: a part's name or number, perhaps with a dictionary's name and a dot before it."""
    kinds: tuple[tuple[str, float], ...]
    """Name or number of each kind with its factor in the blend; one kind alone has factor 1."""
    column: int
    """Where the mention begins, counted from 1."""
    weight: float = 1.0
    stages: str | None = None
    """In staged prompts: what stands after the `@`, such as "layout, 3-5"; None means every stage."""
    otherwise: str = ""
    """In staged prompts: the words after a `|`, which stand there at the other stages."""


def find_mentions(text: str) -> dict[int, tuple[int, PartMention]]:
    """Start of every mention in a prompt -> its end and its content, counted from 0.

    Raises:
        PromptError: a mention is malformed.
    """
    return find_all(text, read_mention)


def find_all(text: str, read: Callable[[str, int], tuple[int, Found] | None]) -> dict[int, tuple[int, Found]]:
    """Start -> end and content of whatever `read` understands at an unescaped `<`, counted from 0."""
    found: dict[int, tuple[int, Found]] = {}
    place = next_plain(text, "<", 0)
    while place < len(text):
        one = read(text, place)
        if one is not None:
            found[place] = one
        place = next_plain(text, "<", place + 1 if one is None else one[0])
    return found


def read_mention(text: str, start: int, *, staged: bool = False) -> tuple[int, PartMention] | None:
    """End and content of the mention that begins at `start`; None if `<` is plain text there.

    Raises:
        PromptError: it is malformed, or names stages where `staged` does not allow them.
    """
    column = start + 1
    end = next_plain(text, "<>", start + 1)
    closed = end < len(text) and text[end] == ">"
    inside = text[start + 1 : end]
    colon = next_plain(inside, ":", 0)
    # "a < b" and "<>" are text, "< head : 17 >" is a mention with spaces
    if not inside[:1].strip() and not (closed and colon < len(inside)):
        return None
    if not closed:
        raise PromptError(
            column, f"{shown_name(text[start:end])} is not closed: write <part:kind>, or \\< for a literal <"
        )
    if colon == len(inside):
        raise PromptError(column, f"'<{inside[:40]}>' has no colon: write <part:kind>, or \\< for a literal <")
    target, kinds = inside[:colon].strip(), inside[colon + 1 :]
    # both sides of the colon must say something
    if not target:
        raise PromptError(column, f"'<{inside[:40]}>' has no part before the colon: write <part:kind>")
    check_length(target, column)
    if not kinds.strip():
        raise PromptError(
            column, f"'<{inside[:40]}>' has no kind after the colon: write <{target}:name> or <{target}:17>"
        )
    # errors within the kinds point at their own place
    offset = column + colon + 2
    stage = next_plain(kinds, "@", 0)
    if stage < len(kinds) and not staged:
        raise PromptError(
            offset + stage,
            f"stages ({shown_name(kinds[stage:].strip())}) cannot be used for parts here: remove them, or write \\@ for a literal @",
        )
    stages, otherwise = read_stages(kinds[stage:], offset + stage)
    try:
        return end + 1, PartMention(target, read_kinds(kinds[:stage], offset), column, 1.0, stages, otherwise)
    except PromptError:
        if hint := foreign_hint(target):
            raise PromptError(column, hint) from None
        raise


def foreign_hint(target: str) -> str | None:
    """Remedy for a tag of other programs, such as `<lora:name:0.8>`; None for other targets."""
    block = _FOREIGN_TAGS.get(unescaped(target).strip().lower())
    if block is None:
        return None
    return (
        f"<{unescaped(target).strip()}:...> is the syntax of other programs for loading a file, not a part: in ComfyUI put the "
        f"node {block} between the checkpoint loader and the nodes that use it, and remove this from the text"
    )


def read_stages(text: str, column: int) -> tuple[str | None, str]:
    """Stages and words from `@stages|words`; (None, "") from nothing.

    Raises:
        PromptError: no stages stand after the `@`.
    """
    if not text:
        return None, ""
    bar = next_plain(text, "|", 0)
    stages = unescaped(text[1:bar]).strip()
    if not stages:
        raise PromptError(column, "no stages after the @: write for example @layout, @3-5 or @0%-50%")
    return stages, unescaped(text[bar + 1 :]).strip()


def read_kinds(text: str, column: int) -> tuple[tuple[str, float], ...]:
    """Kinds and factors from what stands after the colon; `column` is where that begins.

    Raises:
        PromptError: a term names no kind, or a factor is missing or no number.
    """
    terms: list[tuple[str, float | None]] = []
    begin = 0
    while begin <= len(text):
        end = next_plain(text, "+", begin)
        # the sign of a factor, as in "*+0.5", separates nothing
        while end < len(text) and _behind_star(text, begin, end):
            end = next_plain(text, "+", end + 1)
        terms.append(_read_term(text[begin:end], column + begin))
        begin = end + 1
    # equal shares are not guessed: a name may contain a plus that was meant
    if len(terms) > 1 and any(factor is None for _, factor in terms):
        example = "+".join(f"{kind}*{1 / len(terms):.2g}" for kind, _ in terms)
        raise PromptError(
            column, f"a blend needs a factor for every kind: write {shown_name(example)}, or \\+ for a literal +"
        )
    return tuple((unescaped(kind), 1.0 if factor is None else factor) for kind, factor in terms)


def _behind_star(text: str, begin: int, end: int) -> bool:
    """Whether nothing but spaces lies between a star, not before `begin`, and `end`."""
    while end > begin and text[end - 1].isspace():
        end -= 1
    return end > begin and text[end - 1] == "*"


def _read_term(term: str, column: int) -> tuple[str, float | None]:
    """A kind as typed and its factor, None if it has none."""
    # the last one: "a*b*0.5" is half of a kind called a*b
    star = last_plain(term, "*")
    kind, factor = (term, None) if star < 0 else (term[:star], term[star + 1 :])
    if not kind.strip():
        raise PromptError(
            column, f"{shown_name(term)} does not name a kind: write a name or a number, such as 17*0.6+18*0.4"
        )
    check_length(kind, column)
    if factor is None:
        return kind.strip(), None
    if not NUMBER.fullmatch(factor):
        raise PromptError(
            column + star + 1,
            f"{shown_name(factor)} is not a factor: write a number such as 0.6, or \\* for a literal *",
        )
    return kind.strip(), float(factor)


def check_length(name: str, column: int) -> None:
    """Raises PromptError for a name that nothing can have."""
    if len(name) > LONGEST_NAME:
        raise PromptError(
            column, f"{shown_name(name)} has {len(name):,} characters, names have at most {LONGEST_NAME:,}: shorten it"
        )


def next_plain(text: str, wanted: str, start: int) -> int:
    """Place of the next character of `wanted` that no backslash makes plain, else the length of the text."""
    found = _plain_or_escaped(wanted).search(text, start)
    while found and found[0].startswith("\\"):
        found = _plain_or_escaped(wanted).search(text, found.end())
    return found.start() if found else len(text)


@cache
def _plain_or_escaped(wanted: str) -> re.Pattern[str]:
    """A backslash with what it makes plain, or one of the characters."""
    return re.compile(rf"\\.?|[{re.escape(wanted)}]", re.DOTALL)


def last_plain(text: str, wanted: str) -> int:
    """Place of the last such character, -1 if there is none."""
    last, place = -1, next_plain(text, wanted, 0)
    while place < len(text):
        last, place = place, next_plain(text, wanted, place + 1)
    return last


def unescaped(text: str) -> str:
    """A name without the backslashes that make characters plain."""
    return _ESCAPED.sub(r"\1", text)
