"""New kinds without pictures: drawn from the distribution of the trained ones, and added to a dictionary under a name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..denoiser.backbone import get_backbone
from ..errors import BestiaryError
from .dictionary_merge import free_name
from .part_dictionary import PartDictionary


@dataclass(frozen=True)
class NewKind:
    """A kind to add."""

    part: int
    """Index of its part."""
    name: str
    vector: Tensor = field(repr=False)
    """`(D,)`, text encoders side by side in the backbone's order."""


def random_kinds(dictionary: PartDictionary, parts: Sequence[int], seed: int, spread: float = 1.0) -> list[NewKind]:
    """One sample `(D,)` per part, called "random <seed>", followed by the spread unless it is 1.

    Raises:
        BestiaryError: a part has no trained kind, or the spread is negative or not finite.
    """
    name = f"random {seed}" if spread == 1 else f"random {seed} spread {spread:g}"
    return [NewKind(part, name, dictionary.sample(part, seed, spread)) for part in parts]


def with_new_kinds(
    dictionary: PartDictionary, kinds: Sequence[NewKind], origin: Mapping[str, object] | None = None
) -> tuple[PartDictionary, tuple[int, ...]]:
    """A dictionary with further kinds, and their stored ids; existing numbers, names and vectors do not change.

    Args:
        dictionary: left as it is.
        kinds: each gets the first id beyond those of its part, named or trained; a name that is taken gets " (2)" behind it.
        origin: how they came about, added to the provenance under `new_kinds`; anything JSON can say.

    Raises:
        BestiaryError: a part does not exist, or a vector is not `(D,)`.
    """
    if not kinds:
        return dictionary, ()
    names = [dict(named) for named in dictionary.kind_names]
    ids: list[int] = []
    for kind in kinds:
        _check(dictionary, kind)
        # beyond the named ids too: a name may wait for a kind that is not trained yet
        number = 1 + max((*dictionary.kinds_of(kind.part), *names[kind.part]), default=-1)
        names[kind.part][number] = free_name(kind.name, names[kind.part])
        ids.append(number)
    # new rows come last, so that rows of the old dictionary stay where they are
    rows = torch.tensor([(kind.part, number) for kind, number in zip(kinds, ids, strict=True)])  # (K, 2)
    earlier = dictionary.provenance.get("new_kinds", [])
    notes = [*(earlier if isinstance(earlier, list) else [earlier]), *([dict(origin)] if origin else [])]
    extended = replace(
        dictionary,
        kind_names=tuple(names),
        rows=torch.cat([dictionary.rows, rows]),  # (R + K, 2)
        embeddings=_extended(dictionary, torch.stack([kind.vector.float() for kind in kinds])),
        provenance={**dictionary.provenance, **({"new_kinds": notes} if notes else {})},
    )
    return extended, tuple(ids)


def _check(dictionary: PartDictionary, kind: NewKind) -> None:
    if not 0 <= kind.part < len(dictionary.part_names):
        raise BestiaryError(
            f"new kind {kind.name!r}: part {kind.part} does not exist, only 0..{len(dictionary.part_names) - 1}"
        )
    if kind.vector.shape != (dictionary.vector_width,):
        raise BestiaryError(
            f"new kind {kind.name!r} has a vector of shape {tuple(kind.vector.shape)}, "
            f"this dictionary takes ({dictionary.vector_width},)"
        )


def _extended(dictionary: PartDictionary, vectors: Tensor) -> dict[str, Tensor]:
    """Table `(R, width)` of every encoder with its slices of `(K, D)` appended."""
    # widths of the tables, not of the backbone's record: small models have others
    names = [encoder.name for encoder in get_backbone(dictionary.backbone).text_encoders]
    slices = vectors.split([dictionary.embeddings[name].shape[1] for name in names], dim=1)
    return {
        name: torch.cat([dictionary.embeddings[name], piece])  # (R + K, width)
        for name, piece in zip(names, slices, strict=True)
    }
