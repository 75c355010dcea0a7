"""Edits of a codebook as text, one per line, as users type them and as a graph stores them.

    rename part 2, head        merge head, beak          drop tail
    rename head:3, cardinal    merge head:3, head:7      drop head:5

A part is given by name or number, a kind as `part:kind`; names cannot contain commas or colons. Each line applies to the result of
the lines above it. Empty lines and lines that begin with # are ignored.
"""

from collections import OrderedDict
from dataclasses import dataclass, field, replace

from ..errors import BestiaryError
from ..name_search import shown_name
from .codebook_edits import CodebookEdit, drop_named, merge_named, rename_named
from .joined_kinds import PartMeans, refit_kinds
from .part_codebook import PartCodebook
from .part_map import ABSENT, PartMaps

LONGEST_SCRIPT = 20_000
"""Maximum characters of a script."""
VERBS = ("rename", "merge", "drop")
_MOST_KEPT = 8


class EditFault(BestiaryError):
    """An invalid line of a script."""

    def __init__(self, line: int, text: str, cause: str, done: "EditedParts") -> None:
        """`line` counts from 1; `done` is the result of the lines before it."""
        super().__init__(f"edits, line {line} ({shown_name(text)}): {cause}")
        self.line, self.cause, self.done = line, cause, done


@dataclass(frozen=True)
class EditedParts:
    """The parts of N pictures as some edits left them; at first, as they were found."""

    codebook: PartCodebook
    maps: PartMaps = field(repr=False)
    """Labels `(N, h, w)`, codes `(N, M)`."""
    part_of: tuple[int, ...] = ()
    """What each part that was found has become; empty stands for no change yet."""
    found: PartMeans | None = field(default=None, repr=False)
    """Means of the parts as they were found; joined parts get new kinds from them. Without, they keep all kinds."""
    num_kinds: int | None = None
    """Kinds that a joined part gets; None measures."""
    seed: int = 0

    def parts(self) -> tuple[int, ...]:
        """New index of every part that was found."""
        return self.part_of or tuple(range(self.codebook.num_parts))

    def colors(self) -> tuple[int, ...]:
        """Number of every part's colour: that of the first found part that it was made of, so that it keeps it while others go."""
        parts = self.parts()
        return tuple(parts.index(part) if part in parts else part for part in range(self.codebook.num_parts))

    def after(self, step: CodebookEdit) -> "EditedParts":
        """These after one more edit."""
        part_of = tuple(step.parts[part] for part in self.parts())
        edited = replace(self, codebook=step.codebook, maps=step.apply(self.maps), part_of=part_of)
        # parts that took in others; the background keeps the kinds it had
        joined = {part for part in step.parts if step.parts.count(part) > 1} - {step.codebook.background}
        for part in joined:
            edited = edited._with_new_kinds(part)
        return edited

    def _with_new_kinds(self, part: int) -> "EditedParts":
        """As it is where kinds have names, which would be lost."""
        if self.found is None or any(self.codebook.kind_names[part : part + 1]):
            return self
        seen = self.found.joined(self.parts(), part)
        refitted = refit_kinds(self.codebook, part, seen, self.num_kinds, self.seed)
        codes = self.maps.codes.clone()  # (N, M)
        codes[:, part] = refitted.codes.masked_fill(codes[:, part] == ABSENT, ABSENT)
        return replace(self, codebook=refitted.codebook, maps=PartMaps(self.maps.labels, codes))


class EditHistory:
    """One discovery under growing and shrinking texts: the newest results are kept, so that one more line costs one edit.

    Not safe to ask from several threads at once.
    """

    def __init__(self, found: EditedParts) -> None:
        """`found` is what there is before any edit."""
        self._found = found
        self._kept: OrderedDict[tuple[str, ...], EditedParts] = OrderedDict()

    def after(self, text: str) -> EditedParts:
        """The parts after all edits of a text.

        Raises:
            EditFault: a line is not a valid edit; the message gives line, cause and valid choices.
            BestiaryError: the text is too long.
        """
        if len(text) > LONGEST_SCRIPT:
            raise BestiaryError(f"the edits have {len(text)} characters, the limit is {LONGEST_SCRIPT}: shorten them")
        numbered = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
        lines = [(number, line) for number, line in numbered if line and not line.startswith("#")]
        done: tuple[str, ...] = ()
        edited = self._found
        # from the longest beginning that is known
        for length in range(len(lines), 0, -1):
            known = self._kept.get(tuple(line for _, line in lines[:length]))
            if known is not None:
                done, edited = tuple(line for _, line in lines[:length]), known
                self._kept.move_to_end(done)
                break
        for number, line in lines[len(done) :]:
            try:
                edited = edited.after(_edit(edited.codebook, line))
            except BestiaryError as fault:
                raise EditFault(number, line, str(fault), edited) from fault
            done = (*done, line)
            self._keep(done, edited)
        return edited

    def _keep(self, lines: tuple[str, ...], edited: EditedParts) -> None:
        self._kept[lines] = edited
        while len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)


def _edit(codebook: PartCodebook, line: str) -> CodebookEdit:
    verb, _, rest = line.partition(" ")
    names = [name.strip() for name in rest.split(",")]
    if verb.lower() not in VERBS:
        raise BestiaryError(f"an edit begins with {', '.join(VERBS[:-1])} or {VERBS[-1]}, not {shown_name(verb)}")
    if not all(names):
        raise BestiaryError(
            "a name is missing: write for example `rename part 2, head`, `merge head, beak` or `drop tail`"
        )
    return {"rename": _rename, "merge": merge_named, "drop": _drop}[verb.lower()](codebook, names)


def _rename(codebook: PartCodebook, names: list[str]) -> CodebookEdit:
    if len(names) != 2:
        raise BestiaryError(f"rename takes an old and a new name, not {len(names)}: `rename part 2, head`")
    return rename_named(codebook, *names)


def _drop(codebook: PartCodebook, names: list[str]) -> CodebookEdit:
    if len(names) != 1:
        raise BestiaryError(f"drop takes one name, not {len(names)}: write a line for each")
    return drop_named(codebook, names[0])
