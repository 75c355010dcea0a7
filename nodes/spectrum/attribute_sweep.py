"""Finds the stages at which a word acts: uses it at one stage at a time and measures the change of the picture.

All runs start from the same noise. The score of a stage is its share of the change from the picture without the word to
the picture with the word at all stages: 1 is the full change, 0 none. Letters: S stages, N pictures, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.name_search import shown_name
from ...concepts.spectrum.attribute_presets import Presets, format_presets, stages_text
from ...concepts.spectrum.stage_bounds import StageBounds
from ...concepts.spectrum.staged_prompt import Override, PromptSources, resolve_staged_prompt
from ..host.comfy_objects import Conditioning
from ..host.graph_progress import GraphProgress
from ..host.socket_types import WORD_PLACE
from .stage_ranges import stage_percents
from .staged_encoding import StagedSide, encode_sides

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP

THRESHOLD = 0.5
"""Stages with at least this share of the strongest stage's score belong to the attribute."""
FEATURE_EDGE = 64
"""Edge in pixels at which pictures are compared without a CLIP vision model."""

Sampling = Callable[[Conditioning, Conditioning], Tensor]
"""Positive and negative -> latents `(N, C, H, W)`."""
Seeing = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Latents `(N, C, H, W)` -> features for comparison `(N, F)`, and pictures `(N, H, W, 3)`."""


@dataclass(frozen=True)
class SweepSettings:
    """Settings of a sweep."""

    text: str
    """Prompt with the placeholder `{word}`."""
    word: str
    otherwise: str = ""
    """Replacement for the word at the other stages."""
    negative: str = ""
    stages: int = 10
    attribute: str = ""
    """Name of the proposed preset; empty uses the word."""


@dataclass(frozen=True)
class Sweep:
    """Result of a sweep."""

    settings: SweepSettings
    bounds: StageBounds
    scores: Tensor
    """`(S,)` share of the full change that each stage alone causes."""
    sizes: Tensor
    """`(S,)` size of the change in any direction, relative to the full change."""
    pictures: Tensor
    """`(S + 2, H, W, 3)`: without the word, with it at each stage alone, with it at all stages; first picture of each run."""

    @property
    def carrying(self) -> tuple[int, ...]:
        """The stages, counted from 0, at which the word acts."""
        limit = THRESHOLD * float(self.scores.max())
        return tuple(stage for stage, score in enumerate(self.scores.tolist()) if limit > 0 and score >= limit)

    def preset(self) -> Presets:
        """The proposed preset, with adjacent stages merged to one range.

        Raises:
            BestiaryError: the word acts at no single stage.
        """
        if not self.carrying:
            raise BestiaryError(
                f"the word {shown_name(self.settings.word)} at a single stage has no measurable part of the effect it has at "
                "all stages: use fewer stages, or a word with a stronger effect"
            )
        # merge a stage with the previous range if they touch
        ranges: list[tuple[float, float]] = []
        for stage in self.carrying:
            start, end = self.bounds.fractions[stage : stage + 2]
            if ranges and ranges[-1][1] == start:
                start = ranges.pop()[0]
            ranges.append((start, end))
        return {self.settings.attribute.strip() or self.settings.word.strip(): tuple(ranges)}

    def table(self) -> str:
        """Scores per stage and the proposal, as text."""
        rows = ["stage   share   size"]
        for stage, (score, size) in enumerate(zip(self.scores.tolist(), self.sizes.tolist(), strict=True)):
            mark = "  carries it" if stage in self.carrying else ""
            rows.append(f"{stage + 1:5d}  {score:6.1%}  {size:5.2f}{mark}")
        rows.append(f"stages {stages_text(self.carrying)}: {format_presets(self.preset())}")
        return "\n".join(rows)


def sweep_word(
    model: ModelPatcher, clip: CLIP, settings: SweepSettings, sample: Sampling, see: Seeing, progress: GraphProgress
) -> Sweep:
    """Use a word at each stage alone and measure the change of features `(N, F)`; takes S + 2 samplings.

    Raises:
        BestiaryError: the text has no placeholder, the word is empty, or it has no effect at all.
        InterruptProcessingException: the user cancelled.
    """
    if WORD_PLACE not in settings.text or not settings.word.strip():
        raise BestiaryError(
            f"text {shown_name(settings.text)} and word {shown_name(settings.word)}: enter a word, and a text with {WORD_PLACE} "
            "in its place"
        )
    # without the word, with it at one stage alone, and with it everywhere
    bounds = StageBounds.equal(settings.stages)
    with_word, without = (settings.text.replace(WORD_PLACE, one) for one in (settings.word, settings.otherwise))
    staged: list[tuple[str, dict[int, Override]]] = [(without, {stage: with_word}) for stage in range(bounds.stages)]
    plans = [(without, {}), *staged, (with_word, {})]
    # encode all prompts in one batch; the negative one is last
    sides = [_side(model, text, overrides, bounds) for text, overrides in [*plans, (settings.negative, {})]]
    *positives, negative = encode_sides(clip, sides)
    progress.begin(len(positives))
    features, pictures = [], []
    for positive in positives:
        seen, shown = see(sample(positive, negative))
        features.append(seen.float().cpu())
        pictures.append(shown[:1].float().cpu())
        progress.add()
    scores, sizes = change_shares(torch.stack(features))
    return Sweep(settings, bounds, scores, sizes, torch.cat(pictures))


def change_shares(features: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the full change and relative size `(S,)` each, of features `(S + 2, N, F)`: without, single stages, everywhere.

    The share is the projection of a stage's change on the full change, averaged over the N pictures.

    Raises:
        BestiaryError: the word has no effect even at all stages.
    """
    without, everywhere = features[0], features[-1]
    whole = everywhere - without  # (N, F)
    squared = whole.square().sum(-1)  # (N,)
    if not bool((squared > 0).all()):
        raise BestiaryError(
            "the word has no effect, even at all stages: choose a word that the model knows, and a cfg above 1"
        )
    # a stage may also change the picture in other directions: the size shows how much
    moved = features[1:-1] - without  # (S, N, F)
    shares = (moved * whole).sum(-1) / squared  # (S, N)
    sizes = moved.square().sum(-1).sqrt() / squared.sqrt()  # (S, N)
    return shares.mean(-1), sizes.mean(-1)


def _side(model: ModelPatcher, text: str, overrides: dict[int, Override], bounds: StageBounds) -> StagedSide:
    prompt = resolve_staged_prompt(text, PromptSources(), overrides=overrides, bounds=bounds)
    return StagedSide(prompt, stage_percents(prompt.bounds, "timesteps", model))


def picture_features(pictures: Tensor) -> Tensor:
    """Features of pictures `(N, H, W, 3)` without a CLIP vision model: downsampled pixels `(N, F)`."""
    _, height, width, _ = pictures.shape
    channels = pictures[..., :3].permute(0, 3, 1, 2).float()  # (N, 3, H, W)
    size = (min(FEATURE_EDGE, height), min(FEATURE_EDGE, width))
    small = torch.nn.functional.adaptive_avg_pool2d(channels, size)  # (N, 3, h, w)
    return small.flatten(1)


def sweep_labels(sweep: Sweep) -> Sequence[str]:
    """Labels of the pictures."""
    middle = [f"stage {stage + 1}: {score:.0%}" for stage, score in enumerate(sweep.scores.tolist())]
    return ["without", *middle, "everywhere"]
