"""Parses, resolves and encodes typed texts with spectra, parts and stage lines, for the positive and negative side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ...concepts.errors import BestiaryError
from ...concepts.name_search import NameIndex, same_name, shown_name
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ...concepts.part_prompt.mention_writing import written_kinds
from ...concepts.part_prompt.part_mention import PartMention, unescaped
from ...concepts.part_prompt.part_prompt import PartPrompt, resolve_prompt
from ...concepts.spectrum.attribute_presets import DEFAULT_PRESETS, PRESET_CLOCKS
from ...concepts.spectrum.prompt_spectrum import PromptSpectrum
from ...concepts.spectrum.stage_algebra import common_shift, with_strength
from ...concepts.spectrum.stage_bounds import DEFAULT_STAGES, StageBounds
from ...concepts.spectrum.stage_claims import require_all_stages, stage_lines, typed_presets
from ...concepts.spectrum.stage_mention import SpectrumMention, StagedMention, find_edits, find_staged_mentions
from ...concepts.spectrum.staged_prompt import (
    Override,
    PromptSources,
    resolve_staged_prompt,
)
from ..denoiser.model_backbone import check_backbone, is_flow_clip, missing_notice
from ..host.comfy_objects import Conditioning
from ..host.socket_types import NamedSpectrum
from .flow_stages import ANY_SHIFT, negative_notice, presets_by, shift_notice
from .plain_embeddings import warn_of_misread
from .spectrum_files import check_spectrum_widths
from .stage_ranges import StageTiming, stage_percents
from .staged_encoding import StagedSide, VectorNames, encode_sides, plain_form, written_pieces

if TYPE_CHECKING:
    from comfy.sd import CLIP


@dataclass(frozen=True)
class TypedSide:
    """Typed text of the positive or negative side."""

    text: str
    stage_lines: str = ""
    """Lines such as `layout: a wide meadow`, which replace the text at their stages."""


@dataclass(frozen=True)
class PromptOptions:
    """Options common to both sides."""

    stages: int = DEFAULT_STAGES
    """Number of stages of a side without a spectrum."""
    presets: str = ""
    """Presets as typed; empty uses those of the first spectrum in the prompt, else the defaults."""
    timing: StageTiming = field(default_factory=StageTiming)
    filler: bool = True
    with_hooks: bool = True
    """See `encode_sides`."""
    presets_by: str = PRESET_CLOCKS[0]
    """What default presets divide where the MODEL predicts a flow: time, or noise."""


def spectra_by_name(linked: Sequence[NamedSpectrum | None]) -> dict[str, PromptSpectrum]:
    """The linked spectra by their name in prompts.

    Raises:
        BestiaryError: two of them have the same name.
    """
    found: dict[str, PromptSpectrum] = {}
    for named in (one for one in linked if one is not None):
        if same_name(named.name, found):
            raise BestiaryError(
                f"two connected spectra are named {shown_name(named.name)}: give one of them another name in its loader"
            )
        found[named.name] = named.spectrum
    return found


def encode_typed_sides(
    clip: CLIP, sides: Sequence[TypedSide], sources: PromptSources, options: PromptOptions
) -> tuple[list[Conditioning], str]:
    """Conditionings of the sides, encoded together, and a table of the texts of each stage of the first side.

    Raises:
        PromptError: a mention is malformed or unknown; the message gives the column.
        BestiaryError: a spectrum, part, stage or clock does not match; the message gives cause and choices.
    """
    if clip is None:
        raise BestiaryError("the CLIP input is empty: this checkpoint contains no text encoder; load one separately")
    # before encoding, where a wrong width would fail inside the text encoder
    for name, spectrum in sources.spectra.items():
        check_spectrum_widths(name, spectrum, clip)
    for name, dictionary in sources.dictionaries.items():
        check_backbone(dictionary, name, None, clip)
    if options.timing.model is None and is_flow_clip(clip):
        options = replace(options, timing=replace(options.timing, assumed=ANY_SHIFT))
    read = [read_side(side, sources, options) for side in sides]
    notices = [
        warn_of_misread(text for side in sides for text in (side.text, side.stage_lines)),
        shift_notice(next((side.prompt.shift for side in read if side.prompt.shift), None), options.timing),
        negative_notice(read, clip),
        missing_notice(clip) if sources.spectra or sources.dictionaries else None,
    ]
    report = "\n".join([stage_report(read[0]), *filter(None, notices)])
    return encode_sides(clip, read, filler=options.filler, with_hooks=options.with_hooks), report


def encode_stage_lines(
    clip: CLIP, lines: str, text: str, options: PromptOptions, dictionaries: Mapping[str, PartDictionary]
) -> tuple[Conditioning, str]:
    """A conditioning with a text per stage, and a table of the texts; `text` is used at all other stages.

    Raises:
        BestiaryError: an invalid line, stages that are assigned twice, or stages without text.
    """
    sources = PromptSources({}, dictionaries)
    if not text.strip():
        bounds = StageBounds.equal(options.stages)
        # without a base text every stage needs its own line
        require_all_stages(stage_lines(lines, bounds, typed_presets(options.presets, bounds, DEFAULT_PRESETS)), bounds)
    (conditioning,), report = encode_typed_sides(clip, [TypedSide(text, lines)], sources, options)
    return conditioning, report


def read_side(side: TypedSide, sources: PromptSources, options: PromptOptions) -> StagedSide:
    """A typed side with resolved mentions and stage boundaries; for errors see `encode_typed_sides`."""
    mentions = find_staged_mentions(side.text)
    named = _first_spectrum(mentions, sources)
    bounds = StageBounds.equal(options.stages) if named is None else named.bounds
    shift = common_shift(list(sources.spectra.values()))
    own = DEFAULT_PRESETS if named is None else named.presets
    presets = typed_presets(options.presets, bounds, presets_by(options.presets_by, own, shift, options.timing.model))
    overrides = stage_lines(side.stage_lines, bounds, presets)
    typed = presets if options.presets.strip() or presets is not own else {}
    sources = PromptSources(sources.spectra, sources.dictionaries, presets, typed)
    prompt = resolve_staged_prompt(side.text, sources, overrides=overrides, bounds=bounds)
    timing = options.timing
    shift = timing.assumed if prompt.shift is None else prompt.shift
    percents = stage_percents(prompt.bounds, timing.clock, timing.model, timing.sigmas, shift)
    # plain texts take ComfyUI's own encoding, which keeps their results bit-identical
    is_plain = not mentions and not overrides and not find_edits(side.text, mentions)
    plain = plain_form(side.text) if is_plain else None
    return StagedSide(prompt, percents, _vector_names(side.text, overrides, sources), plain)


def stage_report(side: StagedSide) -> str:
    """The text of every stage, one line each."""
    lines = []
    bounds = side.prompt.bounds
    for number, stage in enumerate(side.prompt.stages):
        vectors = stage.vectors if stage.vectors.ndim == 2 else stage.vectors[0]  # (P, D)
        text, _ = written_pieces(stage.pieces, vectors, side.names)
        first, last = (f"{100 * share:.4g}" for share in bounds.fractions[number : number + 2])
        silent = "" if side.percents[number] < side.percents[number + 1] else " (no step falls into it)"
        lines.append(f"{first}-{last} %{silent}: {text.strip() or '(nothing)'}")
    return "\n".join(lines)


def _first_spectrum(mentions: Mapping[int, tuple[int, StagedMention]], sources: PromptSources) -> PromptSpectrum | None:
    names = NameIndex(sources.spectra.items())
    typed = (mention.name for _, mention in mentions.values() if isinstance(mention, SpectrumMention))
    return next((spectrum for name in typed for spectrum in names.find(name)), None)


def _vector_names(text: str, overrides: Mapping[int, Override], sources: PromptSources) -> VectorNames:
    """Labels of all vectors of mentions in the texts, which were already resolved without errors."""
    names: dict[bytes, tuple[str, str]] = {}
    spectra = NameIndex((name, name) for name in sources.spectra)
    texts = dict.fromkeys([text, *(entry for entry in overrides.values() if isinstance(entry, str))])
    mentions = [mention for one in texts for _, mention in find_staged_mentions(one).values()]
    # every distinct mention once
    parts = {(one.target, one.kinds): one for one in mentions if isinstance(one, PartMention)}
    names |= _part_labels(list(parts.values()), sources.dictionaries)
    named = {(spectra.find(one.name)[0], one.strength) for one in mentions if isinstance(one, SpectrumMention)}
    for name, strength in named:
        rows = with_strength(sources.spectra[name], strength).matrix().flatten(0, -2)  # (S * [L *] V, D)
        names |= {row.numpy().tobytes(): (name, name) for row in rows}
    return names


def _part_labels(
    mentions: Sequence[PartMention], dictionaries: Mapping[str, PartDictionary]
) -> dict[bytes, tuple[str, str]]:
    """Label and name of parts by their vectors `(D,)`."""
    resolved = resolve_prompt(PartPrompt(tuple(mentions)), dictionaries)
    labels: dict[bytes, tuple[str, str]] = {}
    for numbers, vector in zip(resolved.mentions, resolved.vectors, strict=True):
        owner = dictionaries[numbers.dictionary]
        name = owner.part_names[numbers.part]
        label = f"{name}:{unescaped(written_kinds(owner, numbers.part, numbers.kinds))}"
        labels[vector.numpy().tobytes()] = (label, name)
    return labels
