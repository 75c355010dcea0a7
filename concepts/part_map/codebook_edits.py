"""Renaming, merging and dropping parts and kinds of a codebook, and carrying part maps over to the edited one.

Every edit returns a `CodebookEdit`: the new codebook, and where old parts and kinds went. People name a part (`head`, or its
number) or a kind of a part (`head:17`, `head:cardinal`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BestiaryError
from ..name_search import shown_name
from .part_codebook import PartCodebook
from .part_map import ABSENT, PartMaps

_FORBIDDEN = set("<>:,*()|\n\t")
_LONGEST_NAME = 80
_KEPT = 1e-3
"""Of a space's largest singular value: directions that are shortened further are not kept by it."""


@dataclass(frozen=True)
class CodebookEdit:
    """An edited codebook, and the way of old numbers to new ones."""

    codebook: PartCodebook
    parts: tuple[int, ...]
    """New index of every old part."""
    kinds: tuple[tuple[int, ...], ...]
    """Per old part: new code of every old kind, ABSENT where it is gone."""

    @property
    def moves(self) -> bool:
        """Whether any number changes; names alone do not."""
        same = self.parts == tuple(range(self.codebook.num_parts))
        return not same or any(kinds != tuple(range(len(kinds))) for kinds in self.kinds)

    def apply(self, maps: PartMaps) -> PartMaps:
        """Part maps of the old codebook in the numbers of the new one.

        Where an image shows several parts that became one, the part with most patches gives the kind; patches of a part that
        has no kind left there become background.
        """
        if not self.moves:
            return maps
        codes = torch.full((len(maps.codes), self.codebook.num_parts), ABSENT, dtype=torch.long)  # (N, M')
        areas = maps.masks(len(self.parts)).flatten(2).sum(dim=2)  # (N, M)
        # of several old parts in one new part, the largest so far gives the kind
        largest = torch.full_like(codes, -1)
        for old, new in enumerate(self.parts):
            moved = _renumber(maps.codes[:, old], self.kinds[old])
            better = (moved != ABSENT) & (areas[:, old] > largest[:, new])
            codes[better, new] = moved[better]
            largest[better, new] = areas[better, old]
        labels = torch.tensor(self.parts)[maps.labels.long()]  # (N, h, w)
        if self.codebook.fine:
            gone = codes.gather(1, labels.flatten(1)).view_as(labels) == ABSENT
            labels = labels.masked_fill(gone, self.codebook.background)
        return PartMaps(labels.to(maps.labels.dtype), codes)


def rename(
    codebook: PartCodebook, parts: Mapping[str, str] | None = None, kinds: Mapping[str, Mapping[str, str]] | None = None
) -> CodebookEdit:
    """Give parts (old name or number -> name) and kinds (part -> old name or number -> name) new names.

    Raises:
        BestiaryError: an unknown part or kind, a name that occurs twice, or one that a prompt could not contain.
    """
    names = list(codebook.part_names)
    kind_names = _kind_names(codebook)
    # kinds first, while parts still go by the names the user knows
    for part, renames in (kinds or {}).items():
        index = codebook.find_part(part)
        for kind, name in renames.items():
            kind_names[index][codebook.find_kind(index, kind)] = _checked(name)
        _refuse_repeats(list(kind_names[index].values()), f"kinds of part {names[index]!r}")
    for part, name in (parts or {}).items():
        names[codebook.find_part(part)] = _checked(name)
    _refuse_repeats(names, "parts")
    edited = codebook.with_names(tuple(names), tuple(kind_names))
    return CodebookEdit(edited, tuple(range(len(names))), _same_kinds(codebook))


def merge_parts(codebook: PartCodebook, parts: Sequence[str], name: str | None = None) -> CodebookEdit:
    """Make several parts one, in the place of the first; it keeps the kinds of all of them, one after the other.

    Merged into the background, a part is dropped. Fit its kinds anew (`fit_kinds`) where the means are at hand.
    """
    chosen = _distinct([codebook.find_part(part) for part in parts], "parts")
    if codebook.background in chosen:
        return _dropped(codebook, [part for part in chosen if part != codebook.background])
    keep = chosen[0]
    kinds = list(_same_kinds(codebook))
    fine = list(codebook.fine)
    kind_names = _kind_names(codebook)
    # kinds of the parts that join are appended to those of the first, in its frame
    for part in chosen[1:] if fine else []:
        offset = len(fine[keep])
        fine[keep] = torch.cat([fine[keep], _moved_centers(codebook, fine[part], part, keep)])
        kinds[part] = tuple(range(offset, offset + len(fine[part])))
        taken = set(kind_names[keep].values())
        kind_names[keep] |= {k + offset: text for k, text in kind_names[part].items() if text not in taken}
    # the first part gives its place, and its name unless another is given
    names = list(codebook.part_names)
    names[keep] = _checked(name) if name else names[keep]
    together = replace(codebook, part_names=tuple(names), fine=tuple(fine), kind_names=tuple(kind_names))
    return _without(together, dict.fromkeys(chosen[1:], keep), tuple(kinds))


def drop_part(codebook: PartCodebook, part: str) -> CodebookEdit:
    """Let a part become background.

    Raises:
        BestiaryError: it is the background, or the only part.
    """
    return _dropped(codebook, [codebook.find_part(part)])


def merge_kinds(codebook: PartCodebook, part: str, kinds: Sequence[str], name: str | None = None) -> CodebookEdit:
    """Make several kinds of a part one, in the place of the first of them; later kinds move up."""
    index = codebook.find_part(part)
    chosen = _distinct([codebook.find_kind(index, kind) for kind in kinds], "kinds")
    # the mean direction of the kinds at their mean length
    rows = codebook.fine[index][chosen]
    fine = codebook.fine[index].clone()
    fine[chosen[0]] = F.normalize(F.normalize(rows, dim=1).mean(dim=0), dim=0) * rows.norm(dim=1).mean()
    return _kinds_edited(codebook, index, fine, dict.fromkeys(chosen[1:], chosen[0]), {chosen[0]: name} if name else {})


def drop_kind(codebook: PartCodebook, part: str, kind: str) -> CodebookEdit:
    """Remove a kind: pictures that showed it have no code for that part any more."""
    index = codebook.find_part(part)
    return _kinds_edited(codebook, index, codebook.fine[index], {codebook.find_kind(index, kind): ABSENT}, {})


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
    """Rename a part or a kind; errors as `rename`."""
    part, kind = split_name(name)
    if kind is None:
        return rename(codebook, parts={part: new_name})
    return rename(codebook, kinds={part: {kind: new_name}})


def merge_named(codebook: PartCodebook, names: Sequence[str]) -> CodebookEdit:
    """Join parts, or kinds of one part, into the first one named.

    Raises:
        BestiaryError: fewer than two names, unknown ones, parts mixed with kinds, or kinds of different parts.
    """
    split = [split_name(name) for name in names]
    kinds = [kind for _, kind in split if kind is not None]
    if not kinds:
        return merge_parts(codebook, [part for part, _ in split])
    # parts with parts, kinds of one part with each other
    shown = ", ".join(names)
    if len(kinds) < len(split):
        raise BestiaryError(f"{shown}: parts cannot be merged with kinds; give either parts, or kinds of one part")
    if len({codebook.find_part(part) for part, _ in split}) > 1:
        raise BestiaryError(f"{shown}: kinds of different parts cannot be merged; merge the parts instead")
    return merge_kinds(codebook, split[0][0], kinds)


def drop_named(codebook: PartCodebook, name: str) -> CodebookEdit:
    """Remove a part or a kind; errors as `drop_part` and `drop_kind`."""
    part, kind = split_name(name)
    return drop_part(codebook, part) if kind is None else drop_kind(codebook, part, kind)


def _dropped(codebook: PartCodebook, parts: list[int]) -> CodebookEdit:
    if not parts or codebook.background in parts:
        raise BestiaryError(f"the background ({codebook.part_names[codebook.background]!r}) cannot be dropped")
    if codebook.num_parts - len(parts) < 2:
        raise BestiaryError(f"part {codebook.part_names[parts[0]]!r} is the only one: nothing would remain")
    # kinds of a dropped part are gone, its patches go to the background
    kinds = list(_same_kinds(codebook))
    for part in parts:
        kinds[part] = (ABSENT,) * len(kinds[part])
    return _without(codebook, dict.fromkeys(parts, codebook.background), tuple(kinds))


def _without(codebook: PartCodebook, gone: Mapping[int, int], kinds: tuple[tuple[int, ...], ...]) -> CodebookEdit:
    """Remove parts, assign their area to other parts and renumber the rest, with the rows of `(M, d)` centers."""
    # `left` keeps the old numbers in their order, so the place in it is the new number
    left = [part for part in range(codebook.num_parts) if part not in gone]
    moved = tuple(left.index(gone.get(part, part)) for part in range(codebook.num_parts))
    centers, spaces = codebook.kind_centers, codebook.kind_spaces
    edited = replace(
        codebook,
        part_names=tuple(codebook.part_names[part] for part in left),
        background=moved[codebook.background],
        parts=replace(codebook.parts, owner=torch.tensor(moved)[codebook.parts.owner]),
        fine=tuple(codebook.fine[part] for part in left) if codebook.fine else (),
        kind_centers=None if centers is None else centers[left],
        kind_spaces=None if spaces is None else spaces[left],
        kind_names=tuple(codebook.kind_names[part] for part in left) if codebook.kind_names else (),
    )
    _refuse_repeats(list(edited.part_names), "parts")
    return CodebookEdit(edited, moved, kinds)


def _kinds_edited(
    codebook: PartCodebook, part: int, fine: Tensor, gone: Mapping[int, int], names: Mapping[int, str]
) -> CodebookEdit:
    """Keep the rows of a part's kinds `(K_m, d)` that are not `gone`; codes of those go to the kinds they joined."""
    left = [kind for kind in range(len(fine)) if kind not in gone]
    if not left:
        raise BestiaryError(f"part {codebook.part_names[part]!r} would have no kind left: drop the part instead")
    moved = {kind: left.index(kind) for kind in left} | {ABSENT: ABSENT}
    kinds = list(_same_kinds(codebook))
    kinds[part] = tuple(moved[gone.get(kind, kind)] for kind in range(len(fine)))
    kind_names = _kind_names(codebook)
    texts = kind_names[part] | {kind: _checked(name) for kind, name in names.items()}
    # names of merged kinds go, except for the one they now share
    kind_names[part] = {moved[kind]: text for kind, text in texts.items() if kind not in gone}
    all_fine = list(codebook.fine)
    all_fine[part] = fine[left]
    edited = replace(codebook, fine=tuple(all_fine), kind_names=tuple(kind_names))
    return CodebookEdit(edited, tuple(range(codebook.num_parts)), tuple(kinds))


def _moved_centers(codebook: PartCodebook, fine: Tensor, old: int, new: int) -> Tensor:
    """Kind directions `(K, d)` around one part's center, as directions around another's, at unit length."""
    if codebook.kind_centers is None:
        return fine
    moved, spaces = codebook.kind_centers[old] - codebook.kind_centers[new], codebook.kind_spaces
    if spaces is None:
        return F.normalize(fine + moved, dim=1)
    # out of one part's space, as far as it keeps directions, and into the other's
    return F.normalize((fine @ torch.linalg.pinv(spaces[old], rtol=_KEPT) + moved) @ spaces[new], dim=1)


def _same_kinds(codebook: PartCodebook) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(number)) for number in codebook.num_kinds) or ((),) * codebook.num_parts


def _kind_names(codebook: PartCodebook) -> list[dict[int, str]]:
    return [dict(names) for names in codebook.kind_names] or [{} for _ in codebook.part_names]


def _renumber(codes: Tensor, kinds: tuple[int, ...]) -> Tensor:
    """Codes of any shape through a table of new ones; ABSENT stays ABSENT."""
    table = torch.tensor([*kinds, ABSENT])  # the last row is reached by index ABSENT = -1
    return table[codes.long()]


def _checked(name: str) -> str:
    text = " ".join(name.split())
    # unprintable ones are invisible or turn the text around them
    if not text or text.isdigit() or _FORBIDDEN & set(text) or not text.isprintable():
        raise BestiaryError(
            f"{shown_name(name)} cannot be a name in a prompt: use words, without < > : , * ( ) | or invisible characters, and "
            "not only a number"
        )
    if len(text) > _LONGEST_NAME:
        raise BestiaryError(f"the name has {len(text)} characters: use at most {_LONGEST_NAME}")
    return text


def _refuse_repeats(names: list[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            raise BestiaryError(f"two {what} would be called {name!r}: choose different names")
        seen.add(name.lower())


def _distinct(indices: list[int], what: str) -> list[int]:
    chosen = list(dict.fromkeys(indices))
    if len(chosen) < 2:
        raise BestiaryError(f"merging needs at least two different {what}, got {indices}")
    return chosen
