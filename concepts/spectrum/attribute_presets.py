"""Stages for attributes of a picture: presets, and the notation for stages.

Layout, content and material are the stages that the authors' own examples use (README of zyxElsa/ProSpect @ 31314f1, for
Stable Diffusion 1.4). They give none for style; ours is a suggestion. Presets depend on the base model:
`BestiaryFindAttributeStages` and `benchmarks/spectrum_attributes.py` measure it.

    selection = item { "," item }
    item      = preset | number | number "-" number | percent "%" "-" percent "%"      layout   3   3-5   0%-50%
"""

import re
from collections.abc import Mapping

from ..errors import BestiaryError
from ..name_search import choices_text, same_name, shown_name
from .stage_bounds import StageBounds

Presets = Mapping[str, tuple[tuple[float, float], ...]]
"""Attribute -> ranges (start, end) as fractions of the way from pure noise (0) to the picture (1)."""

DEFAULT_PRESETS: Presets = {
    "layout": ((0.0, 0.1),),
    "content": ((0.2, 1.0),),
    "material": ((0.5, 1.0),),
    "style": ((0.7, 1.0),),
}

PRESET_CLOCKS = ("time", "noise")
"""Presets of a flow model: the same shares of time as Stable Diffusion's, or the same noise."""

MOST_ITEMS = 256
"""Maximum items of one selection, and attributes of one list of presets."""

ROUNDING = 1e-9
"""Tolerance for a middle of a stage at the end of a range."""

_NUMBERS = re.compile(r"(\d{1,4})\s*(?:-\s*(\d{1,4}))?")
_PERCENTS = re.compile(r"(\d{1,3}(?:\.\d+)?)\s*%?\s*-\s*(\d{1,3}(?:\.\d+)?)\s*%")


def stages_in_ranges(ranges: tuple[tuple[float, float], ...], bounds: StageBounds) -> tuple[int, ...]:
    """The stages, counted from 0, with their middle in one of the ranges (fractions of the schedule)."""
    middles = [(a + b) / 2 for a, b in zip(bounds.fractions, bounds.fractions[1:], strict=False)]
    # 1 - 900 / 1000 is a little less than 0.1
    return tuple(
        stage for stage, middle in enumerate(middles) if any(a - ROUNDING <= middle <= b + ROUNDING for a, b in ranges)
    )


def select_stages(text: str, bounds: StageBounds, presets: Presets = DEFAULT_PRESETS) -> tuple[int, ...]:
    """The stages, counted from 0 and rising, that a selection names; numbers are typed from 1.

    Raises:
        BestiaryError: an item is not a preset, number or range, or is out of range; the message lists the valid choices.
    """
    chosen: set[int] = set()
    for item in selection_items(text):
        chosen.update(_select(item, bounds, presets))
    return tuple(sorted(chosen))


def selection_items(text: str) -> list[str]:
    """The items of a selection, without the spaces around them.

    Raises:
        BestiaryError: there are too many.
    """
    items = [item.strip() for item in text.split(",")]
    if len(items) > MOST_ITEMS:
        raise BestiaryError(
            f"{len(items):,} stages separated by commas ({shown_name(text)}): write at most {MOST_ITEMS}, ranges such as 2-4 count once"
        )
    return items


def _select(item: str, bounds: StageBounds, presets: Presets) -> tuple[int, ...]:
    # a preset first: it may be called "3"
    if (named := same_name(item, presets)) is not None:
        return stages_in_ranges(presets[named], bounds)
    # shares of the way are turned into stages by the middle of each stage
    if match := _PERCENTS.fullmatch(item):
        start, end = float(match[1]) / 100, float(match[2]) / 100
        if not start < end <= 1:
            raise BestiaryError(f"stages {shown_name(item)}: write a range with start before end, within 0% to 100%")
        return stages_in_ranges(((start, end),), bounds)
    if match := _NUMBERS.fullmatch(item):
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= bounds.stages:
            raise BestiaryError(f"stage {shown_name(item)} does not exist: there are stages 1 to {bounds.stages}")
        return tuple(range(first - 1, last))
    raise BestiaryError(
        f"unknown stages {shown_name(item)}: choose {choices_text(item, list(presets))}, "
        f"a number of 1 to {bounds.stages}, a range such as 2-4, or 0%-50%"
    )


def stages_text(stages: tuple[int, ...]) -> str:
    """Stages counted from 0 as people write them: (0, 2, 3, 4) -> "1, 3-5"."""
    runs: list[list[int]] = []
    for stage in sorted(stages):
        if runs and stage == runs[-1][1] + 1:
            runs[-1][1] = stage
        else:
            runs.append([stage, stage])
    return ", ".join(f"{a + 1}" if a == b else f"{a + 1}-{b + 1}" for a, b in runs)


def parse_presets(text: str, bounds: StageBounds | None = None) -> dict[str, tuple[tuple[float, float], ...]]:
    """Presets from lines such as `layout: 0%-10%` or `content: 3-10`; empty lines and `#` comments are ignored.

    Args:
        text: one attribute per line.
        bounds: stages for stage numbers; None takes ten equal stages.

    Raises:
        BestiaryError: a line has no colon, selects no stages, or an attribute occurs twice.
    """
    bounds = bounds or StageBounds.equal(10)
    presets: dict[str, tuple[tuple[float, float], ...]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.split("#")[0].strip()
        if not line:
            continue
        # one attribute per line, each once
        name, colon, selection = line.partition(":")
        if not (colon and name.strip()) or name.strip() in presets:
            raise BestiaryError(
                f"line {number} of the presets, {shown_name(line)}: write one attribute per line, such as layout: 0%-10%"
            )
        if len(presets) >= MOST_ITEMS:
            raise BestiaryError(f"line {number} of the presets: the limit is {MOST_ITEMS} attributes, remove some")
        presets[name.strip()] = _ranges(selection, bounds)
    if not presets:
        raise BestiaryError("the presets contain no attribute: write lines such as layout: 0%-10%")
    return presets


def _ranges(selection: str, bounds: StageBounds) -> tuple[tuple[float, float], ...]:
    """Ranges of a selection: percents as typed, stage numbers by their edges."""
    ranges: list[tuple[float, float]] = []
    # keep percents as typed: the edges of stages would round them
    for item in selection_items(selection):
        stages = _select(item, bounds, {})
        match = _PERCENTS.fullmatch(item)
        if match:
            ranges.append((float(match[1]) / 100, float(match[2]) / 100))
        else:
            ranges.append((bounds.fractions[stages[0]], bounds.fractions[stages[-1] + 1]))
    return tuple(ranges)


def format_presets(presets: Presets) -> str:
    """Presets as lines that `parse_presets` reads back."""
    lines = []
    for name, ranges in presets.items():
        lines.append(f"{name}: " + ", ".join(f"{start * 100:.6g}%-{end * 100:.6g}%" for start, end in ranges))
    return "\n".join(lines)


def checked_presets(value: object) -> Presets:
    """Validated presets from the JSON of a file.

    Raises:
        BestiaryError: the value is not a mapping of names to ranges within 0 to 1.
    """
    from ..files.file_schema import checked_table  # only readers of files need it

    try:
        presets = {
            str(name): tuple((float(start), float(end)) for start, end in ranges)
            for name, ranges in checked_table(value, "presets").items()
        }
    except (AttributeError, TypeError, ValueError) as fault:
        raise BestiaryError(f"its attribute presets are broken ({type(fault).__name__}: {fault})") from fault
    # every range must increase within the schedule
    strange = [name for name, ranges in presets.items() if any(not 0 <= a < b <= 1 for a, b in ranges)]
    if strange:
        raise BestiaryError(
            f"its preset {shown_name(strange[0])} has a range that is not increasing within 0 to 1: {presets[strange[0]]}"
        )
    return presets
