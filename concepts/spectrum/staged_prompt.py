"""Staged prompts: one prompt text, resolved for every denoising stage into what a denoiser encodes.

The grammar stands in stage_mention.py; weights and escapes are those of part_prompt/part_prompt.py. Nothing here knows a text
encoder. Neighbouring stages with the same content are merged. Letters: S stages, P learned vectors of a prompt, L cross-attention
layers, D width of a vector.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..denoiser.denoiser import PromptPiece
from ..errors import BestiaryError
from ..name_search import choices_text, same_name, shown_name
from ..part_dictionary.part_dictionary import PartDictionary
from ..part_prompt.part_mention import PromptError
from ..part_prompt.part_prompt import PartPrompt, TextSegment, resolve_prompt, weigh_segments
from .attribute_presets import DEFAULT_PRESETS, Presets, select_stages
from .prompt_spectrum import PromptSpectrum
from .stage_algebra import common_shift, with_strength
from .stage_bounds import DEFAULT_STAGES, StageBounds
from .stage_mention import SpectrumMention, StagedMention, StagedMentions, find_edits, find_staged_mentions, masked

MOST_LETTERS = 2_000_000
"""Maximum characters of a prompt times its different stage contents, such as 100,000 characters and 20 contents."""
MOST_NUMBERS = 1 << 24
"""Maximum numbers in the learned vectors of all stages of a prompt, 64 MiB."""
MOST_STRENGTHS = 256
"""Maximum number of different spectra, or strengths of one, in a prompt."""

Override = str | int
"""Another prompt text for one stage, or the number (from 0) of a stage to copy the content from."""


@dataclass(frozen=True, eq=False)
class StagePrompt:
    """Content of a prompt at one stage."""

    pieces: tuple[PromptPiece, ...]
    """Text and places of learned vectors, for `Denoiser.tokenize`."""
    vectors: Tensor
    """`(P, D)` float32 in the order of the vector pieces, or `(L, P, D)` where layers differ."""
    bypass: Tensor | None = None
    """Like `vectors`, added to the output of the text encoder for the attention values (NeTI)."""

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for stages with the same content."""
        bypass = None if self.bypass is None else self.bypass.numpy().tobytes()
        return self.pieces, tuple(self.vectors.shape), self.vectors.numpy().tobytes(), bypass


@dataclass(frozen=True, eq=False)
class StagedPrompt:
    """A prompt, stage by stage."""

    bounds: StageBounds
    stages: tuple[StagePrompt, ...]
    """One per stage of `bounds`, in generation order."""
    shift: float | None = None
    """Shift of the flow model at which the prompt's spectra were learned; None where none is known."""

    @property
    def layers(self) -> int | None:
        """L if the cross-attention layers have different vectors, otherwise None."""
        return next((stage.vectors.shape[0] for stage in self.stages if stage.vectors.ndim == 3), None)

    def distinct(self) -> tuple[tuple[StagePrompt, ...], tuple[int, ...]]:
        """The different contents to encode, each once, and for every stage the index of its content."""
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
        """The prompt with equal neighbouring stages merged: fewer conditions, the same pictures."""
        kept = [0, *(late for late in range(1, len(self.stages)) if not self._same(late - 1, late))]
        edges = (*(self.bounds.edges[stage] for stage in kept), 0)
        return replace(self, bounds=StageBounds(edges), stages=tuple(self.stages[stage] for stage in kept))

    def _same(self, first: int, second: int) -> bool:
        one, other = self.stages[first], self.stages[second]
        return one is other or one.key == other.key


@dataclass(frozen=True)
class PromptSources:
    """Spectra, dictionaries and presets to which mentions refer."""

    spectra: Mapping[str, PromptSpectrum] = field(default_factory=dict)
    """Name -> spectrum."""
    dictionaries: Mapping[str, PartDictionary] = field(default_factory=dict)
    """Name -> part dictionary."""
    presets: Presets = field(default_factory=lambda: dict(DEFAULT_PRESETS))
    """For parts on stages; spectra have their own."""
    typed: Presets = field(default_factory=dict)
    """Attributes typed by the user for this prompt, with precedence over those of the spectra."""


def resolve_staged_prompt(
    text: str,
    sources: PromptSources,
    *,
    overrides: Mapping[int, Override] | None = None,
    bounds: StageBounds | None = None,
) -> StagedPrompt:
    """Resolve all mentions and return the content of the prompt for each stage.

    Args:
        text: the prompt, see stage_mention.py.
        sources: spectra and part dictionaries by name, all of one base model.
        overrides: stage (of `bounds`, counted from 0) -> another text for it, or the stage to copy the content from.
        bounds: stages to which `overrides` and stage numbers of parts refer; None takes those of the first spectrum in the
            text, otherwise ten equal ones.

    Returns:
        The finest stages that occur in the prompt, with equal neighbours merged.

    Raises:
        PromptError: a mention is malformed or its target does not exist; the message gives column, cause and choices.
        BestiaryError: an override for a stage that does not exist, spectra of different base models, or a prompt beyond
            `MOST_LETTERS` or `MOST_NUMBERS`.
    """
    _check_one_model(sources)
    overrides = dict(overrides or {})
    texts = [text, *(entry for entry in overrides.values() if isinstance(entry, str))]
    # parse every different text only once, however many stages use it
    budget = _Budget()
    readings = {one: _Reading(one, sources, budget) for one in texts}
    bounds = bounds or readings[text].first_bounds() or StageBounds.equal(DEFAULT_STAGES)
    _check_overrides(overrides, bounds)
    # boundaries at all places where the content may change
    finest = bounds
    for reading in readings.values():
        finest = reading.refine(finest)
    places = bounds.stages_of_finer(finest)
    stages = []
    for fine, place in enumerate(places):
        entry = overrides.get(place, text)
        if isinstance(entry, int):
            # "=4" copies stage 4 of the prompt itself, even if stage 4 is overridden as well
            fine, entry = places.index(entry), text
        stages.append(readings[entry].at(fine, finest, bounds))
    return StagedPrompt(finest, tuple(stages), common_shift(list(sources.spectra.values()))).merged()


def plain_staged_prompt(pieces: Sequence[PromptPiece], vectors: Tensor) -> StagedPrompt:
    """A prompt with the same content at every stage; vectors `(P, D)`."""
    return StagedPrompt(StageBounds.equal(1), (StagePrompt(tuple(pieces), vectors),))


def parse_stage_texts(
    text: str, bounds: StageBounds | None = None, presets: Presets = DEFAULT_PRESETS, *, first_line: int = 1
) -> dict[int, Override]:
    """Overrides from lines such as `layout: a wide meadow`, `3-5: a red bird` or `10: =4` (the content of stage 4).

    Later lines take precedence; empty lines are ignored. Messages count lines from `first_line`.

    Raises:
        BestiaryError: a line has no colon, or names stages that do not exist, or attributes that contain no stage.
    """
    bounds = bounds or StageBounds.equal(DEFAULT_STAGES)
    found: dict[int, Override] = {}
    for number, line in enumerate(text.splitlines(), start=first_line):
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
            # "=4" copies stage 4 of the prompt
            if content.startswith("="):
                entry = _some_stages(content[1:].strip(), bounds, presets)[0]
            found |= dict.fromkeys(_some_stages(selection, bounds, presets), entry)
        except BestiaryError as fault:
            raise BestiaryError(f"line {number}: {fault}") from fault
    return found


def _some_stages(selection: str, bounds: StageBounds, presets: Presets) -> tuple[int, ...]:
    stages = select_stages(selection, bounds, presets)
    if not stages:
        raise BestiaryError(
            f"{shown_name(selection.strip())} selects no stage: none of the {bounds.stages} stages has its middle in "
            "it; write stage numbers such as 1, a wider range of percents, or use more stages"
        )
    return stages


@dataclass
class _Budget:
    """Remaining budget of a prompt over all its stages and texts; every stage with a content of its own counts."""

    letters: int = MOST_LETTERS
    numbers: int = MOST_NUMBERS

    def spend(self, letters: int, numbers: int) -> None:
        """Raises BestiaryError if the budget is exceeded."""
        self.letters -= letters
        self.numbers -= numbers
        if self.letters < 0:
            raise BestiaryError(
                f"the prompt is too long for its stages: {letters:,} characters per stage exceed the limit of "
                f"{MOST_LETTERS:,}: shorten the text, or change it at fewer stages"
            )
        if self.numbers < 0:
            raise BestiaryError(
                f"the prompt contains too many trained vectors: over all stages they have more than {MOST_NUMBERS:,} numbers: "
                "name fewer spectra and parts, or spectra with fewer stages"
            )


@dataclass(eq=False)
class _Named:
    """A spectrum or part in a prompt, once for all its mentions."""

    mention: StagedMention
    """The first one; the others differ only in position and weight."""
    spectrum: PromptSpectrum | None
    vectors: Tensor
    """`(1, D)` of a part; `(S, V, D)` or `(S, L, V, D)` of a spectrum."""
    bypass: Tensor | None = None
    """Like those of a spectrum."""
    chosen: frozenset[int] | None = None
    """Stages of the mention; None until they are resolved."""

    @property
    def varies(self) -> bool:
        """Whether its content may differ between stages."""
        return self.spectrum is not None or self.mention.stages is not None

    def content(self, place: int) -> tuple[Tensor | str, Tensor | None]:
        """Vectors `(n, D)` or `(L, n, D)`, or words, and bypass vectors if any, at a stage; -1: outside the stages of the mention."""
        if place < 0:
            return self.mention.otherwise, None
        if self.spectrum is None:
            return self.vectors, None
        # a spectrum may have words at a stage in place of vectors
        if place in self.spectrum.words:
            return self.spectrum.words[place], None
        count = self.spectrum.count(place)
        extra = None if self.bypass is None else self.bypass[place][..., :count, :]
        return self.vectors[place][..., :count, :], extra


class _Reading:
    """One prompt text, parsed and resolved once."""

    def __init__(self, text: str, sources: PromptSources, budget: _Budget) -> None:
        self.text, self.sources, self.budget = text, sources, budget
        self.mentions: StagedMentions = find_staged_mentions(text)
        self.edits = find_edits(text, self.mentions)
        self.shares = sorted({edit.share for edit in self.edits})
        # looked up now, at the columns of the whole text, whether or not a stage shows them; each different thing once
        numbers: dict[StagedMention, int] = {}
        self.number_of = {
            start: numbers.setdefault(_bare(one), len(numbers)) for start, (_, one) in self.mentions.items()
        }
        firsts = {number: self.mentions[start][1] for start, number in reversed(self.number_of.items())}
        parts = [one for _, one in sorted(firsts.items()) if not isinstance(one, SpectrumMention)]
        vectors = iter(resolve_prompt(PartPrompt(tuple(parts)), sources.dictionaries).vectors.split(1))  # (1, D) each
        self.spectra: dict[tuple[str | None, float], _Named] = {}
        self.bounds: list[StageBounds] = []
        self.named = [
            self._spectrum(one) if isinstance(one, SpectrumMention) else _Named(one, None, next(vectors))
            for _, one in sorted(firsts.items())
        ]
        self._shown: dict[int, list[TextSegment | tuple[int, float]]] = {}
        self._built: dict[tuple[object, ...], StagePrompt] = {}
        self._places: dict[StageBounds, tuple[int, ...]] = {}
        self._presets: dict[int, Presets] = {}

    def _spectrum(self, mention: SpectrumMention) -> _Named:
        # the same spectrum at other stages shares its vectors
        key = same_name(mention.name, self.sources.spectra), mention.strength
        if key not in self.spectra:
            if len(self.spectra) >= MOST_STRENGTHS:
                raise PromptError(
                    mention.column, f"more than {MOST_STRENGTHS} different spectra and strengths: name fewer of them"
                )
            spectrum = _find_spectrum(mention, self.sources)
            found = _Named(mention, spectrum, spectrum.matrix(), spectrum.bypass_matrix())
            self.budget.spend(0, found.vectors.numel())
            self.spectra[key] = found
            self.bounds.append(spectrum.bounds)
        return replace(self.spectra[key], mention=mention)

    def first_bounds(self) -> StageBounds | None:
        """Stages of the first spectrum named."""
        return next(iter(self.bounds), None)

    def refine(self, bounds: StageBounds) -> StageBounds:
        """`bounds` with an edge wherever this text may change."""
        for own in dict.fromkeys(self.bounds):
            bounds = bounds.refined_by(own)
        shares = [share for share in self.shares if 0 < share < 1]
        return bounds.refined_by(StageBounds.from_fractions(shares, bounds.num_timesteps)) if shares else bounds

    def at(self, stage: int, finest: StageBounds, bounds: StageBounds) -> StagePrompt:
        """What stands here at a stage of `finest`; `bounds` is what stage numbers of parts count in."""
        way = finest.fractions[stage]
        passed = bisect_right(self.shares, way + 1e-9)
        if passed not in self._shown:
            self._shown[passed] = self._segments(way)
        segments = self._shown[passed]
        # which stage of each thing is said: stages that agree in that say the same
        shown = dict.fromkeys(segment[0] for segment in segments if not isinstance(segment, TextSegment))
        places = {one: self._place(self.named[one], stage, finest, bounds) for one in shown if self.named[one].varies}
        key = passed, tuple(places.values())
        if key not in self._built:
            self._built[key] = self._build(segments, places)
        return self._built[key]

    def _segments(self, way: float) -> list[TextSegment | tuple[int, float]]:
        """Texts, and the numbers of named things with their weights, that stand here at a share of the way."""
        text = masked(self.text, self.edits, way)
        # a mention that an edit takes away is blanked like other text
        shown = {start: found for start, found in self.mentions.items() if text[start] == "<"}
        return [
            segment if isinstance(segment, TextSegment) else (self.number_of[segment.column - 1], segment.weight)
            for segment in weigh_segments(text, shown)
        ]

    def _build(self, segments: Sequence[TextSegment | tuple[int, float]], places: Mapping[int, int]) -> StagePrompt:
        self.budget.spend(len(self.text), 0)
        pieces: list[PromptPiece] = []
        vectors: list[Tensor] = []
        bypass: list[Tensor | None] = []
        for segment in segments:
            if isinstance(segment, TextSegment):
                pieces.append(PromptPiece(segment.text.replace("\0", ""), segment.weight))
                continue
            number, weight = segment
            content, extra = self.named[number].content(places.get(number, 0))
            if isinstance(content, str):
                pieces += [PromptPiece(content, weight)] if content else []
                continue
            self.budget.spend(0, content.numel())
            pieces += PromptPiece.word(content.shape[-2], weight)
            vectors.append(content)
            bypass.append(extra)
        return StagePrompt(_joined(pieces), *self._stacked(vectors, bypass))

    def _place(self, named: _Named, stage: int, finest: StageBounds, bounds: StageBounds) -> int:
        """The stage of a thing's own that is said at a stage of `finest`; -1 where the mention does not ask for it."""
        # stages of a spectrum count in its own bounds, those of parts in the prompt's
        own = bounds if named.spectrum is None else named.spectrum.bounds
        # asked for the same bounds at every stage, so what depends on them is looked up once
        if own not in self._places:
            self._places[own] = own.stages_of_finer(finest)
        place = self._places[own][stage]
        if named.mention.stages is None:
            return place
        if named.chosen is None:
            presets = self.sources.presets if named.spectrum is None else self._presets_of(named.spectrum)
            try:
                named.chosen = frozenset(_some_stages(named.mention.stages, own, presets))
            except BestiaryError as fault:
                raise PromptError(named.mention.column, str(fault)) from fault
        if place not in named.chosen:
            return -1
        # a part is the same wherever it stands
        return 0 if named.spectrum is None else place

    def _presets_of(self, spectrum: PromptSpectrum) -> Presets:
        """The attributes of a spectrum, those typed for the prompt in place of its own of the same name."""
        if id(spectrum) not in self._presets:
            typed = self.sources.typed
            own = {name: ranges for name, ranges in spectrum.presets.items() if same_name(name, typed) is None}
            self._presets[id(spectrum)] = {**self.sources.typed, **own}
        return self._presets[id(spectrum)]

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


def _bare(mention: StagedMention) -> StagedMention:
    """A mention without its place and weight: equal for mentions that say the same."""
    return replace(mention, column=0, weight=1.0)


def _joined(pieces: Sequence[PromptPiece]) -> tuple[PromptPiece, ...]:
    """Neighbouring texts of equal weight as one, so that words in a spectrum's place read like words typed there."""
    joined: list[PromptPiece] = []
    for piece in pieces:
        if piece.text == "":
            continue
        last = joined[-1] if joined else None
        # vectors are never joined: None stands for one
        if last is None or last.text is None or piece.text is None or last.weight != piece.weight:
            joined.append(piece)
        else:
            joined[-1] = PromptPiece(last.text + piece.text, piece.weight)
    return tuple(joined)


def _find_spectrum(mention: SpectrumMention, sources: PromptSources) -> PromptSpectrum:
    """The spectrum a mention names, at the strength it asks for."""
    named = same_name(mention.name, sources.spectra)
    if named is None:
        if not sources.spectra:
            cause = (
                f"<{mention.name[:40]}> refers to a spectrum, but none is loaded: load it, or write \\< for a literal <"
            )
        else:
            cause = f"unknown spectrum {shown_name(mention.name)}: choose {choices_text(mention.name, list(sources.spectra))}"
        raise PromptError(mention.column, cause)
    try:
        return with_strength(sources.spectra[named], mention.strength)
    except BestiaryError as fault:
        raise PromptError(mention.column, str(fault)) from fault


def _check_one_model(sources: PromptSources) -> None:
    owners = {**sources.spectra, **sources.dictionaries}
    widths = {name: (one.backbone, one.vector_width) for name, one in owners.items()}
    if len(set(widths.values())) > 1:
        raise BestiaryError(f"spectra and dictionaries of different base models cannot be used in one prompt: {widths}")


def _check_overrides(overrides: Mapping[int, Override], bounds: StageBounds) -> None:
    asked = [*overrides, *(entry for entry in overrides.values() if isinstance(entry, int))]
    strange = [stage for stage in asked if stage not in range(bounds.stages)]
    if strange:
        raise BestiaryError(f"text for stage {strange[0] + 1}: there are stages 1 to {bounds.stages}")
