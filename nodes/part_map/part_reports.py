"""Text reports of nodes about codebooks and part maps."""

from __future__ import annotations

from collections.abc import Sequence

from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.part_map.part_map import ABSENT
from ...concepts.part_prompt.caption_file import format_captions
from .part_drawing import kind_name
from .seen_parts import SeenParts

_NAMES_SHOWN = 8


def codebook_text(codebook: PartCodebook) -> str:
    """Parts, kinds and feature source, one part per line."""
    lines = [f"{codebook.num_parts} parts, features: {source_text(codebook)}"]
    for part, name in enumerate(codebook.part_names):
        count = codebook.num_kinds[part] if codebook.fine else 0
        named = [kind_name(codebook, part, kind) for kind in range(min(count, _NAMES_SHOWN))]
        # without user-given names the list would repeat the numbers
        given = any(kind in codebook.kind_names[part] for kind in range(count)) if codebook.kind_names else False
        listed = f": {', '.join(named)}{', ...' if count > _NAMES_SHOWN else ''}" if given else ""
        mark = " (background)" if part == codebook.background else ""
        lines.append(f"{part} {name}{mark}: {count} kinds{listed}")
    return "\n".join(lines)


def source_text(codebook: PartCodebook) -> str:
    """Name of the feature source and its model."""
    spec = codebook.feature_spec
    model = spec.get("backbone") or spec.get("model")
    return f"{spec.get('name', 'unknown')}{f' of {model}' if model else ''}"


def discovery_text(
    codebook: PartCodebook,
    seen: Sequence[SeenParts],
    warning: str | None,
    *,
    confidence: Sequence[float] = (),
    unsure: Sequence[str] = (),
) -> str:
    """Per part: number of pictures with it, its area in them, and its number of kinds.

    Args:
        confidence: certainty of every part's labels, 0..1; omitted if empty.
        unsure: descriptions of the most uncertain pictures.
    """
    pictures = sum(len(entry.maps.labels) for entry in seen)
    lines = [f"{pictures} pictures, features: {source_text(codebook)}"]
    for part, name in enumerate(codebook.part_names):
        shown = sum(int((entry.maps.codes[:, part] != ABSENT).sum()) for entry in seen)
        patches = sum(int((entry.maps.labels == part).sum()) for entry in seen)
        # mean area over the pictures that show the part, not over all
        area = patches / max(1, shown * seen[0].maps.labels[0].numel())
        sure = f", {confidence[part]:.0%} confidence" if part < len(confidence) else ""
        lines.append(
            f"{name}: shown by {shown} of {pictures}, {area:.0%} of the picture, {codebook.num_kinds[part]} kinds{sure}"
        )
    if unsure:
        lines.append(f"Check first: {'; '.join(unsure)}.")
    return "\n".join([*lines, warning] if warning else lines)


def codes_text(seen: SeenParts) -> str:
    """One line `part:kind part:kind ...` per picture, as in the caption files of the command line."""
    return format_captions(seen.maps.codes).removesuffix("\n")
