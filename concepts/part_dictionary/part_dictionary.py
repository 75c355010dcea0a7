"""PartDictionary: learned vectors for (part, kind) pairs, with names, thumbnails and the LoRA they were trained with.

Vectors are stored after the projector (`TokenProjector.collapse`), so that a dictionary is complete without it. Only
trained rows exist; pairs that were not trained cannot be used. Letters: R rows, M parts, D width of a vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..denoiser.backbone import get_backbone
from ..denoiser.token_insertion import Insertion
from ..errors import BestiaryError
from ..files.concept_file import (
    DICTIONARY_KIND,
    ConceptFile,
    from_text_tensor,
    read_concept_file,
    to_text_tensor,
    write_concept_file,
)
from ..files.file_schema import checked_table, checked_whole
from ..files.thumbnail_atlas import ThumbnailAtlas
from ..name_search import NameIndex, choices_text, number_ranges, shown_name, typed_number

LORA_PREFIX = "lora."
THUMBNAIL_PREFIX = "thumbnails."


@dataclass(frozen=True, eq=False)
class PartDictionary:
    """Learned parts and kinds for prompts, with everything needed to share them."""

    backbone: str
    """Name of the diffusion model family the vectors were learned for (concepts/denoiser/backbone.py)."""
    part_names: tuple[str, ...]
    """M names; the index is the number of the part."""
    kind_names: tuple[dict[int, str], ...]
    """Per part: stored kind id -> name; ids without a name are referred to by number."""
    background: int | None
    """Index of the background part."""
    rows: Tensor
    """`(R, 2)` long: part and stored kind id of every row, each pair once."""
    embeddings: dict[str, Tensor]
    """Text encoder name -> `(R, width)` float32."""
    lora: dict[str, Tensor] = field(default_factory=dict)
    """Adapters under kohya names; empty if none were trained."""
    thumbnails: ThumbnailAtlas | None = None
    provenance: dict[str, object] = field(default_factory=dict)
    """Origin of the dictionary: any JSON value of at most a few kilobytes."""
    id_base: int = 0
    """0 or 1: the number in prompts for the stored kind id 0."""

    def __post_init__(self) -> None:
        """Raises BestiaryError if names, rows and vectors are inconsistent."""
        encoders = {encoder.name for encoder in get_backbone(self.backbone).text_encoders}
        count = len(self.part_names)
        if self.embeddings.keys() != encoders:
            raise BestiaryError(
                f"a {self.backbone} dictionary needs vectors for {', '.join(sorted(encoders))}; "
                f"this one has {', '.join(sorted(self.embeddings)) or 'none'}"
            )
        # one list of kinds per part, and a background that exists
        if len(self.kind_names) != count or self.background not in (None, *range(count)) or self.id_base not in (0, 1):
            raise BestiaryError(
                f"{count} part names, {len(self.kind_names)} lists of kinds, background {self.background} and "
                f"id base {self.id_base} are inconsistent"
            )
        # rows: pairs of a part and an id, each once
        if self.rows.ndim != 2 or self.rows.shape[1] != 2 or not len(self.rows):
            raise BestiaryError(f"rows have shape {tuple(self.rows.shape)}, expected (R, 2) with at least one row")
        if self.rows.min() < 0 or self.rows[:, 0].max() >= count or len(self.row_of) != len(self.rows):
            raise BestiaryError(f"the rows contain part indices above {count - 1}, negative ids or duplicate pairs")
        # a vector of every encoder for each row, and nothing infinite among them
        for name, tensor in self.embeddings.items():
            if tensor.ndim != 2 or len(tensor) != len(self.rows):
                raise BestiaryError(f"{name} has shape {tuple(tensor.shape)}, expected ({len(self.rows)}, width)")
        _check_finite({**self.embeddings, **self.lora})

    @cached_property
    def row_of(self) -> Mapping[tuple[int, int], int]:
        """(part, stored kind id) -> row."""
        return {(part, kind): row for row, (part, kind) in enumerate(self.rows.tolist())}

    @property
    def vector_width(self) -> int:
        """D, all text encoders together."""
        return sum(tensor.shape[1] for tensor in self.embeddings.values())

    @property
    def insertion(self) -> Insertion:
        """Where its vectors enter a prompt."""
        return "output" if self.provenance.get("insertion") == "output" else "input"

    def matrix(self) -> Tensor:
        """All vectors `(R, D)` float32, text encoders side by side in the backbone's order."""
        encoders = get_backbone(self.backbone).text_encoders
        return torch.cat([self.embeddings[encoder.name].float() for encoder in encoders], dim=1)  # (R, D)

    def vector(self, part: int, kind: int) -> Tensor:
        """The vector `(D,)` float32, one row of `matrix()` `(R, D)`, of a part and a stored kind id.

        Raises:
            BestiaryError: this pair was not trained; the message lists the numbers that were.
        """
        return self.vectors([(part, kind)])[0]  # (D,)

    def vectors(self, pairs: Sequence[tuple[int, int]]) -> Tensor:
        """The vectors `(n, D)` float32 of n pairs of a part and a stored kind id.

        Raises:
            BestiaryError: a pair was not trained; the message lists the numbers that were.
        """
        for part, kind in pairs:
            if (part, kind) not in self.row_of:
                raise BestiaryError(self._unknown_number(part, kind + self.id_base))
        rows = torch.tensor([self.row_of[pair] for pair in pairs], dtype=torch.long)  # (n,)
        encoders = get_backbone(self.backbone).text_encoders
        return torch.cat([self.embeddings[encoder.name][rows].float() for encoder in encoders], dim=1)  # (n, D)

    def kinds_of(self, part: int) -> tuple[int, ...]:
        """Stored ids of the trained kinds of a part, ascending."""
        return self._kinds.get(part, ())

    @cached_property
    def _kinds(self) -> Mapping[int, tuple[int, ...]]:
        """Part -> stored ids of its trained kinds, ascending; gathered once, as prompts ask part by part."""
        kinds: dict[int, list[int]] = {}
        for part, kind in sorted(self.row_of):
            kinds.setdefault(part, []).append(kind)
        return {part: tuple(own) for part, own in kinds.items()}

    @cached_property
    def _parts_by_name(self) -> NameIndex[int]:
        """The trained parts."""
        return NameIndex((self.part_names[part], part) for part in sorted(self._kinds))

    @cached_property
    def _kinds_by_name(self) -> Mapping[int, NameIndex[int]]:
        """Part -> stored ids of its trained kinds that have a name."""
        return {
            part: NameIndex((self.kind_names[part][kind], kind) for kind in kinds if kind in self.kind_names[part])
            for part, kinds in self._kinds.items()
        }

    def part_called(self, text: str, *, by_number: bool = True) -> int | None:
        """Index of a trained part by its name, or by its number; None where there is none."""
        # a name first: a part may be called "2"
        found = self._parts_by_name.find(text)
        if found:
            return found[0]
        number = typed_number(text) if by_number else None
        return number if number in self._kinds else None

    def kind_label(self, part: int, kind: int) -> str:
        """What people call a kind: its name, else the number they type."""
        return self.kind_names[part].get(kind, str(kind + self.id_base))

    def find_part(self, text: str) -> int:
        """Index of a part by its name, or by its number.

        Raises:
            BestiaryError: no trained part is called so; the message lists those that are, the closest first.
        """
        found = self.part_called(text)
        if found is None:
            trained = sorted(self._kinds)
            known = choices_text(text, [self.part_names[part] for part in trained])
            raise BestiaryError(
                f"unknown part {shown_name(text)}: choose {known}, or a number of {number_ranges(trained)}"
            )
        return found

    def find_kind(self, part: int, text: str) -> int:
        """Stored id of a kind by its name, or by its number in prompts (counted from `id_base`).

        Raises:
            BestiaryError: no trained kind of this part is called so, or several are.
        """
        # a number first: ids are numbers, so that every kind can be asked for whatever the others are called
        kinds = self.kinds_of(part)
        number = typed_number(text)
        if number is not None:
            if (part, number - self.id_base) not in self.row_of:
                raise BestiaryError(self._unknown_number(part, number))
            return number - self.id_base
        found = self._kinds_by_name[part].find(text) if kinds else []
        if len(found) > 1:
            numbers = number_ranges(kind + self.id_base for kind in found)
            raise BestiaryError(
                f"{shown_name(text)} matches several kinds of part {self._part(part)}: use one of {numbers}"
            )
        if not found:
            numbers = number_ranges(kind + self.id_base for kind in kinds)
            names = {kind: self.kind_names[part][kind] for kind in kinds if kind in self.kind_names[part]}
            choices = f"choose {choices_text(text, list(names.values()))}, or a number" if names else "choose a number"
            raise BestiaryError(f"unknown kind {shown_name(text)} of part {self._part(part)}: {choices} of {numbers}")
        return found[0]

    def mean_and_std(self, part: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(D,)` over the trained kinds of a part; one kind alone deviates by 0."""
        chosen = [row for (other, _), row in self.row_of.items() if other == part]
        if not chosen:
            raise BestiaryError(self._unknown_number(part, self.id_base))
        vectors = self.matrix()[chosen]  # (kinds, D)
        return vectors.mean(0), vectors.std(0, correction=0)

    def sample(self, part: int, seed: int, spread: float = 1.0) -> Tensor:
        """A new kind `(D,)`, drawn channel by channel from the rows `(n, D)` of the trained ones (arXiv 2501.04144).

        Args:
            part: index of a part with trained kinds.
            seed: one seed draws differently for every part, and for a part the same whatever else is drawn.
            spread: standard deviations are multiplied by it; 0 gives the mean, 1 the spread of the trained kinds.

        Raises:
            BestiaryError: the part has no trained kind, or the spread is negative or not finite.
        """
        if not 0 <= spread < float("inf"):
            raise BestiaryError(
                f"spread is {spread}: enter a number of at least 0; 0 gives the mean, 1 the spread of the trained kinds"
            )
        mean, std = self.mean_and_std(part)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(self.part_names), len(mean), generator=generator)[part]  # (D,)
        # channels are drawn independently: with few kinds a full covariance would only repeat them
        return mean + spread * std * noise

    def save(self, path: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write one safetensors file, whole or not at all; vectors `(R, width)` and LoRA in `dtype` (float16 or float32).

        Raises:
            BestiaryError: a value does not fit the dtype, or the file cannot be written.
        """
        # checked again after the cast: float16 ends at 65,504
        weights = {**self.embeddings, **{LORA_PREFIX + name: tensor for name, tensor in self.lora.items()}}
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        _check_finite(weights)
        # thousands of names have no place in a header that ComfyUI reads only up to 1 MiB
        names = {
            "parts": self.part_names,
            "kinds": [{str(k): v for k, v in named.items()} for named in self.kind_names],
        }
        tensors = {**weights, "rows": self.rows.to(torch.int32), "names": to_text_tensor(names)}
        if self.thumbnails is not None:
            tensors |= {THUMBNAIL_PREFIX + name: tensor for name, tensor in self.thumbnails.to_tensors().items()}
        metadata = {
            "kind": DICTIONARY_KIND,
            "backbone": self.backbone,
            "background": self.background,
            "id_base": self.id_base,
            "num_parts": len(self.part_names),
            "num_rows": len(self.rows),
            **{name: self.provenance[name] for name in ("shift", "insertion") if name in self.provenance},
            "provenance": self.provenance,
        }
        write_concept_file(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path) -> "PartDictionary":
        """Read a dictionary (float32, on the CPU).

        Raises:
            BestiaryError: the file is missing, broken, of another kind or contradicts itself.
        """
        content = read_concept_file(path, DICTIONARY_KIND)
        # inside the method: the schemas know the models of codebooks too
        from ..part_map.part_file_schemas import check_dictionary

        try:
            encoders = get_backbone(str(content.metadata.get("backbone"))).text_encoders
            check_dictionary(content, tuple(encoder.name for encoder in encoders))
            return _from_file(content)
        except BestiaryError as fault:
            raise BestiaryError(f"{path} is not a valid part dictionary: {fault}") from fault

    def _part(self, part: int) -> str:
        return shown_name(self.part_names[part]) if 0 <= part < len(self.part_names) else str(part)

    def _unknown_number(self, part: int, number: int) -> str:
        numbers = [kind + self.id_base for kind in self.kinds_of(part)]
        if not numbers:
            return f"part {self._part(part)} has no trained kind; {number} and every other number are unknown"
        # close numbers with their names: most wrong numbers are off by one
        nearest = sorted(numbers, key=lambda known: abs(known - number))[:3]
        named = ", ".join(f"{n} ({self.kind_label(part, n - self.id_base)})" for n in nearest)
        return f"unknown kind {number} of part {self._part(part)}: choose one of {number_ranges(numbers)}; nearest: {named}"


def _from_file(content: ConceptFile) -> PartDictionary:
    """The dictionary from validated entries of a file: rows `(R, 2)`, tables `(R, width)`, and the rest."""
    tensors, metadata = content.tensors, content.metadata
    backbone = get_backbone(str(metadata.get("backbone")))
    encoders = [encoder.name for encoder in backbone.text_encoders]
    # names are stored as a tensor: they would exceed the size limit of the header
    part_names, kind_names = _names(from_text_tensor(tensors["names"]))
    # prefixes keep the three groups of tensors apart in one file
    pictures = {n.removeprefix(THUMBNAIL_PREFIX): t for n, t in tensors.items() if n.startswith(THUMBNAIL_PREFIX)}
    background, provenance = metadata.get("background"), metadata.get("provenance")
    return PartDictionary(
        backbone=backbone.name,
        part_names=part_names,
        kind_names=kind_names,
        background=None if background is None else checked_whole(background, "background"),
        rows=tensors["rows"].long(),
        embeddings={name: tensors[name].float() for name in encoders},
        lora={n.removeprefix(LORA_PREFIX): t.float() for n, t in tensors.items() if n.startswith(LORA_PREFIX)},
        thumbnails=ThumbnailAtlas.from_tensors(pictures) if pictures else None,
        provenance=provenance if isinstance(provenance, dict) else {},
        id_base=checked_whole(metadata.get("id_base") or 0, "id_base"),
    )


def _names(stored: object) -> tuple[tuple[str, ...], tuple[dict[int, str], ...]]:
    """Part names and kind names from the stored table."""
    table = checked_table(stored, "the table of names", ("parts", "kinds"))
    kinds = tuple({int(kind): name for kind, name in named.items()} for named in table["kinds"])
    return tuple(table["parts"]), kinds


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises BestiaryError naming the first tensor, of any shape, with a value that is not finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise BestiaryError(f"{shown_name(name)} contains values that are not finite in {str(tensor.dtype)[6:]}")
