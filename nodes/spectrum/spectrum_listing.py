"""Prompt spectra for the browser: stages and attributes, read from the header of the file only."""

from __future__ import annotations

import math
from pathlib import Path

from ...concepts.errors import BestiaryError
from ...concepts.files.concept_file import LARGEST_HEADER, SPECTRUM_KIND, read_header
from ...concepts.files.file_schema import checked_list
from ...concepts.spectrum.attribute_presets import checked_presets
from ...concepts.spectrum.stage_bounds import StageBounds

MOST_PRESETS, MOST_RANGES = 100, 50
LONGEST_NAME = 80


def list_spectrum(path: Path) -> dict[str, object]:
    """`stages`, `shares` of the sampling at which they start and end, `presets` as ranges by attribute, `shift` of a flow model or null.

    Raises:
        BestiaryError: not a spectrum, or a damaged header.
    """
    header = read_header(path, LARGEST_HEADER)
    if header.kind != SPECTRUM_KIND:
        raise BestiaryError(f"{path.name} is {header.kind or 'a file of another program'}, not a prompt spectrum")
    try:
        bounds = StageBounds(tuple(int(edge) for edge in checked_list(header.concept["edges"], "edges")))
    except (KeyError, TypeError, ValueError, BestiaryError) as fault:
        raise BestiaryError(f"{path.name} is damaged: its stages cannot be read ({type(fault).__name__})") from fault
    presets = checked_presets(header.concept.get("presets") or {})
    listed = {name[:LONGEST_NAME]: ranges[:MOST_RANGES] for name, ranges in list(presets.items())[:MOST_PRESETS]}
    shift = header.concept.get("shift")
    known = shift if isinstance(shift, int | float) and 0 < shift < math.inf else None
    return {"stages": bounds.stages, "shares": list(bounds.fractions), "presets": listed, "shift": known}
