"""What an evaluation found: pictures and scores of every test of every dictionary."""

from dataclasses import dataclass, field
from typing import Any

from ..composing.picture_making import Picture
from ..learning.discovery.discovery_folder import Discovery
from .cases import TestCase
from .picture_judge import Sight


@dataclass(frozen=True)
class TestResult:
    """One test of one dictionary."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    cases: list[TestCase]
    pictures: list[Picture]
    sight: Sight
    scores: dict[str, Any]


@dataclass
class Evaluation:
    """All tests of all dictionaries, and what real pictures score."""

    discovery: Discovery
    ceiling: dict[str, Any]
    results: dict[str, dict[str, TestResult]] = field(default_factory=dict)
    """Dictionary -> test (`reconstruction`, `mix1`, `mix2`, ...) -> result."""

    def figures(self) -> dict[str, Any]:
        """Every figure, as it goes into evaluation.json."""
        methods = {
            name: {test: result.scores for test, result in tests.items()} for name, tests in self.results.items()
        }
        return {"ceiling": self.ceiling, "methods": methods}
