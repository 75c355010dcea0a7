"""The records of a discovery's `report.json`: what is read from it, by name and type."""

from typing import TypedDict

from ....concepts.features.patch_features import SourceSpec


class PartEntry(TypedDict):
    """One part of a discovery."""

    index: int
    name: str
    images: int
    """Pictures that show it."""
    area: float
    """Mean share of the picture that it covers there, 0..1."""
    kinds: dict[str, int]
    """Kind, numbered as text -> pictures that show it."""


class DoubtEntry(TypedDict):
    """A picture of which the discovery is unsure; see `discovery_doubts.Doubt`."""

    row: int
    part: int
    what: str


class SecondsEntry(TypedDict):
    """Where the time of a discovery went, in seconds."""

    features: float
    clustering: float


class _EveryRun(TypedDict):
    source: SourceSpec
    """How to build the feature source again."""
    settings: dict[str, object]
    other_files: dict[str, int]
    """Ending of files that are not pictures -> how many there were."""


class RunFacts(_EveryRun, total=False):
    """What a run says of itself, whatever it found."""

    seconds: float
    seconds_of: SecondsEntry


class _EveryReport(RunFacts):
    format: int
    images: int
    """Pictures in which parts were found."""
    skipped: int
    """Files that could not be read."""
    images_folder: str
    images_folder_relative: str
    statistics: dict[str, float]
    bytes_per_image: float
    parts: list[PartEntry]
    part_of: list[int]
    """First number of every part -> its number after edits."""
    examples: list[int]
    """Pictures that the page shows, by their place in the maps."""
    typical: dict[str, list[int]]
    """`part:kind` -> typical pictures, the most typical first."""


class DiscoveryReport(_EveryReport, total=False):
    """The whole report; entries that earlier versions did not write may be missing."""

    confidence: list[float | None]
    """Per part 0..1; None where an edit joined parts."""
    warnings: list[str]
    doubts: list[DoubtEntry]
