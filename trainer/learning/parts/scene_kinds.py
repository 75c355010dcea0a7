"""Scenes of a set as training pictures: which part of which subject every pixel shows, and of which kind it is.

Label maps are those the set was composed with; kinds are those of the pictures that its subjects were cut from, or those that their
words name as `<part:kind>`. Letters: K scenes, S subjects of the richest one, M parts.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ....concepts.errors import BestiaryError
from ....concepts.part_map.part_codebook import PartCodebook
from ....concepts.part_map.part_map import ABSENT
from ....concepts.part_prompt.part_mention import find_mentions
from ....concepts.pictures.square_fit import seen_box
from ....scenes.collage import NO_PART
from ....scenes.set_files import SceneRecord, SubjectFiles, inside, read_png, read_records
from .training_kinds import TrainingKinds

logger = logging.getLogger("bestiary")
_LABEL_PIXELS = 4
"""Pixels of a label's edge where labels are cut with their picture."""
MOST_COLUMNS = NO_PART
"""Columns that labels of uint8 can tell apart from none."""


@dataclass(frozen=True)
class TrainingScenes:
    """The scenes of a set that show known parts."""

    folder: Path
    names: tuple[str, ...]
    """Picture files, relative to the folder."""
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each in pixels."""
    labels: tuple[np.ndarray, ...]
    """`(H, W)` uint8 column slot * M + part of every pixel of each, `NO_PART` for none."""
    codes: np.ndarray
    """`(K, S * M)` int64 kind of every column, -1 where absent."""
    slots: int
    """S."""
    left_out: int
    """Scenes without part labels."""

    def kinds(self, like: TrainingKinds, rows: Sequence[int], labels: np.ndarray) -> TrainingKinds:
        """Some of the scenes with labels `(n, y, x)`; names are those of `like`."""
        return replace(like, labels=labels, codes=self.codes[list(rows)], slots=self.slots)


class SubjectKinds:
    """Kinds of a subject's parts, by the picture it was cut from or by its words."""

    def __init__(self, discovery: Path, pictures: Sequence[Path], kinds: TrainingKinds, codebook: PartCodebook) -> None:
        """`pictures` are the N of the discovery, in the order of `kinds`."""
        self._discovery, self._pictures, self._kinds, self._codebook = discovery, pictures, kinds, codebook
        self._rows = {path.resolve(): row for row, path in enumerate(pictures)}
        self._hashes: dict[str, int] = {}

    def of(self, subject: SubjectFiles, stem: str) -> np.ndarray:
        """Codes `(M,)` of a subject.

        Raises:
            BestiaryError: neither its picture nor its words say of which kinds its parts are.
        """
        row = self._row_of(subject)
        if row is not None:
            return self._kinds.codes[row]
        codes = np.full(len(self._kinds.part_names), ABSENT, dtype=np.int64)  # (M,)
        where = f"images.scenes: subject {subject.name!r} of scene {stem}"
        # classes and whole pictures have other kinds than the codebook's, which prompts name
        mentions = find_mentions(subject.words).values() if self._kinds.notes.get("ids") == "discovered" else ()
        for _, mention in mentions:
            try:
                part = self._codebook.find_part(mention.target)
                codes[part] = self._codebook.find_kind(part, mention.kinds[0][0])
            except BestiaryError as fault:
                raise BestiaryError(f"{where}: {fault}; give the set of another build, or that discovery") from fault
        if (codes == ABSENT).all():
            shown = subject.source.get("file") or "no file"
            raise BestiaryError(
                f"{where} was cut from {shown}, which {self._discovery} does not hold, and its words name no kinds: discover that "
                "picture too, or call the subject by its kinds, such as `<head:3> bird`"
            )
        return codes

    def _row_of(self, subject: SubjectFiles) -> int | None:
        file, sha = subject.source.get("file", ""), subject.source.get("sha256", "")
        if file and (row := self._rows.get(Path(file).resolve())) is not None:
            return row
        if not sha:
            return None
        # a set that was moved knows its pictures by their bytes
        if not self._hashes:
            readable = [(row, path) for row, path in enumerate(self._pictures) if path.is_file()]
            self._hashes = {hashlib.sha256(path.read_bytes()).hexdigest(): row for row, path in readable}
        return self._hashes.get(sha)


def read_scenes(folder: Path, known: SubjectKinds, kinds: TrainingKinds) -> TrainingScenes:
    """The scenes of a set with the kinds of their parts.

    Raises:
        BestiaryError: no set, none with part labels, parts or kinds that are not known, or too many subjects in one scene.
    """
    folder, parts = Path(folder), len(kinds.part_names)
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise BestiaryError(f"images.scenes {folder} {state}: give the folder that `bestiary scenes build` wrote")
    records = list(read_records(folder))
    labelled = [record for record in records if f"parts/{record.stem}.png" in record.files]
    if not labelled:
        raise BestiaryError(
            f"images.scenes {folder}: none of its {len(records)} scenes has part labels; build it again with the discovery of its "
            "pictures (`discovery` in its recipe), so that each subject knows its parts"
        )
    slots = max(len(record.subjects) for record in labelled)
    if slots * parts > MOST_COLUMNS:
        raise BestiaryError(
            f"images.scenes {folder}: a scene of {slots} subjects with {parts} parts each has more than {MOST_COLUMNS} of them; "
            "build scenes of fewer subjects"
        )
    codes = np.full((len(labelled), slots * parts), ABSENT, dtype=np.int64)  # (K, S * M)
    labels = []
    for row, record in zip(codes, labelled, strict=True):
        for slot, subject in enumerate(record.subjects):
            if subject.parts:
                row[slot * parts : (slot + 1) * parts] = known.of(subject, record.stem)
                # a scene stands before a place of its own, not before those of the pictures its subjects are from
                if kinds.background is not None:
                    row[slot * parts + kinds.background] = ABSENT
        labels.append(_labels_of(folder, record, kinds))
    if len(labelled) < len(records):
        logger.info("%d of %d scenes have no part labels and are left out", len(records) - len(labelled), len(records))
    return TrainingScenes(
        folder,
        tuple(f"images/{record.stem}.png" for record in labelled),
        tuple((own.shape[1], own.shape[0]) for own in labels),
        tuple(labels),
        codes,
        slots,
        len(records) - len(labelled),
    )


def _labels_of(folder: Path, record: SceneRecord, kinds: TrainingKinds) -> np.ndarray:
    """Columns `(H, W)` uint8 of one scene's pixels."""
    count = len(kinds.part_names)
    planes = [read_png(inside(folder, f"{place}/{record.stem}.png")) for place in ("instances", "parts")]
    owner, part = planes  # (H, W) each
    if owner.ndim != 2 or owner.shape != part.shape:
        raise BestiaryError(
            f"images.scenes {folder}: label maps of scene {record.stem} do not fit each other; build the set again"
        )
    shown = (part != NO_PART) & (owner > 0)  # (H, W)
    # whole pictures have one part, whatever parts the set was built with
    if "codes_of_kind" in kinds.notes:
        part = np.zeros_like(part)
    if shown.any() and int(part[shown].max()) >= count:
        raise BestiaryError(
            f"images.scenes {folder}: scene {record.stem} shows part {int(part[shown].max())}, but there are {count} parts "
            f"({', '.join(kinds.part_names)}): it was built with another discovery; build it again with this one"
        )
    columns = (owner.astype(np.int64) - 1) * count + part
    return np.where(shown, columns, NO_PART).astype(np.uint8)


def labels_in_shape(labels: np.ndarray, picture: tuple[int, int], shape: tuple[int, int], *, whole: bool) -> np.ndarray:
    """Labels of what a picture shows once it is cut and resized to a shape, two for each latent cell of eight pixels.

    Args:
        labels: `(y, x)` uint8, of the whole picture, or of its centre square, beside which nothing is known.
        picture: width and height in pixels.
        shape: height and width in pixels.
        whole: whether the labels are of the whole picture.
    """
    (width, height), places = picture, []
    scale = min(width / shape[1], height / shape[0])
    boxes = (0.0, 0.0, float(width), float(height)) if whole else seen_box(width, height)
    for edge, length, count, start, end in (
        (height, shape[0], labels.shape[0], boxes[1], boxes[3]),
        (width, shape[1], labels.shape[1], boxes[0], boxes[2]),
    ):
        many = max(1, length // _LABEL_PIXELS)
        seen = (edge - scale * length) / 2 + (np.arange(many) + 0.5) / many * scale * length  # pixels of the picture
        places.append(np.floor((seen - start) / (end - start) * count).astype(int))
    rows, columns = places
    inside = np.ix_((rows >= 0) & (rows < labels.shape[0]), (columns >= 0) & (columns < labels.shape[1]))
    found = np.full((len(rows), len(columns)), NO_PART, dtype=np.uint8)
    found[inside] = labels[np.ix_(rows[inside[0][:, 0]], columns[inside[1][0]])]
    return found
