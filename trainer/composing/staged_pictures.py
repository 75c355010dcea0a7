"""Pictures from prompts that say different things at different stages: spectra, parts on stages, edits, texts per stage."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

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
from ..model.sampling import SamplingDenoiser, build_sampler, pictures_at_once, sample_images
from .picture_making import Picture, PictureOrder, SamplingChoice, check_backbone

logger = logging.getLogger("bestiary")
MIX_NAME = "mix"
"""How prompts call the concept that is mixed from several references."""


def is_staged(prompts: Sequence[str], sources: PromptSources, overrides: Mapping[int, Override] | None = None) -> bool:
    """Whether prompts may say different things at different stages; others are made without stages, as before."""
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
    """Make every picture ordered, several at a time, with as many model evaluations as prompts without stages take.

    All prompts are resolved before the first picture is made, so that a fault costs nothing. `overrides` go to the prompts,
    not to the negative ones, which have a grammar of their own but no such list. `on_picture` is called with the place in
    `orders` and the picture as soon as it is made.

    Raises:
        BestiaryError: a prompt is wrong (column, cause and valid choices), or a concept is for another backbone.
    """
    # everything that can be wrong is found before the first picture
    for name, dictionary in sources.dictionaries.items():
        check_backbone(name, dictionary, denoiser)
    for name, spectrum in sources.spectra.items():
        check_spectrum_backbone(name, spectrum, denoiser.backbone)
    positives = [resolve_staged_prompt(order.prompt, sources, overrides=overrides) for order in orders]
    negatives = [resolve_staged_prompt(order.negative, sources) for order in orders]
    _warn_of_unreached(denoiser, positives, choice)
    # prompts of one length share batches; every picture keeps its place in the order
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


def unreached_stages(bounds: StageBounds, timesteps: Sequence[float]) -> tuple[int, ...]:
    """Stages, counted from 0, into which none of a sampler's timesteps falls."""
    return tuple(stage for stage, count in enumerate(bounds.steps_per_stage(timesteps)) if not count)


def _warn_of_unreached(denoiser: SamplingDenoiser, prompts: Sequence[StagedPrompt], choice: SamplingChoice) -> None:
    """Say which stages of a prompt no step will reach: what stands there has no effect."""
    scheduler = build_sampler(choice.sampler, denoiser.scheduler_config)
    scheduler.set_timesteps(choice.steps)
    timesteps = [float(timestep) for timestep in scheduler.timesteps]
    # once for every different set of stages
    for bounds in dict.fromkeys(prompt.bounds for prompt in prompts):
        if missed := unreached_stages(bounds, timesteps):
            logger.warning(
                "%d steps of %s never reach stage %s of %d: take more steps", choice.steps, choice.sampler,
                stages_text(missed), bounds.stages,
            )  # fmt: skip


def _alike(
    denoiser: SamplingDenoiser,
    positives: Sequence[StagedPrompt],
    negatives: Sequence[StagedPrompt],
    at_once: int,
) -> Iterator[list[int]]:
    """Rows that may share a batch: prompts of different numbers of chunks are not filled up to each other's length."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, pair in enumerate(zip(positives, negatives, strict=True)):
        # of a staged prompt the longest stage decides
        chunks = tuple(
            max(chunks_of(denoiser.text.tokenize(stage.pieces)) for stage in prompt.distinct()[0]) for prompt in pair
        )
        groups.setdefault(chunks, []).append(row)
    for rows in groups.values():
        for start in range(0, len(rows), at_once):
            yield rows[start : start + at_once]


def split_concepts(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Files of dictionaries, and files of spectra; what is neither counts as a dictionary and is refused there."""
    spectra = [path for path in paths if read_header(path).kind == SPECTRUM_KIND]
    return [path for path in paths if path not in spectra], spectra


def load_spectra(paths: Sequence[Path]) -> dict[str, PromptSpectrum]:
    """Spectra by the name prompts call them: the file's name without its endings.

    Raises:
        BestiaryError: a file is no spectrum, or two have the same name.
    """
    spectra: dict[str, PromptSpectrum] = {}
    for path in paths:
        name = name_of_file(path.name)
        if same_name(name, spectra):
            raise BestiaryError(f"two spectra are named {name!r}: rename one file, so that prompts can tell them apart")
        spectra[name] = load_spectrum(path)
    return spectra


def mix_spectra(
    spectra: Mapping[str, PromptSpectrum], mix: Mapping[str, str], presets: Presets = DEFAULT_PRESETS
) -> PromptSpectrum:
    """One concept mixed by attribute from spectra by their names.

    Raises:
        BestiaryError: an attribute has no preset, or a name is no spectrum; the message lists those there are.
    """
    found = {}
    for attribute, wanted in mix.items():
        named = same_name(wanted, spectra)
        if named is None:
            known = choices_text(wanted, list(spectra)) if spectra else "none is loaded"
            raise BestiaryError(f"{attribute}: no spectrum is called {shown_name(wanted)}: choose {known}")
        found[attribute] = spectra[named]
    return merge_by_attribute(found, presets)


def read_presets(path: Path | None) -> Presets:
    """Attribute presets of a text file, or the defaults.

    Raises:
        BestiaryError: it cannot be read, or a line is no preset.
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
