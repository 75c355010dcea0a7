"""Staged prompts: one prompt text, resolved for every denoising stage into what a denoiser encodes.

The grammar stands in stage_mention.py; weights and escapes are those of parts/part_prompt.py. Nothing here knows a text
encoder. Neighbouring stages that say the same are one stage. Letters: S stages, P learned vectors of a prompt, L cross-attention
layers, D width of a vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..denoiser import PromptPiece
from ..errors import BestiaryError
from ..name_search import choices_text, plain_name, shown_name
from ..parts.part_dictionary import PartDictionary
from ..parts.part_mention import PromptError
from ..parts.part_prompt import PartPrompt, TextSegment, resolve_prompt, weigh_segments
from .attribute_presets import DEFAULT_PRESETS, Presets, select_stages
from .prompt_spectrum import PromptSpectrum
from .stage_algebra import with_strength
from .stage_bounds import DEFAULT_STAGES, StageBounds
from .stage_mention import SpectrumMention, StagedMention, StagedMentions, find_edits, find_staged_mentions, masked

Override = str | int
"""Another prompt text for one stage, or the number (from 0) of a stage whose content stands there too."""


@dataclass(frozen=True, eq=False)
class StagePrompt:
    """What a prompt says at one stage."""

    pieces: tuple[PromptPiece, ...]
    """Text and places of learned vectors, for `Denoiser.tokenize`."""
    vectors: Tensor
    """`(P, D)` float32 in the order of the vector pieces, or `(L, P, D)` where layers differ."""
    bypass: Tensor | None = None
    """Like `vectors`: what is added to the text encoder's output for values (NeTI)."""

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for stages that say the same."""
        bypass = None if self.bypass is None else self.bypass.numpy().tobytes()
        return self.pieces, tuple(self.vectors.shape), self.vectors.numpy().tobytes(), bypass


@dataclass(frozen=True, eq=False)
class StagedPrompt:
    """A prompt, stage by stage."""

    bounds: StageBounds
    stages: tuple[StagePrompt, ...]
    """One per stage of `bounds`, in generation order."""

    @property
    def layers(self) -> int | None:
        """L where cross-attention layers are told different things, else None."""
        return next((stage.vectors.shape[0] for stage in self.stages if stage.vectors.ndim == 3), None)

    def distinct(self) -> tuple[tuple[StagePrompt, ...], tuple[int, ...]]:
        """The different contents, each once, and for every stage which of them it is: what has to be encoded."""
        known: dict[tuple[object, ...], int] = {}
        kept: list[StagePrompt] = []
        rows = []
        for stage in self.stages:
            if stage.key not in known:
                known[stage.key] = len(kept)
                kept.append(stage)
            rows.append(known[stage.key])
        return tuple(kept), tuple(rows)

    def merged(self) -> "StagedPrompt":
        """The same with neighbouring equal stages joined: fewer conditions, the same pictures."""
        kept = [0, *(s for s in range(1, len(self.stages)) if self.stages[s].key != self.stages[s - 1].key)]
        edges = (*(self.bounds.edges[stage] for stage in kept), 0)
        return StagedPrompt(StageBounds(edges), tuple(self.stages[stage] for stage in kept))


@dataclass(frozen=True)
class PromptSources:
    """What mentions are looked up in."""

    spectra: Mapping[str, PromptSpectrum] = field(default_factory=dict)
    """Name -> spectrum."""
    dictionaries: Mapping[str, PartDictionary] = field(default_factory=dict)
    """Name -> part dictionary."""
    presets: Presets = field(default_factory=lambda: dict(DEFAULT_PRESETS))
    """For parts on stages; spectra bring their own."""


def resolve_staged_prompt(
    text: str,
    sources: PromptSources,
    *,
    overrides: Mapping[int, Override] | None = None,
    bounds: StageBounds | None = None,
) -> StagedPrompt:
    """Look every mention up and say for each stage what stands in the prompt.

    Args:
        text: the prompt, see stage_mention.py.
        sources: spectra and part dictionaries by name, all of one base model.
        overrides: stage (of `bounds`, counted from 0) -> another text for it, or the stage whose content stands there too.
        bounds: stages that `overrides` and stage numbers of parts count in; None takes those of the first spectrum that
            the text names, else ten equal ones.

    Returns:
        Stages as fine as anything in the prompt asks for, equal neighbours joined.

    Raises:
        PromptError: a mention is malformed or names what does not exist; column, cause and choices are told.
        BestiaryError: an override for a stage that does not exist, or spectra of different base models.
    """
    _check_one_model(sources)
    overrides = dict(overrides or {})
    texts = [text, *(entry for entry in overrides.values() if isinstance(entry, str))]
    # every different text is taken apart once, however many stages it stands at
    readings = {one: _Reading(one, sources) for one in texts}
    bounds = bounds or readings[text].first_bounds() or StageBounds.equal(DEFAULT_STAGES)
    _check_overrides(overrides, bounds)
    # every place where anything may change
    finest = bounds
    for reading in readings.values():
        finest = reading.refine(finest)
    places = bounds.stages_of_finer(finest)
    stages = []
    for fine, place in enumerate(places):
        entry = overrides.get(place, text)
        if isinstance(entry, int):
            # an overridden stage is asked for what it would have said
            fine, entry = places.index(entry), text
        stages.append(readings[entry].at(fine, finest, bounds))
    return StagedPrompt(finest, tuple(stages)).merged()


def plain_staged_prompt(pieces: Sequence[PromptPiece], vectors: Tensor) -> StagedPrompt:
    """A prompt that says the same at every stage; vectors `(P, D)`."""
    return StagedPrompt(StageBounds.equal(1), (StagePrompt(tuple(pieces), vectors),))


def parse_stage_texts(
    text: str, bounds: StageBounds | None = None, presets: Presets = DEFAULT_PRESETS
) -> dict[int, Override]:
    """Overrides from lines such as `layout: a wide meadow`, `3-5: a red bird` or `10: =4` (what stage 4 says).

    Later lines win; empty lines are passed over.

    Raises:
        BestiaryError: a line has no colon, or names stages that do not exist.
    """
    bounds = bounds or StageBounds.equal(DEFAULT_STAGES)
    found: dict[int, Override] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        selection, colon, content = line.partition(":")
        if not colon:
            raise BestiaryError(
                f"line {number}, {shown_name(line)}: write stages, a colon and a text, such as 1-3: a dog"
            )
        content = content.strip()
        try:
            entry: Override = content
            # "=4" means what stage 4 says, whatever that is
            if content.startswith("="):
                entry = select_stages(content[1:].strip(), bounds, presets)[0]
            found |= dict.fromkeys(select_stages(selection, bounds, presets), entry)
        except BestiaryError as fault:
            raise BestiaryError(f"line {number}: {fault}") from fault
    return found


class _Reading:
    """One prompt text, taken apart and looked up once."""

    def __init__(self, text: str, sources: PromptSources) -> None:
        self.text, self.sources = text, sources
        self.mentions: StagedMentions = find_staged_mentions(text)
        self.edits = find_edits(text, self.mentions)
        # looked up now, at the columns of the whole text, whether or not a stage shows them
        self.spectra: dict[int, PromptSpectrum] = {}
        self.part_vectors: dict[int, Tensor] = {}
        for start, (_, mention) in self.mentions.items():
            if isinstance(mention, SpectrumMention):
                self.spectra[start] = _find_spectrum(mention, sources)
            else:
                self.part_vectors[start] = resolve_prompt(PartPrompt((mention,)), sources.dictionaries).vectors

    def first_bounds(self) -> StageBounds | None:
        """Stages of the first spectrum named."""
        return next((spectrum.bounds for spectrum in self.spectra.values()), None)

    def refine(self, bounds: StageBounds) -> StageBounds:
        """`bounds` with an edge wherever this text may change."""
        for spectrum in self.spectra.values():
            bounds = bounds.refined_by(spectrum.bounds)
        shares = sorted({edit.share for edit in self.edits if 0 < edit.share < 1})
        return bounds.refined_by(StageBounds.from_fractions(shares, bounds.num_timesteps)) if shares else bounds

    def at(self, stage: int, finest: StageBounds, bounds: StageBounds) -> StagePrompt:
        """What stands here at a stage of `finest`; `bounds` is what stage numbers of parts count in."""
        text = masked(self.text, self.edits, finest.fractions[stage])
        # a mention that an edit takes away is blanked like other text
        shown = {start: found for start, found in self.mentions.items() if text[start] == "<"}
        pieces: list[PromptPiece] = []
        vectors: list[Tensor] = []
        bypass: list[Tensor | None] = []
        for segment in weigh_segments(text, shown):
            if isinstance(segment, TextSegment):
                pieces.append(PromptPiece(segment.text.replace("\0", ""), segment.weight))
                continue
            content, extra = self._content(segment, stage, finest, bounds)
            if isinstance(content, str):
                pieces += [PromptPiece(content, segment.weight)] if content else []
                continue
            pieces += PromptPiece.word(content.shape[-2], segment.weight)
            vectors.append(content)
            bypass.append(extra)
        return StagePrompt(_joined(pieces), *self._stacked(vectors, bypass))

    def _content(
        self, mention: StagedMention, stage: int, finest: StageBounds, bounds: StageBounds
    ) -> tuple[Tensor | str, Tensor | None]:
        """Vectors `(n, D)` or `(L, n, D)`, or words, of a mention at a stage; and its bypass vectors if any."""
        start = mention.column - 1
        spectrum = self.spectra.get(start)
        own = bounds if spectrum is None else spectrum.bounds
        place = own.stages_of_finer(finest)[stage]
        # stages of a spectrum count in its own bounds, those of parts in the prompt's
        if mention.stages is not None:
            presets = self.sources.presets if spectrum is None else spectrum.presets
            try:
                chosen = select_stages(mention.stages, own, presets)
            except BestiaryError as fault:
                raise PromptError(mention.column, str(fault)) from fault
            if place not in chosen:
                return mention.otherwise, None
        if spectrum is None:
            return self.part_vectors[start], None
        # a spectrum may have words at a stage in place of vectors
        if place in spectrum.words:
            return spectrum.words[place], None
        bypass = spectrum.bypass_matrix()
        count = spectrum.count(place)
        return spectrum.stage_vectors(place), None if bypass is None else bypass[place][..., :count, :]

    def _stacked(self, vectors: list[Tensor], bypass: list[Tensor | None]) -> tuple[Tensor, Tensor | None]:
        """All vectors of a stage side by side, `(P, D)` or `(L, P, D)`."""
        if not vectors:
            return torch.zeros(0, self._width()), None
        # as many layers as the spectrum with layers has; None where no vector knows of layers
        layers = max((one.shape[0] for one in vectors if one.ndim == 3), default=None)
        # parts and single-layer spectra are the same on every layer
        same = [one if layers is None or one.ndim == 3 else one.expand(layers, -1, -1) for one in vectors]
        extra = None
        if any(one is not None for one in bypass):
            silent = [torch.zeros_like(one) for one in same]
            extra = torch.cat([s if b is None else b.expand_as(s) for b, s in zip(bypass, silent, strict=True)], dim=-2)
        return torch.cat(same, dim=-2).contiguous(), None if extra is None else extra.contiguous()

    def _width(self) -> int:
        sources = (*self.sources.spectra.values(), *self.sources.dictionaries.values())
        return sources[0].vector_width if sources else 0


def _joined(pieces: Sequence[PromptPiece]) -> tuple[PromptPiece, ...]:
    """Neighbouring texts of equal weight as one, so that words in a spectrum's place read like words typed there."""
    joined: list[PromptPiece] = []
    for piece in pieces:
        if piece.text == "":
            continue
        last = joined[-1] if joined else None
        # vectors are never joined: None stands for one
        if last is not None and None not in (last.text, piece.text) and last.weight == piece.weight:
            joined[-1] = PromptPiece(last.text + piece.text, piece.weight)
        else:
            joined.append(piece)
    return tuple(joined)


def _find_spectrum(mention: SpectrumMention, sources: PromptSources) -> PromptSpectrum:
    """The spectrum a mention names, at the strength it asks for."""
    # names are compared in their plain form, as people type them
    names = [name for name in sources.spectra if plain_name(name) == plain_name(mention.name)]
    if not names:
        if not sources.spectra:
            cause = f"<{mention.name[:40]}> names a spectrum, but none is loaded: load it, or write \\< for a plain <"
        else:
            cause = f"unknown spectrum {shown_name(mention.name)}: choose {choices_text(mention.name, list(sources.spectra))}"
        raise PromptError(mention.column, cause)
    spectrum = sources.spectra[names[0]]
    try:
        return with_strength(spectrum, mention.strength)
    except BestiaryError as fault:
        raise PromptError(mention.column, str(fault)) from fault


def _check_one_model(sources: PromptSources) -> None:
    owners = {**sources.spectra, **sources.dictionaries}
    widths = {name: (one.backbone, one.vector_width) for name, one in owners.items()}
    if len(set(widths.values())) > 1:
        raise BestiaryError(f"spectra and dictionaries of different base models cannot share a prompt: {widths}")


def _check_overrides(overrides: Mapping[int, Override], bounds: StageBounds) -> None:
    asked = [*overrides, *(entry for entry in overrides.values() if isinstance(entry, int))]
    strange = [stage for stage in asked if stage not in range(bounds.stages)]
    if strange:
        raise BestiaryError(f"text for stage {strange[0] + 1}: there are stages 1 to {bounds.stages}")
