"""Figures of pictures of several subjects: one row for each picture, means over all and over those of the same subjects, as text.

CP and TI are our reading of CP-CLIP and TI-CLIP (Gen4Gen, arXiv 2402.15504).
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from PIL import Image

from ...scenes.scene_scores import Boxes, score_places

if TYPE_CHECKING:
    # the judges load libraries that a page of figures does without
    from .scene_judges import KnownSubject, SceneJudges

CSV_COLUMNS: tuple[str, ...] = (
    "file",
    "subjects",
    "prompt",
    "cp",
    "ti",
    "match",
    "found",
    "complete",
    "extra_subjects",
)
MEANING = (
    "CP, our reading of CP-CLIP: mean over subjects of the likeness of what was found and the subject's own pictures; 0 for a subject that "
    "was not found. TI: cosine of picture and prompt. Found: share of the subjects that were found; complete: share of pictures with all of "
    "them. Extra: things like a subject beyond those that were asked for, per picture."
)
DRAWN_MEANING = (
    "The drawn world's judge looks at windows of the picture, or where subjects were put; likeness is the share of colours, patterns and "
    "shapes of parts that are the subject's, and from 0.6 on a subject counts as found. Match: likeness of the best place for each subject, "
    "found or not."
)


class PictureScores(TypedDict):
    """Figures of one picture; None where a judge is missing."""

    file: str
    prompt: str
    subjects: list[str]
    cp: float | None
    ti: float | None
    match: float | None
    found: float | None
    extra_subjects: int | None
    places: dict[str, list[float] | None]
    """Left, top, width and height in pixels of each subject; None where it was not found."""
    likeness: dict[str, float]
    """Of each subject."""


class MeanScores(TypedDict):
    """Means over pictures; None where nobody judged."""

    pictures: int
    cp: float | None
    ti: float | None
    match: float | None
    found: float | None
    complete: float | None
    """Share of pictures that show all subjects."""
    extra_subjects: float | None


@dataclass(frozen=True)
class SceneFigures:
    """All pictures of an evaluation."""

    pictures: list[PictureScores]
    models: Mapping[str, str]
    left_out: Mapping[str, str]

    @property
    def mean(self) -> MeanScores:
        """Over all pictures."""
        return mean_scores(self.pictures)

    @property
    def pairs(self) -> dict[str, MeanScores]:
        """Over pictures of the same subjects, `cat and dog`, by their names."""
        named = sorted({group_name(one) for one in self.pictures})
        return {name: mean_scores([one for one in self.pictures if group_name(one) == name]) for name in named}

    def to_json(self, more: Mapping[str, object] | None = None) -> str:
        """Models, means and every picture, after what else is to be kept."""
        record = {
            **(more or {}),
            "models": dict(self.models),
            "left_out": dict(self.left_out),
            "pictures": len(self.pictures),
            "mean": self.mean,
            "pairs": self.pairs,
            "scores": self.pictures,
        }
        return json.dumps(record, indent=1, ensure_ascii=False) + "\n"

    def to_csv(self) -> str:
        """One row for each picture."""
        text = io.StringIO()
        writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for one in self.pictures:
            row = {"subjects": group_name(one), "complete": None if one["found"] is None else int(is_complete(one))}
            writer.writerow({name: row[name] if name in row else one.get(name) for name in CSV_COLUMNS})
        return text.getvalue()


def score_picture(
    judges: "SceneJudges",
    picture: Image.Image,
    file: str,
    prompt: str,
    subjects: "Sequence[KnownSubject]",
    boxes: Boxes | None = None,
) -> PictureScores:
    """Judge one picture.

    Args:
        file: name of the picture in the record.
        prompt: in plain words.
        subjects: those that it should show.
        boxes: `(K, 4)` where they were put, in pixels, if that is known.

    Raises:
        BestiaryError: no subjects, or one without pictures.
    """
    scores = PictureScores(
        file=file,
        prompt=prompt,
        subjects=[one.name for one in subjects],
        cp=None,
        ti=None,
        match=None,
        found=None,
        extra_subjects=None,
        places={},
        likeness={},
    )
    if judges.text is not None and prompt:
        scores["ti"] = round(float(judges.text.pictures([picture])[0] @ judges.text.texts([prompt])[0]), 4)
    if judges.composition is not None:
        seen = judges.composition.look(picture, subjects, boxes)
        score = score_places(seen)
        named = [one.name for one in subjects]
        scores["cp"], scores["match"], scores["found"] = (round(v, 4) for v in (score.cp, score.match, score.found))
        scores["extra_subjects"] = score.extra
        scores["places"] = {
            name: None if place is None else [round(float(side), 1) for side in seen.boxes[place]]
            for name, place in zip(named, score.places, strict=True)
        }
        scores["likeness"] = {name: round(value, 4) for name, value in zip(named, score.likeness, strict=True)}
    return scores


def mean_scores(rows: Sequence[PictureScores]) -> MeanScores:
    """Means of some pictures."""
    complete = [float(is_complete(one)) for one in rows if one["found"] is not None]
    return MeanScores(
        pictures=len(rows),
        cp=_mean([one["cp"] for one in rows]),
        ti=_mean([one["ti"] for one in rows]),
        match=_mean([one["match"] for one in rows]),
        found=_mean([one["found"] for one in rows]),
        complete=_mean(complete),
        extra_subjects=_mean([one["extra_subjects"] for one in rows]),
    )


def is_complete(scores: PictureScores) -> bool:
    """Whether all subjects of a picture were found."""
    return scores["found"] == 1


def group_name(scores: PictureScores) -> str:
    """Its subjects: `cat and dog`."""
    return " and ".join(sorted(scores["subjects"]))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 4) if known else None
