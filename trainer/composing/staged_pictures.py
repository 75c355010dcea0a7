"""Pictures from prompts that differ between denoising stages: spectra, parts on stages, edits, texts per stage."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from ...concepts.denoiser.denoiser import chunks_of
from ...concepts.errors import BestiaryError
from ...concepts.files.concept_file import SPECTRUM_KIND, read_header
from ...concepts.files.concept_names import name_of_file
from ...concepts.files.text_file import read_text
from ...concepts.name_search import choices_text, same_name, shown_name
from ...concepts.spectrum.attribute_presets import DEFAULT_PRESETS, Presets, parse_presets, stages_text
from ...concepts.spectrum.prompt_spectrum import PromptSpectrum, check_spectrum_backbone
from ...concepts.spectrum.spectrum_file import load_spectrum
from ...concepts.spectrum.stage_algebra import merge_by_attribute
from ...concepts.spectrum.stage_bounds import StageBounds
from ...concepts.spectrum.staged_conditioning import encode_staged
from ...concepts.spectrum.staged_prompt import Override, PromptSources, StagedPrompt, resolve_staged_prompt
from ..model.sampling import SamplingDenoiser, pictures_at_once, sample_images, sampler_of
from .picture_making import Picture, PictureOrder, SamplingChoice, check_backbone, enter_prompts

logger = logging.getLogger("bestiary")
Concept = TypeVar("Concept")
MIX_NAME = "mix"
"""Name in prompts of the concept that is mixed from several references."""


def is_staged(prompts: Sequence[str], sources: PromptSources, overrides: Mapping[int, Override] | None = None) -> bool:
    """True if prompts may differ between stages; other prompts take the path without stages."""
    return bool(sources.spectra or overrides) or any(mark in prompt for prompt in prompts for mark in "@[")


def make_staged_pictures(
    denoiser: SamplingDenoiser,
    sources: PromptSources,
    orders: Sequence[PictureOrder],
    choice: SamplingChoice,
    *,
    overrides: Mapping[int, Override] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_picture: Callable[[int, Picture], None] | None = None,
) -> list[Picture]:
    """Generate all ordered pictures in batches, with as many model evaluations as prompts without stages need.

    All prompts are resolved before sampling starts, so that an error costs no time. `overrides` apply to the positive
    prompts only. `on_picture` is called with the index in `orders` and the picture as soon as it is finished.

    Raises:
        BestiaryError: a prompt is wrong (column, cause and valid choices), or a concept is for another backbone.
    """
    # all errors of the input surface before the first picture is sampled
    for name, dictionary in sources.dictionaries.items():
        check_backbone(name, dictionary, denoiser)
    for name, spectrum in sources.spectra.items():
        check_spectrum_backbone(name, spectrum, denoiser.backbone)
    enter_prompts(denoiser, {**sources.dictionaries, **sources.spectra})
    positives = [resolve_staged_prompt(order.prompt, sources, overrides=overrides) for order in orders]
    negatives = [resolve_staged_prompt(order.negative, sources) for order in orders]
    _check_negatives(denoiser, negatives, choice)
    _warn_of_unreached(denoiser, positives, choice)
    # `report` binds its batch through defaults: a closure would see the loop's last values
    pictures: dict[int, Picture] = {}
    for rows in _alike(denoiser, positives, negatives, pictures_at_once(denoiser, choice.size)):
        before = len(pictures)

        def report(done: int, steps: int, before: int = before, count: int = len(rows)) -> None:
            if on_progress is not None:
                on_progress(before * steps + count * done, len(orders) * steps)

        with torch.no_grad():
            sampled = sample_images(
                denoiser,
                encode_staged(denoiser, [positives[row] for row in rows]),
                encode_staged(denoiser, [negatives[row] for row in rows]),
                seeds=[orders[row].seed for row in rows],
                steps=choice.steps,
                guidance=choice.guidance,
                size=choice.size,
                sampler=choice.sampler,
                on_step=report,
            )
        for place, row in enumerate(rows):
            pictures[row] = Picture(orders[row], sampled.images[place], (), None)
            if on_picture is not None:
                on_picture(row, pictures[row])
    return [pictures[row] for row in range(len(orders))]


def _check_negatives(denoiser: SamplingDenoiser, negatives: Sequence[StagedPrompt], choice: SamplingChoice) -> None:
    """Raise BestiaryError for negative prompts that change by stage where no negative prompt has an effect."""
    if (choice.guidance > 1 and not denoiser.is_guided) or all(len(prompt.distinct()[0]) == 1 for prompt in negatives):
        return
    cause = (
        f"{denoiser.backbone.name} takes guidance as a number"
        if denoiser.is_guided
        else f"--guidance is {choice.guidance:g}"
    )
    raise BestiaryError(
        f"the negative prompt says something else at some stages, but {cause}, so that it has no effect: leave it out"
        + ("" if denoiser.is_guided else ", or choose a guidance above 1")
    )


def unreached_stages(bounds: StageBounds, timesteps: Sequence[float]) -> tuple[int, ...]:
    """Stages, counted from 0, that contain none of a sampler's timesteps."""
    return tuple(stage for stage, count in enumerate(bounds.steps_per_stage(timesteps)) if not count)


def _warn_of_unreached(denoiser: SamplingDenoiser, prompts: Sequence[StagedPrompt], choice: SamplingChoice) -> None:
    """Warn about stages of a prompt that no step reaches, whose text has no effect."""
    scheduler = sampler_of(denoiser, choice.sampler)
    scheduler.set_timesteps(choice.steps)
    timesteps = [float(timestep) for timestep in scheduler.timesteps]
    # one warning per distinct set of bounds, not per prompt
    for bounds in dict.fromkeys(prompt.bounds for prompt in prompts):
        if missed := unreached_stages(bounds, timesteps):
            logger.warning(
                "%d steps of %s never reach stage %s of %d: use more steps", choice.steps, choice.sampler,
                stages_text(missed), bounds.stages,
            )  # fmt: skip


def _alike(
    denoiser: SamplingDenoiser,
    positives: Sequence[StagedPrompt],
    negatives: Sequence[StagedPrompt],
    at_once: int,
) -> Iterator[list[int]]:
    """Rows that may share a batch: prompts with different numbers of chunks are not padded to each other's length."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, pair in enumerate(zip(positives, negatives, strict=True)):
        # the longest stage determines the length of a staged prompt
        chunks = tuple(
            max(chunks_of(denoiser.text.tokenize(stage.pieces)) for stage in prompt.distinct()[0]) for prompt in pair
        )
        groups.setdefault(chunks, []).append(row)
    for rows in groups.values():
        for start in range(0, len(rows), at_once):
            yield rows[start : start + at_once]


def split_concepts(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Files of dictionaries, and files of spectra; other files count as dictionaries, whose loader rejects them."""
    spectra = [path for path in paths if read_header(path).kind == SPECTRUM_KIND]
    return [path for path in paths if path not in spectra], spectra


def load_spectra(paths: Sequence[Path]) -> dict[str, PromptSpectrum]:
    """Spectra by their name in prompts, which is the file name without its suffixes.

    Raises:
        BestiaryError: a file is not a spectrum, or two have the same name.
    """
    return load_by_name(paths, load_spectrum, "spectra")


def load_by_name(paths: Sequence[Path], load: Callable[[Path], Concept], kind: str) -> dict[str, Concept]:
    """Concepts by their name in prompts, which is the file name without its suffixes.

    Raises:
        BestiaryError: two have the same name; `kind` says what they are, in the plural.
    """
    concepts: dict[str, Concept] = {}
    for path in paths:
        name = name_of_file(path.name)
        if same_name(name, concepts):
            raise BestiaryError(f"two {kind} are named {name!r}: rename one file, so that prompts can distinguish them")
        concepts[name] = load(path)
    return concepts


def mix_spectra(
    spectra: Mapping[str, PromptSpectrum], mix: Mapping[str, str], presets: Presets = DEFAULT_PRESETS
) -> PromptSpectrum:
    """One concept mixed by attribute from named spectra.

    Raises:
        BestiaryError: an attribute without a preset, or an unknown spectrum; the message lists the valid ones.
    """
    found = {}
    for attribute, wanted in mix.items():
        named = same_name(wanted, spectra)
        if named is None:
            remedy = (
                f"choose {choices_text(wanted, list(spectra))}" if spectra else "none is loaded, add one with --with"
            )
            raise BestiaryError(f"{attribute}: no spectrum is named {shown_name(wanted)}: {remedy}")
        found[attribute] = spectra[named]
    return merge_by_attribute(found, presets)


def read_presets(path: Path | None) -> Presets:
    """Attribute presets of a text file, or the defaults.

    Raises:
        BestiaryError: it cannot be read, or a line is not a valid preset.
    """
    if path is None:
        return DEFAULT_PRESETS
    try:
        text = read_text(path)
    except BestiaryError as fault:
        raise BestiaryError(f"cannot read the presets in {path}: {fault}") from fault
    try:
        return parse_presets(text)
    except BestiaryError as fault:
        raise BestiaryError(f"{path}: {fault}") from fault
