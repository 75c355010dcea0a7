"""Assignment of stages to lines of text or references, which claim them by attribute, number or percent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import BestiaryError
from ..name_search import same_name, shown_name
from .attribute_presets import Presets, parse_presets, select_stages, selection_items, stages_text
from .prompt_spectrum import PromptSpectrum
from .stage_algebra import Rest, merge_by_attribute, with_soft_bounds, with_strength
from .stage_bounds import StageBounds
from .staged_prompt import Override, parse_stage_texts

MOST_LINES = 1000
"""Maximum number of lines with stage texts, four per stage for the maximum of stages."""


@dataclass(frozen=True)
class Claim:
    """One item of a selection, such as "layout" or "3-5"."""

    owner: int
    """Index of the claiming line or reference, from 0."""
    stages: tuple[int, ...]
    """Counted from 0."""
    exact: bool
    """Given as numbers or percents, not as an attribute."""


@dataclass(frozen=True)
class Reference:
    """A spectrum and its stages in a mixture."""

    spectrum: PromptSpectrum
    stages: str
    """A selection: "layout", "4-6", "0%-30%", "material, style"."""
    strength: float = 1.0


def claims_of(owner: int, selection: str, bounds: StageBounds, presets: Presets) -> list[Claim]:
    """The items of a selection.

    Raises:
        BestiaryError: an item is not an attribute, number or range of these stages.
    """
    return [
        Claim(owner, select_stages(item, bounds, presets), same_name(item, presets) is None)
        for item in selection_items(selection)
    ]


def assign_stages(claims: Sequence[Claim], bounds: StageBounds, names: Sequence[str]) -> list[int | None]:
    """The owner of every stage, None for unclaimed stages.

    Numbers and percents take precedence over attributes; of the attributes the one with the fewest stages takes
    precedence, then the later one.

    Args:
        claims: in their order.
        bounds: the stages.
        names: of the owners, for messages.

    Raises:
        BestiaryError: two owners claim the same stage by number or percent.
    """
    # attributes from the widest to the narrowest, so that the more specific overwrite
    owners: list[int | None] = [None] * bounds.stages
    for claim in sorted((one for one in claims if not one.exact), key=lambda one: -len(one.stages)):
        for stage in claim.stages:
            owners[stage] = claim.owner
    # numbers and percents take precedence, and must not contradict each other
    exact: dict[int, int] = {}
    for claim in (one for one in claims if one.exact):
        double = tuple(stage for stage in claim.stages if exact.get(stage, claim.owner) != claim.owner)
        if double:
            raise BestiaryError(
                f"stages {stages_text(double)} are claimed by {names[exact[double[0]]]} and by {names[claim.owner]}: "
                "give every stage to one of them"
            )
        exact |= dict.fromkeys(claim.stages, claim.owner)
    for stage, owner in exact.items():
        owners[stage] = owner
    return owners


def stage_lines(text: str, bounds: StageBounds, presets: Presets) -> dict[int, Override]:
    """Stage texts from lines such as `layout: a wide meadow` or `4-6: =1`, see `parse_stage_texts`.

    Raises:
        BestiaryError: a line is invalid, or two lines claim the same stage by number.
    """
    claims: list[Claim] = []
    entries: list[Override] = []
    names: list[str] = []
    for number, line in enumerate(text.splitlines()):
        if not line.strip():
            continue
        if len(entries) >= MOST_LINES:
            raise BestiaryError(f"line {number + 1}: the limit is {MOST_LINES} lines with stages, remove some")
        read = parse_stage_texts(line, bounds, presets, first_line=number + 1)
        claims += claims_of(len(entries), line.partition(":")[0], bounds, presets)
        entries.append(next(iter(read.values())))
        names.append(f"line {number + 1}")
    owners = assign_stages(claims, bounds, names)
    return {stage: entries[owner] for stage, owner in enumerate(owners) if owner is not None}


def typed_presets(text: str, bounds: StageBounds, default: Presets) -> Presets:
    """Presets as typed, one attribute per line; an empty text takes the default.

    Raises:
        BestiaryError: a line is invalid.
    """
    return parse_presets(text, bounds) if text.strip() else default


def mix_references(
    references: Mapping[str, Reference],
    *,
    presets: str = "",
    rest: Rest = "neutral",
    softness: float = 0.0,
) -> tuple[PromptSpectrum, str]:
    """A spectrum with each stage from the reference that claims it, and a table of the stages of each reference.

    Args:
        references: name for messages -> spectrum and stages.
        presets: attributes as typed; empty takes those of the first reference.
        rest: content of unclaimed stages.
        softness: 0 to 1, how far neighbouring stages blend.

    Raises:
        BestiaryError: no reference, an unknown attribute, stages claimed twice, or spectra of different base models.
    """
    if not references:
        raise BestiaryError("no spectrum is connected: connect at least one reference from Load Spectrum")
    first = next(iter(references.values())).spectrum
    bounds = first.bounds
    # stages as fine as any reference has them
    for reference in references.values():
        bounds = bounds.refined_by(reference.spectrum.bounds)
    known = typed_presets(presets, bounds, first.presets)
    claims = []
    for number, (name, reference) in enumerate(references.items()):
        try:
            claims += claims_of(number, reference.stages, bounds, known)
        except BestiaryError as fault:
            raise BestiaryError(f"{name}: {fault}") from fault
    owners = assign_stages(claims, bounds, list(references))
    # the ranges of every owner, now without overlap
    own = {
        name: tuple((bounds.fractions[s], bounds.fractions[s + 1]) for s, o in enumerate(owners) if o == number)
        for number, name in enumerate(references)
    }
    spectra = {name: with_strength(one.spectrum, one.strength) for name, one in references.items()}
    mixed = merge_by_attribute(spectra, own, rest=rest, bounds=bounds)
    mixed = replace(with_soft_bounds(mixed, softness), presets=dict(known))
    claimed = {claim.owner for claim in claims if claim.stages}
    return mixed, _owner_table(owners, list(references), bounds, rest, claimed)


def _owner_table(
    owners: Sequence[int | None], names: Sequence[str], bounds: StageBounds, rest: str, claimed: set[int]
) -> str:
    lines = []
    for number, name in enumerate(names):
        stages = tuple(stage for stage, owner in enumerate(owners) if owner == number)
        why = "others claim all of them" if number in claimed else "its selection contains none"
        lines.append(f"{name}: stages {stages_text(stages)}" if stages else f"{name}: no stage, {why}")
    # unclaimed stages have a content, too
    free = tuple(stage for stage, owner in enumerate(owners) if owner is None)
    if free:
        lines.append(f"{'the initial words' if rest == 'neutral' else 'nothing'}: stages {stages_text(free)}")
    return "\n".join([*lines, f"{bounds.stages} stages in all"])


def require_all_stages(found: Mapping[int, Override], bounds: StageBounds) -> None:
    """Make sure that every stage has its text.

    Raises:
        BestiaryError: stages are missing; the message names them.
    """
    missing = tuple(stage for stage in range(bounds.stages) if stage not in found)
    if missing:
        raise BestiaryError(
            f"stages {stages_text(missing)} have no text: write a line for them, or a text for all other stages"
        )


def shown_reference(number: int, name: str) -> str:
    """Name for messages of the reference in a socket."""
    return f"reference_{number} {shown_name(name)}"
