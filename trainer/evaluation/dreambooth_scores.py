"""Figures of one subject from its pictures, real and made. Letters: N pictures, F features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from PIL import Image

from .clip_judge import ClipJudge
from .dreambooth_pictures import as_images
from .dreambooth_protocol import SubjectPlan
from .likeness_judges import DinoJudge, LpipsJudge, mean_cosine, mean_cosine_within

Figures = dict[str, float]
COLUMNS = ("dino", "clip_i", "clip_t", "div")


@dataclass(frozen=True)
class Judges:
    """Those whose weights are here."""

    dino: DinoJudge | None = None
    clip: ClipJudge | None = None
    lpips: LpipsJudge | None = None


class PromptScores(TypedDict):
    """Figures of one prompt; None where a judge is missing."""

    prompt: str
    pictures: int
    dino: float | None
    clip_i: float | None
    clip_t: float | None
    div: float | None


class RealScores(TypedDict):
    """Real pictures of a subject against each other: the most that made ones could reach."""

    pictures: int
    dino: float | None
    clip_i: float | None


class SubjectScores(TypedDict):
    """Figures of one subject."""

    subject: str
    class_noun: str
    real: RealScores
    prompts: list[PromptScores]
    class_pictures: int
    pres: float | None
    """DINO of pictures of the class and real ones of the subject; lower is better."""
    mean: Figures
    """Over prompts."""


def score_subject(
    plan: SubjectPlan,
    plain_prompts: Sequence[str],
    judges: Judges,
    real: Sequence[Image.Image],
    by_prompt: Sequence[Sequence[Image.Image]],
    of_class: Sequence[Image.Image],
) -> SubjectScores:
    """All figures of a subject.

    Args:
        plain_prompts: the prompts without the identifier, which CLIP compares with.
        real: its pictures.
        by_prompt: made pictures of each prompt.
        of_class: made pictures of its class.
    """
    dino, clip = judges.dino, judges.clip
    real_dino = dino.pictures(real) if dino else None  # (N, F)
    real_clip = clip.pictures(real) if clip else None  # (N, F)
    texts = clip.texts(plain_prompts) if clip else None  # (prompts, F)
    prompts: list[PromptScores] = []
    for number, (prompt, made) in enumerate(zip(plan.prompts, by_prompt, strict=True)):
        seen = clip.pictures(made) if clip else None
        prompts.append(
            {
                "prompt": prompt,
                "pictures": len(made),
                "dino": None if dino is None or real_dino is None else mean_cosine(dino.pictures(made), real_dino),
                "clip_i": None if seen is None or real_clip is None else mean_cosine(seen, real_clip),
                "clip_t": None if seen is None or texts is None else mean_cosine(seen, texts[number : number + 1]),
                "div": judges.lpips.diversity(as_images(made)) if judges.lpips and len(made) > 1 else None,
            }
        )
    within = (None if some is None else mean_cosine_within(some) for some in (real_dino, real_clip))
    first, second = within
    return {
        "subject": plan.name,
        "class_noun": plan.class_noun,
        "real": {"pictures": len(real), "dino": first, "clip_i": second},
        "prompts": prompts,
        "class_pictures": len(of_class),
        "pres": None if dino is None or real_dino is None else mean_cosine(dino.pictures(of_class), real_dino),
        "mean": _mean([dict(row) for row in prompts], COLUMNS),
    }


def mean_figures(scores: Sequence[SubjectScores]) -> Figures:
    """Means over subjects, with those of the real pictures; columns that nobody judged are left out."""
    rows = [
        {**one["mean"], "pres": one["pres"], "real_dino": one["real"]["dino"], "real_clip_i": one["real"]["clip_i"]}
        for one in scores
    ]
    return _mean(rows, (*COLUMNS, "pres", "real_dino", "real_clip_i"))


def _mean(rows: Sequence[dict], columns: Sequence[str]) -> Figures:
    means = {}
    for column in columns:
        values = [row[column] for row in rows if row.get(column) is not None]
        if values:
            means[column] = sum(values) / len(values)
    return means
