r"""Writing mentions: names and numbers put together so that `find_mentions` reads them back unchanged.

Factors are rounded to six digits, so that a blend as text and the same blend as numbers give equal vectors.
"""

import re

from torch import Tensor

from ..errors import BestiaryError
from ..name_search import shown_name
from ..part_dictionary.part_dictionary import PartDictionary
from .part_mention import last_plain, read_kinds

DIGITS = 6
"""Decimal places of factors and weights."""

_SPECIAL_IN_TARGET = re.compile(r"[\\.:<>]")
_SPECIAL_IN_KIND = re.compile(r"[\\:*+@<>]")

KindBlend = tuple[tuple[int, float], ...]
"""Stored kind ids with their factors."""


def written_number(value: float) -> str:
    """A factor or weight as the grammar reads it: six decimal places at most, no exponent."""
    text = f"{value:.{DIGITS}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def written_kinds(dictionary: PartDictionary, part: int, kinds: KindBlend) -> str:
    """What stands behind the colon of a mention: "cardinal", "17" or "cardinal*0.6+17*0.4"."""
    names = [_written_kind(dictionary, part, kind) for kind, _ in kinds]
    if len(kinds) == 1 and kinds[0][1] == 1:
        return names[0]
    return "+".join(f"{name}*{written_number(factor)}" for name, (_, factor) in zip(names, kinds, strict=True))


def _written_kind(dictionary: PartDictionary, part: int, kind: int) -> str:
    """Name of a kind with its special characters escaped, or its number where the name would be read as another."""
    # a name is written where it leads back to this kind, else the number
    name = dictionary.kind_names[part].get(kind, "")
    try:
        unique = bool(name.strip()) and dictionary.find_kind(part, name) == kind
    except BestiaryError:
        unique = False
    return _SPECIAL_IN_KIND.sub(r"\\\g<0>", name) if unique else str(kind + dictionary.id_base)


def written_mention(dictionary_name: str, part_name: str, kinds: str, weight: float = 1.0) -> str:
    """A whole mention, "<birds.head:cardinal>" or "(<birds.head:cardinal>:1.2)"; `kinds` from `written_kinds`."""
    target = ".".join(_SPECIAL_IN_TARGET.sub(r"\\\g<0>", name.strip()) for name in (dictionary_name, part_name))
    mention = f"<{target}:{kinds}>"
    return mention if weight == 1 else f"({mention}:{written_number(weight)})"


def find_kinds(dictionary: PartDictionary, part: int, text: str) -> KindBlend:
    """Kinds of a part from a text field: a name, a number or a blend as in a mention.

    A name may contain any character; a text is read as a blend only if no kind has this name.

    Raises:
        BestiaryError: no kind is given, or one is unknown; the message lists the valid ones.
    """
    if not text.strip():
        kind = written_kinds(dictionary, part, ((dictionary.kinds_of(part)[0], 1.0),))
        raise BestiaryError(
            f"no kind of part {shown_name(dictionary.part_names[part])} is given: enter one, for example {kind}"
        )
    try:
        return ((dictionary.find_kind(part, text), 1.0),)
    except BestiaryError:
        # a name that nobody has and no blend: the first fault says what there is
        if last_plain(text, "*") < 0:
            raise
    return tuple((dictionary.find_kind(part, kind), factor) for kind, factor in read_kinds(text, 1))


def blend_kinds(first: KindBlend, second: KindBlend, amount: float) -> KindBlend:
    """A blend that is `first` at amount 0 and `second` at 1, exactly; a kind that stands in both is named once.

    Raises:
        BestiaryError: `amount` is outside 0..1, or the factors cancel out.
    """
    if not 0 <= amount <= 1:
        raise BestiaryError(f"amount is {amount}: enter a number from 0 (the first kind) to 1 (the second)")
    factors: dict[int, float] = {}
    # shares of the two ends, added up per kind
    for kinds, share in ((first, 1 - amount), (second, amount)):
        for kind, factor in kinds:
            factors[kind] = factors.get(kind, 0.0) + factor * share
    blend = tuple((kind, round(factor, DIGITS)) for kind, factor in factors.items() if round(factor, DIGITS))
    if not blend:
        raise BestiaryError(f"the factors {dict(first)} and {dict(second)} cancel out at amount {amount}")
    return blend


def blended_vector(dictionary: PartDictionary, part: int, kinds: KindBlend) -> Tensor:
    """The vector `(D,)` of a blend, a weighted sum of rows of `(R, D)`, as `resolve_prompt` forms it."""
    first, *others = (factor * dictionary.vector(part, kind) for kind, factor in kinds)
    return sum(others, start=first)
