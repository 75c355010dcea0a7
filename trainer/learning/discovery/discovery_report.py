"""Typed records of a discovery's `report.json`."""

from typing import TypedDict

from ....concepts.features.patch_features import SourceSpec


class PartEntry(TypedDict):
    """One part of a discovery."""

    index: int
    name: str
    images: int
    """Number of pictures that show it."""
    area: float
    """Mean share of these pictures that it covers, 0..1."""
    kinds: dict[str, int]
    """Number of the kind as text -> number of pictures that show it."""


class DoubtEntry(TypedDict):
    """An uncertain picture; see `discovery_doubts.Doubt`."""

    row: int
    part: int
    what: str


class SecondsEntry(TypedDict):
    """Seconds of a discovery by activity."""

    features: float
    clustering: float


class _EveryRun(TypedDict):
    source: SourceSpec
    """Specification from which the feature source is rebuilt."""
    settings: dict[str, object]
    other_files: dict[str, int]
    """Suffix of files that are not pictures -> their number."""


class RunFacts(_EveryRun, total=False):
    """Facts about a run that do not depend on its result."""

    seconds: float
    seconds_of: SecondsEntry


class _EveryReport(RunFacts):
    format: int
    images: int
    """Number of pictures with part labels."""
    skipped: int
    """Number of files that could not be read."""
    images_folder: str
    images_folder_relative: str
    statistics: dict[str, float]
    bytes_per_image: float
    parts: list[PartEntry]
    part_of: list[int]
    """Original number of every part -> its number after edits."""
    examples: list[int]
    """Pictures on the page, by their index in the maps."""
    typical: dict[str, list[int]]
    """`part:kind` -> typical pictures, the most typical first."""


class DiscoveryReport(_EveryReport, total=False):
    """The complete report; entries that earlier versions did not write may be missing."""

    confidence: list[float | None]
    """Per part 0..1; None for parts that an edit merged."""
    warnings: list[str]
    doubts: list[DoubtEntry]
