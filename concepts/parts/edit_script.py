"""Edits of a codebook as text, one a line: what a graph keeps and a person types.

    rename part 2, head        merge head, beak          drop tail
    rename head:3, cardinal    merge head:3, head:7      drop head:5

A part goes by name or number, a kind is `part:kind`; names cannot hold commas or colons. Each line works on what the lines above it
left. Empty lines and lines that begin with # are passed over.
"""

from dataclasses import dataclass, field

from ..errors import BestiaryError
from ..name_search import shown_name
from . import codebook_edits
from .codebook_edits import CodebookEdit
from .part_codebook import PartCodebook
from .part_map import ABSENT, PartMaps

LONGEST_SCRIPT = 8000
"""Characters."""
VERBS = ("rename", "merge", "drop")


class EditFault(BestiaryError):
    """A line that does not fit."""

    def __init__(self, line: int, text: str, cause: str, done: "EditedCodebook") -> None:
        """`line` counts from 1; `done` is what the lines before it gave."""
        super().__init__(f"edits, line {line} ({shown_name(text)}): {cause}")
        self.line, self.done = line, done


@dataclass(frozen=True)
class EditedCodebook:
    """A codebook after some edits, and where the parts and kinds of the one before them went."""

    codebook: PartCodebook
    steps: tuple[CodebookEdit, ...] = field(default=(), repr=False)
    found: PartCodebook | None = field(default=None, repr=False)
    """The codebook before the edits; None where there were none."""

    def apply(self, maps: PartMaps) -> PartMaps:
        """Part maps (labels `(N, h, w)`, codes `(N, M)`) of the codebook before the edits, in the numbers of the one after."""
        for step in self.steps:
            maps = step.apply(maps)
        return maps

    def parts(self) -> list[int]:
        """New index of every part that was found."""
        places = list(range((self.found or self.codebook).num_parts))
        for step in self.steps:
            places = [step.parts[place] for place in places]
        return places

    def kinds(self, part: int) -> list[int]:
        """New number of every kind of a found part within the part it went to, ABSENT where it is gone."""
        place, codes = part, list(range(_kinds_of(self.found or self.codebook, part)))
        for step in self.steps:
            codes = [code if code == ABSENT else step.kinds[place][code] for code in codes]
            place = step.parts[place]
        return codes


def apply_edits(codebook: PartCodebook, text: str) -> EditedCodebook:
    """The codebook after all edits of a text.

    Raises:
        EditFault: a line that is no edit or does not fit; the message names line, cause and valid choices.
        BestiaryError: the text is too long.
    """
    if len(text) > LONGEST_SCRIPT:
        raise BestiaryError(f"edits of {len(text)} characters: at most {LONGEST_SCRIPT} are read")
    edited = EditedCodebook(codebook, (), codebook)
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            step = _edit(edited.codebook, line.strip())
        except BestiaryError as fault:
            raise EditFault(number, line.strip(), str(fault), edited) from fault
        edited = EditedCodebook(step.codebook, (*edited.steps, step), codebook)
    return edited


def _edit(codebook: PartCodebook, line: str) -> CodebookEdit:
    verb, _, rest = line.partition(" ")
    names = [name.strip() for name in rest.split(",")]
    if verb.lower() not in VERBS:
        raise BestiaryError(f"an edit begins with {', '.join(VERBS[:-1])} or {VERBS[-1]}, not {shown_name(verb)}")
    if not all(names):
        raise BestiaryError(
            "a name is missing: write for example `rename part 2, head`, `merge head, beak` or `drop tail`"
        )
    return {"rename": _rename, "merge": _merge, "drop": _drop}[verb.lower()](codebook, names)


def _rename(codebook: PartCodebook, names: list[str]) -> CodebookEdit:
    if len(names) != 2:
        raise BestiaryError(f"rename takes an old and a new name, not {len(names)}: `rename part 2, head`")
    part, kind = _split(names[0])
    if kind is None:
        return codebook_edits.rename(codebook, parts={part: names[1]})
    return codebook_edits.rename(codebook, kinds={part: {kind: names[1]}})


def _merge(codebook: PartCodebook, names: list[str]) -> CodebookEdit:
    split = [_split(name) for name in names]
    if all(kind is None for _, kind in split):
        return codebook_edits.merge_parts(codebook, [part for part, _ in split])
    if any(kind is None for _, kind in split) or len({codebook.find_part(part) for part, _ in split}) > 1:
        raise BestiaryError("only parts can be merged with parts, and kinds with kinds of the same part")
    return codebook_edits.merge_kinds(codebook, split[0][0], [kind for _, kind in split if kind is not None])


def _drop(codebook: PartCodebook, names: list[str]) -> CodebookEdit:
    if len(names) != 1:
        raise BestiaryError(f"drop takes one name, not {len(names)}: write a line for each")
    part, kind = _split(names[0])
    return codebook_edits.drop_part(codebook, part) if kind is None else codebook_edits.drop_kind(codebook, part, kind)


def _split(name: str) -> tuple[str, str | None]:
    part, colon, kind = name.partition(":")
    return part.strip(), kind.strip() if colon else None


def _kinds_of(codebook: PartCodebook, part: int) -> int:
    return len(codebook.fine[part]) if codebook.fine else 0
