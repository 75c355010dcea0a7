"""What the tokens of a training stand for: discovered kinds, classes from a table, or one kind per whole picture."""

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ....concepts.errors import BestiaryError
from ....concepts.part_map.kmeans import fit_kmeans
from ....concepts.part_map.part_codebook import PartCodebook
from ....concepts.part_map.part_map import ABSENT, PartMaps

PICTURE_COLUMNS = ("path", "file", "filename", "image")
"""Column names under which a table of classes may name its pictures."""
WHOLE = "whole"
"""Name of the one part of a dictionary that knows whole pictures only."""


@dataclass(frozen=True)
class TrainingKinds:
    """Parts and kinds of N pictures, M parts; what captions and masks are made from."""

    part_names: tuple[str, ...]
    kind_names: tuple[dict[int, str], ...]
    background: int | None
    labels: np.ndarray
    """(N, h, w) uint8 part index of every patch."""
    codes: np.ndarray
    """(N, M) int64 kind of every part, -1 where absent."""
    notes: dict[str, Any]
    """What the dictionary's provenance says about the kinds."""
    slots: int = 1
    """S, things of one picture: labels and columns of codes `(N, S * M)` are then slot * M + part."""

    @property
    def num_kinds(self) -> int:
        """Kinds per part that the token table needs."""
        return int(self.codes.max()) + 1

    def rows(self) -> list[tuple[int, int]]:
        """Every (part, kind) that occurs, sorted."""
        count = len(self.part_names)
        pairs = {(column % count, int(kind)) for column, kinds in enumerate(self.codes.T) for kind in np.unique(kinds)}
        return sorted((part, kind) for part, kind in pairs if kind != ABSENT)

    def only(self, rows: Collection[tuple[int, int]]) -> "TrainingKinds":
        """The same without kinds `(part, kind)` that are not among `rows`."""
        codes, count = self.codes.copy(), len(self.part_names)
        for column in range(codes.shape[1]):
            known = [kind for part, kind in rows if part == column % count]
            codes[:, column] = np.where(np.isin(codes[:, column], known), codes[:, column], ABSENT)
        return replace(self, codes=codes)

    def without_background(self) -> "TrainingKinds":
        """The same with no token for the background."""
        if self.background is None:
            return self
        codes = self.codes.copy()
        codes[:, self.background :: len(self.part_names)] = ABSENT
        return replace(self, codes=codes)

    def subset(self, rows: np.ndarray) -> "TrainingKinds":
        """The kinds of some of the pictures: labels `(n, h, w)` and codes `(n, M)`."""
        return replace(self, labels=self.labels[rows], codes=self.codes[rows])


def discovered_kinds(codebook: PartCodebook, maps: PartMaps) -> TrainingKinds:
    """Kinds as discovery found them: labels `(N, h, w)`, codes `(N, M)`."""
    names = tuple(dict(kinds) for kinds in codebook.kind_names)
    codes = maps.codes.numpy().astype(np.int64)
    return TrainingKinds(
        tuple(codebook.part_names), names, codebook.background, maps.labels.numpy(), codes, {"ids": "discovered"}
    )


def class_kinds(kinds: TrainingKinds, classes: Mapping[str, Sequence[str]]) -> TrainingKinds:
    """Codes `(N, M)` with a class of each picture as the kind of its parts; the background keeps its own kinds.

    Args:
        kinds: discovered kinds of N pictures.
        classes: as `read_classes` gives them: "class" for all parts, or part name -> N class names.

    Raises:
        BestiaryError: a part has no column; the message lists parts and columns.
    """
    # the background is not part of a class: a wren stands in many places
    codes, kind_names = kinds.codes.copy(), [dict(names) for names in kinds.kind_names]
    for part, part_name in enumerate(kinds.part_names):
        if part == kinds.background:
            continue
        # one class for all parts, or a column for each
        column = classes.get("class", classes.get(part_name.lower()))
        if column is None:
            raise BestiaryError(
                f"images.labels has no column for part {part_name!r}, only {', '.join(classes)}: name a column `class`, "
                f"or one column per part ({', '.join(kinds.part_names)}); `bestiary parts rename` changes part names"
            )
        names = sorted(set(column))
        own = np.array([names.index(name) for name in column], dtype=np.int64)  # (N,)
        codes[:, part] = np.where(kinds.codes[:, part] == ABSENT, ABSENT, own)
        kind_names[part] = dict(enumerate(names))
    return replace(kinds, kind_names=tuple(kind_names), codes=codes, notes={"ids": "class"})


def whole_kinds(
    kinds: TrainingKinds, codebook: PartCodebook, classes: Mapping[str, Sequence[str]] | None, seed: int
) -> TrainingKinds:
    """One part that is the whole picture: its kind is the class, or a cluster of pictures with similar parts.

    Without classes the fine centroids of a picture's foreground parts, side by side, are clustered into as many kinds
    as the richest foreground part has. `notes["codes_of_kind"]` holds the most frequent code of every part in each kind.
    """
    # several columns of classes are joined to one name
    if classes is not None:
        joined = [", ".join(row) for row in zip(*classes.values(), strict=True)]
        names = sorted(set(joined))
        own = np.array([names.index(name) for name in joined], dtype=np.int64)  # (N,)
        kind_names = dict(enumerate(names))
    else:
        own = _cluster_pictures(kinds, codebook, seed)
        kind_names = {}
    # what each kind looks like in codes of parts, so that an evaluation can ask for its parts
    table = [_usual_codes(kinds.codes[own == kind]) for kind in range(int(own.max()) + 1)]
    notes = {"ids": "whole", "parts_of_codes": list(kinds.part_names), "codes_of_kind": table}
    labels = np.zeros((len(own), 1, 1), dtype=np.uint8)  # (N, 1, 1): every patch belongs to the whole
    return TrainingKinds((WHOLE,), (kind_names,), None, labels, own[:, None], notes)


def read_classes(path: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Classes of the pictures `names` from a CSV file, column name (lower case) -> one class per picture.

    The file has a column `path` (or `file`) and either a column `class` or one column per part.

    Raises:
        BestiaryError: the file or a column is missing, or pictures have no line.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            lines = list(reader)
            columns = list(reader.fieldnames or [])
    except OSError as fault:
        raise BestiaryError(f"cannot read images.labels {path}: {fault.strerror or fault}") from fault
    except (UnicodeDecodeError, csv.Error) as fault:
        raise BestiaryError(f"images.labels {path} is no CSV table in UTF-8: {fault}") from fault
    # the column of pictures goes by several names; all others may be classes
    picture = next((column for column in PICTURE_COLUMNS if column in columns), None)
    wanted = ["class"] if "class" in columns else [column for column in columns if column != picture]
    if picture is None or not wanted:
        shown = ", ".join(columns) or "none"
        raise BestiaryError(f"{path} has the columns {shown}: it needs `path`, and `class` or one column per part")
    # pictures without a class cannot be captioned
    by_name: dict[str, dict[str, str]] = {}
    for line in lines:
        # the whole relative path with its ending, as people write it on their system
        name = str(line[picture] or "").strip().replace("\\", "/").removeprefix("./")
        earlier = by_name.setdefault(name, line)
        differing = next((column for column in wanted if earlier[column] != line[column]), None)
        if differing is not None:
            raise BestiaryError(
                f"{path} names {name} twice, with {differing} {earlier[differing]!r} and {line[differing]!r}: keep one line"
            )
    missing = [name for name in names if name not in by_name or not all(by_name[name][column] for column in wanted)]
    if missing:
        raise BestiaryError(f"{path} names no class for {len(missing)} of {len(names)} pictures, first {missing[0]}")
    return {column.lower(): [by_name[name][column].strip() for name in names] for column in wanted}


def _cluster_pictures(kinds: TrainingKinds, codebook: PartCodebook, seed: int) -> np.ndarray:
    """Cluster index `(N,)` of every picture by what its foreground parts look like."""
    foreground = [part for part in range(len(kinds.part_names)) if part != kinds.background]
    pieces = []
    for part in foreground:
        centroids = F.normalize(codebook.fine[part].float(), dim=-1)  # (K, D)
        codes = torch.from_numpy(kinds.codes[:, part])
        rows = centroids[codes.clamp_min(0)]  # (N, D)
        # what absent parts look like is not known
        pieces.append(torch.where((codes >= 0).unsqueeze(1), rows, 0.0))
    count = max(len(np.unique(column[column >= 0])) for column in kinds.codes[:, foreground].T)
    features = torch.cat(pieces, dim=1)  # (N, parts * D)
    return fit_kmeans(features, min(count, len(features)), seed=seed).labels.numpy().astype(np.int64)


def _usual_codes(codes: np.ndarray) -> list[int]:
    """Most frequent code of every part `(M,)` in the pictures `(n, M)` of one kind; -1 if mostly absent."""
    if not len(codes):
        return [ABSENT] * codes.shape[1]
    return [int(np.bincount(column + 1).argmax()) - 1 for column in codes.T]
