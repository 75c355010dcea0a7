"""Edits by the names people type: a part (`head`, or its number), or a kind of a part (`head:17`, `head:cardinal`)."""

from collections.abc import Sequence

from ..errors import BestiaryError
from . import codebook_edits
from .codebook_edits import CodebookEdit
from .part_codebook import PartCodebook


def split_name(name: str) -> tuple[str, str | None]:
    """Part, and kind where one is named.

    Raises:
        BestiaryError: nothing stands before or behind the colon.
    """
    # names hold no colon, so the first one parts them
    part, colon, kind = name.partition(":")
    if colon and not (part.strip() and kind.strip()):
        raise BestiaryError(f"{name!r} is neither a part nor a kind: write part, or part:kind")
    return part.strip(), kind.strip() if colon else None


def rename_named(codebook: PartCodebook, name: str, new_name: str) -> CodebookEdit:
    """Give a part or a kind a name; faults as `codebook_edits.rename`."""
    part, kind = split_name(name)
    if kind is None:
        return codebook_edits.rename(codebook, parts={part: new_name})
    return codebook_edits.rename(codebook, kinds={part: {kind: new_name}})


def merge_named(codebook: PartCodebook, names: Sequence[str]) -> CodebookEdit:
    """Join parts, or kinds of one part, into the first one named.

    Raises:
        BestiaryError: fewer than two names, unknown ones, parts mixed with kinds, or kinds of different parts.
    """
    split = [split_name(name) for name in names]
    kinds = [kind for _, kind in split if kind is not None]
    if not kinds:
        return codebook_edits.merge_parts(codebook, [part for part, _ in split])
    # parts with parts, kinds of one part with each other
    shown = ", ".join(names)
    if len(kinds) < len(split):
        raise BestiaryError(f"{shown}: parts and kinds cannot be joined; name parts alone, or kinds of one part")
    if len({codebook.find_part(part) for part, _ in split}) > 1:
        raise BestiaryError(f"{shown}: kinds of different parts cannot be joined; join the parts instead")
    return codebook_edits.merge_kinds(codebook, split[0][0], kinds)


def drop_named(codebook: PartCodebook, name: str) -> CodebookEdit:
    """Leave a part or a kind out; faults as `codebook_edits.drop_part` and `drop_kind`."""
    part, kind = split_name(name)
    return codebook_edits.drop_part(codebook, part) if kind is None else codebook_edits.drop_kind(codebook, part, kind)
