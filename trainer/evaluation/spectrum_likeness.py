"""How like its pictures, and how true to its prompts, a spectrum draws, judged by CLIP; and what each stage lets through.

CLIP-I: mean cosine between pictures made of a prompt and the given ones. CLIP-T: mean cosine between such pictures and the prompt
without its placeholder. Leakage of a stage: the share of the whole likeness that comes through when that stage alone says what
was learned and all others say the words it was learned from. Letters: N pictures, R given pictures, S stages, F features.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TypedDict, cast

import torch
from PIL import Image
from torch import Tensor

from ...concepts.spectrum.prompt_spectrum import PromptSpectrum
from ...concepts.spectrum.stage_algebra import with_strength
from ...concepts.spectrum.stage_mention import find_staged_mentions
from ...concepts.spectrum.staged_prompt import PromptSources
from ..composing.picture_making import PictureOrder, SamplingChoice
from ..composing.staged_pictures import make_staged_pictures
from ..model.sampling import SamplingDenoiser
from .clip_judge import ClipJudge

logger = logging.getLogger("bestiary")
SMALLEST_SPAN = 0.01
"""Cosine by which the spectrum must be more like its pictures than its words are, for shares of it to mean anything."""


@dataclass(frozen=True)
class PromptScore:
    """Scores of the pictures of one prompt."""

    prompt: str
    text: str
    """The prompt without its placeholder, which CLIP-T is measured against."""
    clip_i: float
    clip_t: float


class PromptRecord(TypedDict):
    """`PromptScore` as JSON holds it."""

    prompt: str
    text: str
    clip_i: float
    clip_t: float


class LikenessRecord(TypedDict):
    """`Likeness` as JSON holds it."""

    prompts: list[PromptRecord]
    clip_i: float
    clip_t: float
    clip_i_given: float | None
    clip_i_words: float | None
    clip_i_stages: list[float]
    leakage: list[float] | None
    seeds: list[int]


@dataclass(frozen=True)
class Likeness:
    """Scores of a spectrum."""

    prompts: tuple[PromptScore, ...]
    clip_i: float
    """Mean over all pictures of all prompts."""
    clip_t: float
    clip_i_given: float | None
    """Mean cosine among the given pictures themselves: what could be reached; None for a single one."""
    clip_i_words: float | None
    """CLIP-I of the first prompt at strength 0, the words alone; None where they are unknown."""
    clip_i_stages: tuple[float, ...]
    """CLIP-I of the first prompt with one stage alone."""
    leakage: tuple[float, ...] | None
    """Per stage: 0 is as the words, 1 as the whole spectrum; None where the two differ by less than SMALLEST_SPAN."""
    seeds: tuple[int, ...]
    """Of the pictures of each prompt."""

    def record(self) -> LikenessRecord:
        """Plain values for JSON, rounded."""
        return cast(LikenessRecord, _rounded(asdict(self)))


@dataclass(frozen=True)
class LikenessOrder:
    """What is drawn to be judged."""

    name: str
    """What prompts call the spectrum."""
    prompts: tuple[str, ...]
    pictures: int
    """Of each prompt."""
    seed: int
    choice: SamplingChoice


def text_without_mentions(prompt: str) -> str:
    """A prompt as CLIP reads it: without mentions and double spaces."""
    kept, place = [], 0
    for start, (end, _) in sorted(find_staged_mentions(prompt).items()):
        kept.append(prompt[place:start])
        place = end
    return " ".join("".join([*kept, prompt[place:]]).split())


def judge_likeness(
    denoiser: SamplingDenoiser,
    spectrum: PromptSpectrum,
    given: Sequence[Image.Image],
    judge: ClipJudge,
    order: LikenessOrder,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Likeness, list[Image.Image]]:
    """Scores, and for people to see the first picture of the whole spectrum, of its words, and of every stage alone.

    Raises:
        BestiaryError: a prompt is wrong or the spectrum does not fit the model.
    """
    # the whole spectrum under every prompt, then its variants under the first one
    variants = _variants(spectrum)
    asked = [(spectrum, prompt) for prompt in order.prompts] + [(one, order.prompts[0]) for one in variants]
    seeds = tuple(range(order.seed, order.seed + order.pictures))
    made = []
    for number, (one, prompt) in enumerate(asked):

        def report(done: int, steps: int, number: int = number) -> None:
            # the same seeds for all, so that only what was learned differs
            if on_progress is not None:
                on_progress(number * steps + done, len(asked) * steps)

        orders = [PictureOrder(prompt, seed) for seed in seeds]
        sources = PromptSources({order.name: one}, presets=spectrum.presets)
        made.append(
            [
                picture.to_image()
                for picture in make_staged_pictures(denoiser, sources, orders, order.choice, on_progress=report)
            ]
        )
    theirs, ours = judge.pictures(given), [judge.pictures(pictures) for pictures in made]  # (R, F), (N, F) each
    texts = [text_without_mentions(prompt) for prompt in order.prompts]
    scores = tuple(
        PromptScore(prompt, text, _cosine(features, theirs), _cosine(features, feature.unsqueeze(0)))
        for prompt, text, features, feature in zip(order.prompts, texts, ours, judge.texts(texts), strict=False)
    )
    alone = [_cosine(features, theirs) for features in ours[len(order.prompts) :]]
    # the words first, then one entry per stage
    words, stages = (alone[0], tuple(alone[1:])) if alone else (None, ())
    likeness = Likeness(
        prompts=scores,
        clip_i=sum(score.clip_i for score in scores) / len(scores),
        clip_t=sum(score.clip_t for score in scores) / len(scores),
        clip_i_given=_among(theirs),
        clip_i_words=words,
        clip_i_stages=stages,
        leakage=_leakage(scores[0].clip_i, words, stages),
        seeds=seeds,
    )
    shown = [made[0][0], *(pictures[0] for pictures in made[len(order.prompts) :])]
    return likeness, shown


def _variants(spectrum: PromptSpectrum) -> list[PromptSpectrum]:
    """The words alone, and each stage alone; none where the words are unknown."""
    if not spectrum.neutral:
        logger.warning("the spectrum does not know the words it was learned from: leakage of stages is not judged")
        return []
    stages = range(spectrum.stages)
    alone = [with_strength(spectrum, [float(stage == one) for stage in stages]) for one in stages]
    return [with_strength(spectrum, 0.0), *alone]


def _leakage(whole: float, words: float | None, stages: Sequence[float]) -> tuple[float, ...] | None:
    if words is None or whole - words < SMALLEST_SPAN:
        return None
    return tuple((one - words) / (whole - words) for one in stages)


def _cosine(ours: Tensor, theirs: Tensor) -> float:
    """Mean over all pairs of features `(N, F)` and `(R, F)` of length 1."""
    return float((ours @ theirs.T).mean())


def _among(features: Tensor) -> float | None:
    """Mean cosine of pairs of different rows of `(R, F)`."""
    if len(features) < 2:
        return None
    pairs = torch.triu_indices(len(features), len(features), offset=1)  # (2, R (R - 1) / 2)
    return float((features[pairs[0]] * features[pairs[1]]).sum(-1).mean())


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value
