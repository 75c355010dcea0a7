"""Who has which stage: lines of text or references that claim stages by attribute, number or percent."""

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
"""Lines with a text for stages; four for each of the most stages there can be."""


@dataclass(frozen=True)
class Claim:
    """One item of a selection, such as "layout" or "3-5"."""

    owner: int
    """Who claims, counted from 0."""
    stages: tuple[int, ...]
    """Counted from 0."""
    exact: bool
    """Typed as numbers or percents, not as an attribute."""


@dataclass(frozen=True)
class Reference:
    """A spectrum and the stages it shall have in a mixture."""

    spectrum: PromptSpectrum
    stages: str
    """A selection: "layout", "4-6", "0%-30%", "material, style"."""
    strength: float = 1.0


def claims_of(owner: int, selection: str, bounds: StageBounds, presets: Presets) -> list[Claim]:
    """The items of a selection.

    Raises:
        BestiaryError: one is no attribute, number or range of these stages.
    """
    return [
        Claim(owner, select_stages(item, bounds, presets), same_name(item, presets) is None)
        for item in selection_items(selection)
    ]


def assign_stages(claims: Sequence[Claim], bounds: StageBounds, names: Sequence[str]) -> list[int | None]:
    """The owner of every stage, None where nobody claims it.

    Stages typed as numbers or percents go before attributes; of attributes the one with the fewest stages wins, of
    equals the later one.

    Args:
        claims: in their order.
        bounds: the stages.
        names: what messages call each owner.

    Raises:
        BestiaryError: two owners claim the same stage by number or percent.
    """
    # attributes from the widest to the narrowest, so that the more specific overwrite
    owners: list[int | None] = [None] * bounds.stages
    for claim in sorted((one for one in claims if not one.exact), key=lambda one: -len(one.stages)):
        for stage in claim.stages:
            owners[stage] = claim.owner
    # numbers and percents go before them, and must not contradict each other
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
    """What lines such as `layout: a wide meadow` or `4-6: =1` put at stages, see `parse_stage_texts`.

    Raises:
        BestiaryError: a line cannot be read, or two lines claim the same stage by number.
    """
    claims: list[Claim] = []
    entries: list[Override] = []
    names: list[str] = []
    for number, line in enumerate(text.splitlines()):
        if not line.strip():
            continue
        if len(entries) >= MOST_LINES:
            raise BestiaryError(
                f"line {number + 1}: at most {MOST_LINES} lines with stages are read, write fewer of them"
            )
        read = parse_stage_texts(line, bounds, presets, first_line=number + 1)
        claims += claims_of(len(entries), line.partition(":")[0], bounds, presets)
        entries.append(next(iter(read.values())))
        names.append(f"line {number + 1}")
    owners = assign_stages(claims, bounds, names)
    return {stage: entries[owner] for stage, owner in enumerate(owners) if owner is not None}


def typed_presets(text: str, bounds: StageBounds, default: Presets) -> Presets:
    """Presets as typed, one attribute per line; an empty text takes the default.

    Raises:
        BestiaryError: a line cannot be read.
    """
    return parse_presets(text, bounds) if text.strip() else default


def mix_references(
    references: Mapping[str, Reference],
    *,
    presets: str = "",
    rest: Rest = "neutral",
    softness: float = 0.0,
) -> tuple[PromptSpectrum, str]:
    """One spectrum that has each stage from the reference that claims it, and a table of who has which.

    Args:
        references: what messages call each -> spectrum and stages.
        presets: attributes as typed; empty takes those of the first reference.
        rest: what stands at stages that nobody claims.
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
        why = "others claim all of them" if number in claimed else "none lies in what it takes"
        lines.append(f"{name}: stages {stages_text(stages)}" if stages else f"{name}: no stage, {why}")
    # stages that are left over say something too
    free = tuple(stage for stage, owner in enumerate(owners) if owner is None)
    if free:
        lines.append(
            f"{'the words it was learned from' if rest == 'neutral' else 'nothing'}: stages {stages_text(free)}"
        )
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
    """What messages call the reference in a socket."""
    return f"reference_{number} {shown_name(name)}"
