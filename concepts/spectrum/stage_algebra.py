"""Algebra on prompt spectra: every operation gives a new spectrum and costs no model evaluation.

Stages are counted from 0 in generation order. Letters: S stages, L layers, V vectors of a stage, W width of an encoder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from ..errors import BestiaryError
from ..name_search import choices_text, shown_name
from .attribute_presets import DEFAULT_PRESETS, Presets, stages_in_ranges, stages_text
from .prompt_spectrum import PromptSpectrum
from .stage_bounds import StageBounds

Rest = Literal["neutral", "silent"]
"""Content of an unclaimed stage: the initial words of a spectrum, or nothing."""

SAME_SHIFT = 1e-4
"""Relative difference below which two shifts are one."""

_Pick = tuple[PromptSpectrum, int] | str
"""Content of a stage: a stage of a spectrum, or words."""


def refine(spectrum: PromptSpectrum, bounds: StageBounds) -> PromptSpectrum:
    """The same concept with the finer stages of `bounds`; each copies the stage that contains it.

    Raises:
        BestiaryError: an edge of the spectrum is not an edge of `bounds`, so that a new stage would cover two stages.
    """
    # every edge must be kept: stages can be split, not merged
    missing = sorted(set(spectrum.bounds.edges) - set(bounds.edges), reverse=True)
    if missing:
        raise BestiaryError(
            f"the new stages have no edge at timestep {missing[0]}, where a stage of the spectrum begins"
        )
    places = spectrum.bounds.stages_of_finer(bounds)
    return assemble([(spectrum, place) for place in places], bounds, like=spectrum)


def assemble(picks: Sequence[_Pick], bounds: StageBounds, like: PromptSpectrum) -> PromptSpectrum:
    """A spectrum composed of stages of other spectra and plain words (empty text: nothing).

    Args:
        picks: one per stage of `bounds`: (spectrum, its stage), or words.
        bounds: the new stages.
        like: source of backbone, neutral vectors, presets and provenance.

    Raises:
        BestiaryError: the spectra belong to different base models or have different layers.
    """
    sources = [pick[0] for pick in picks if not isinstance(pick, str)] or [like]
    _check_alike([like, *sources])
    # as many vectors as any source needs; the others are filled up with zeros
    vectors = max(source.vectors for source in (like, *sources))
    layers = max(source.layers or 0 for source in (like, *sources)) or None
    counts, words = [], {}
    for stage, pick in enumerate(picks):
        if isinstance(pick, str):
            counts.append(0)
            words[stage] = pick
            continue
        source, place = pick
        counts.append(source.count(place))
        if place in source.words:
            words[stage] = source.words[place]

    def stacked(tensors_of: Callable[[PromptSpectrum], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors of all stages by encoder, `(S, V, W)` or `(S, L, V, W)`."""
        return {
            name: torch.stack([_row(pick, name, tensors_of, like, vectors, layers) for pick in picks])  # (S, [L,] V, W)
            for name in like.embeddings
        }

    # one source with bypass vectors is enough; the others have zeros
    has_bypass = any(source.bypass for source in sources)
    # where stages have more vectors than the neutral words, the last word is repeated
    places = [min(place, like.vectors - 1) for place in range(vectors)]
    neutral = {name: tensor[places] for name, tensor in like.neutral.items()}  # (V, W)
    return replace(
        like,
        embeddings=stacked(lambda source: source.embeddings),
        bypass=stacked(lambda source: source.bypass) if has_bypass else {},
        bounds=bounds,
        counts=() if all(count == vectors for count in counts) else tuple(counts),
        words=words,
        neutral=neutral,
        shift=common_shift([like, *sources]),
    )


def common_shift(spectra: Sequence[PromptSpectrum]) -> float | None:
    """The shift at which spectra were learned; None if none of them names one.

    Raises:
        BestiaryError: they name different ones, so that stages of the same time lie at different noise.
    """
    shifts = sorted({spectrum.shift for spectrum in spectra if spectrum.shift is not None})
    # files write a shift with more or fewer digits
    if shifts and shifts[-1] > shifts[0] * (1 + SAME_SHIFT):
        raise BestiaryError(
            f"spectra learned at different shifts ({', '.join(f'{shift:g}' for shift in shifts)}) cannot be combined: their stages lie at "
            "different noise; train them with one shift"
        )
    return shifts[0] if shifts else None


def _row(
    pick: _Pick,
    encoder: str,
    tensors_of: Callable[[PromptSpectrum], Mapping[str, Tensor]],
    like: PromptSpectrum,
    vectors: int,
    layers: int | None,
) -> Tensor:
    """One stage `(V, W)` or `(L, V, W)` of one encoder, zeros where there is nothing."""
    width = like.embeddings[encoder].shape[-1]
    silent = torch.zeros(vectors, width) if layers is None else torch.zeros(layers, vectors, width)
    if isinstance(pick, str):
        return silent
    spectrum, stage = pick
    tensor = tensors_of(spectrum).get(encoder)
    if tensor is None:
        return silent
    row = _padded(tensor[stage].float(), vectors)  # ([L,] V, W)
    # vectors shared by all layers are the same on each of them
    return row if layers is None or row.ndim == 3 else row.expand(layers, -1, -1)


def _padded(tensor: Tensor, vectors: int) -> Tensor:
    """`(..., n, W)` -> `(..., V, W)` padded with zeros at the end."""
    return torch.nn.functional.pad(tensor, (0, 0, 0, vectors - tensor.shape[-2]))


def _check_alike(spectra: Sequence[PromptSpectrum]) -> None:
    backbones = sorted({spectrum.backbone for spectrum in spectra})
    widths = sorted({spectrum.vector_width for spectrum in spectra})
    if len(backbones) > 1 or len(widths) > 1:
        raise BestiaryError(
            f"spectra of different base models cannot be mixed: {', '.join(backbones)} with widths {widths}; "
            "train or import them for one model"
        )
    # a spectrum without layers fits any: its vectors are the same on all of them
    layers = sorted({spectrum.layers for spectrum in spectra if spectrum.layers})
    if len(layers) > 1:
        raise BestiaryError(f"spectra for {layers[0]} and for {layers[1]} cross-attention layers cannot be mixed")


def check_stages(stages: Sequence[int], spectrum: PromptSpectrum) -> None:
    """Make sure that stages, counted from 0, exist.

    Raises:
        BestiaryError: a stage does not exist; the message counts from 1, as the user interface does.
    """
    strange = [stage for stage in stages if stage not in range(spectrum.stages)]
    if strange:
        raise BestiaryError(f"stage {strange[0] + 1} does not exist: this spectrum has stages 1 to {spectrum.stages}")


def replace_stages(spectrum: PromptSpectrum, other: PromptSpectrum, stages: Sequence[int]) -> PromptSpectrum:
    """`spectrum` with the content of `other` at `stages` (stages of `spectrum`)."""
    check_stages(stages, spectrum)
    bounds = spectrum.bounds.refined_by(other.bounds)
    own, others = spectrum.bounds.stages_of_finer(bounds), other.bounds.stages_of_finer(bounds)
    picks = [(other, b) if a in set(stages) else (spectrum, a) for a, b in zip(own, others, strict=True)]
    return assemble(picks, bounds, like=spectrum)


def keep_stages(spectrum: PromptSpectrum, stages: Sequence[int], words: str = "") -> PromptSpectrum:
    """The concept at `stages` only; elsewhere `words`, by default nothing."""
    check_stages(stages, spectrum)
    picks: list[_Pick] = [(spectrum, stage) if stage in set(stages) else words for stage in range(spectrum.stages)]
    return assemble(picks, spectrum.bounds, like=spectrum)


def say_words(spectrum: PromptSpectrum, words: Mapping[int, str]) -> PromptSpectrum:
    """The concept replaced by plain words at some stages; empty words mean nothing."""
    check_stages(list(words), spectrum)
    picks: list[_Pick] = [words.get(stage, (spectrum, stage)) for stage in range(spectrum.stages)]
    return assemble(picks, spectrum.bounds, like=spectrum)


def remap_stages(spectrum: PromptSpectrum, sources: Mapping[int, int]) -> PromptSpectrum:
    """Copy stage `sources[k]` to every stage k of `sources`; the order of the entries does not matter.

    ProSpect's int entries (ddim.py of zyxElsa/ProSpect @ 31314f1) do this in place, so that later entries read the results of
    earlier ones; here all read the unchanged spectrum.
    """
    check_stages([*sources, *sources.values()], spectrum)
    picks = [(spectrum, sources.get(stage, stage)) for stage in range(spectrum.stages)]
    return assemble(picks, spectrum.bounds, like=spectrum)


def with_strength(spectrum: PromptSpectrum, strength: float | Sequence[float]) -> PromptSpectrum:
    """The concept moved towards its neutral words: 1 is as learned, 0 only the words, more than 1 exaggerates.

    Vectors, `(S, V, W)` or `(S, L, V, W)`, are mixed linearly and rescaled to the interpolated norm, because mixing alone
    would shorten them. (The strength of a ComfyUI conditioning has no effect on a single prompt.)

    Args:
        spectrum: must have neutral vectors.
        strength: for all stages, or one per stage; -4 to 4.

    Raises:
        BestiaryError: it has no neutral vectors, or a strength is out of range.
    """
    strengths = [float(strength)] * spectrum.stages if isinstance(strength, int | float) else list(map(float, strength))
    if len(strengths) != spectrum.stages or any(not -4 <= one <= 4 for one in strengths):
        raise BestiaryError(f"strength {strength}: give one number, or {spectrum.stages}, from -4 to 4")
    if not spectrum.neutral and any(one != 1 for one in strengths):
        raise BestiaryError(
            "the strength of this spectrum cannot be changed: it has no neutral vectors (the words it was initialised from)"
        )
    # strength 1 needs no neutral vectors
    if all(one == 1 for one in strengths):
        return spectrum
    # vectors are mixed with their neutral ones; bypass vectors have no neutral ones and are mixed with zero
    mixed = {
        name: torch.stack([_moved(row, spectrum.neutral[name], s) for row, s in zip(rows, strengths, strict=True)])
        for name, rows in spectrum.embeddings.items()
    }
    bypass = {
        name: torch.stack([row * s for row, s in zip(rows, strengths, strict=True)])  # (S, [L,] V, W)
        for name, rows in spectrum.bypass.items()
    }
    return replace(spectrum, embeddings=mixed, bypass=bypass)


def _moved(learned: Tensor, neutral: Tensor, strength: float) -> Tensor:
    """From neutral `(V, W)` towards learned `([L,] V, W)`; exactly either end at 0 and 1."""
    if strength in (0.0, 1.0):
        return neutral.expand_as(learned) if strength == 0 else learned
    mixed = torch.lerp(neutral.expand_as(learned), learned, strength)
    start, end = (tensor.norm(dim=-1, keepdim=True) for tensor in (neutral.expand_as(learned), learned))
    norm = torch.lerp(start, end, strength).clamp_min(0)  # ([L,] V, 1)
    return mixed * norm / mixed.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def with_soft_bounds(spectrum: PromptSpectrum, softness: float) -> PromptSpectrum:
    """Cross-fade neighbouring stages: each takes half of `softness` (0 to 1) of the mean of its neighbours' vectors.

    The number of stages and the shape of the vectors do not change, so no evaluation is added. Stages with words, and
    neighbours with another number of vectors, are left out of the mean.

    Raises:
        BestiaryError: softness is out of range.
    """
    if not 0 <= softness <= 1:
        raise BestiaryError(f"softness {softness}: choose 0 (hard boundaries) to 1")
    if softness == 0:
        return spectrum

    # every stage reads the unchanged spectrum, so the order of stages does not matter
    def faded(rows: Tensor) -> Tensor:
        """Rows `(S, V, W)` or `(S, L, V, W)`, mixed with their neighbours."""
        result = []
        for stage in range(spectrum.stages):
            near = [n for n in (stage - 1, stage + 1) if _can_fade(spectrum, stage, n)]
            mean = torch.stack([rows[n] for n in near]).mean(0) if near else rows[stage]  # ([L,] V, W)
            result.append(torch.lerp(rows[stage], mean, softness / 2))
        return torch.stack(result)  # (S, [L,] V, W)

    return replace(
        spectrum,
        embeddings={name: faded(rows) for name, rows in spectrum.embeddings.items()},
        bypass={name: faded(rows) for name, rows in spectrum.bypass.items()},
    )


def _can_fade(spectrum: PromptSpectrum, stage: int, neighbour: int) -> bool:
    if neighbour not in range(spectrum.stages) or {stage, neighbour} & spectrum.words.keys():
        return False
    return spectrum.count(stage) == spectrum.count(neighbour)


def merge_by_attribute(
    references: Mapping[str, PromptSpectrum],
    presets: Presets = DEFAULT_PRESETS,
    *,
    rest: Rest = "neutral",
    bounds: StageBounds | None = None,
) -> PromptSpectrum:
    """One concept that takes layout from one reference, content from another, and so on.

    A stage claimed by several of the given attributes goes to the one with the fewest stages, the most specific: with the
    default presets layout has stage 1 of 10, content 3 to 5, material 6 and 7, style 8 to 10. Vectors are copied, so
    each stage is exactly as learned by its reference.

    Args:
        references: attribute -> spectrum; the same spectrum may be used for several.
        presets: attribute -> ranges.
        rest: content of unclaimed stages: the neutral words of a reference (that for content if given), or nothing.
        bounds: stages at least this fine; None takes those of the references.

    Raises:
        BestiaryError: no reference, an attribute without a preset, or spectra of different base models.
    """
    if not references:
        raise BestiaryError(f"no reference to mix: connect a spectrum for one of {', '.join(presets)}")
    unknown = [name for name in references if name not in presets]
    if unknown:
        raise BestiaryError(
            f"no preset for the attribute {shown_name(unknown[0])}: choose {choices_text(unknown[0], list(presets))}"
        )
    # stages as fine as any reference has them
    asked = [] if bounds is None else [bounds]
    bounds = reduce(StageBounds.refined_by, [*asked, *(spectrum.bounds for spectrum in references.values())])
    owners = attribute_of_stages(list(references), bounds, presets)
    # unclaimed stages come from the reference for content, otherwise from the first one
    first = references.get("content", next(iter(references.values())))
    neutral = _neutral_spectrum(first, bounds) if rest == "neutral" and first.neutral else None
    places = {name: spectrum.bounds.stages_of_finer(bounds) for name, spectrum in references.items()}
    # every stage from its owner, unclaimed ones from `rest`
    picks: list[_Pick] = []
    for stage, owner in enumerate(owners):
        if owner is not None:
            picks.append((references[owner], places[owner][stage]))
        else:
            picks.append("" if neutral is None else (neutral, stage))
    merged = assemble(picks, bounds, like=first)
    mixed = {
        name: stages_text(tuple(s for s, owner in enumerate(owners) if owner == name)) or "none" for name in references
    }
    return replace(merged, presets=dict(presets), provenance={"made_by": "merge by attribute", "stages_of": mixed})


def attribute_of_stages(attributes: Sequence[str], bounds: StageBounds, presets: Presets) -> list[str | None]:
    """For every stage the attribute that has it, None where no attribute does; see `merge_by_attribute`."""
    claims = {name: stages_in_ranges(presets[name], bounds) for name in attributes}
    # the widest claim first, so that narrower ones overwrite it; of equals the later one wins
    owners: list[str | None] = [None] * bounds.stages
    for name in sorted(attributes, key=lambda name: -len(claims[name])):
        for stage in claims[name]:
            owners[stage] = name
    return owners


def _neutral_spectrum(spectrum: PromptSpectrum, bounds: StageBounds) -> PromptSpectrum:
    """The words a spectrum started from, `(V, W)`, at every stage."""
    shape = (bounds.stages, -1, -1)
    embeddings = {name: tensor.unsqueeze(0).expand(shape).clone() for name, tensor in spectrum.neutral.items()}
    return replace(spectrum, embeddings=embeddings, bypass={}, bounds=bounds, counts=(), words={})
