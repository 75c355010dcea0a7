"""Training curves for the browser: the log is read incrementally and thinned to a bounded number of points.

Letters: C curves.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...concepts.errors import BestiaryError

MOST_POINTS = 600
"""Target number of points of a curve; at twice this number they are averaged in pairs."""
MOST_CURVES = 160
"""Maximum number of curves of one log; further ones are ignored."""
LARGEST_LOG = 512 << 20
"""Maximum bytes of a log."""
LARGEST_LINE = 1 << 20
KEPT_LOGS = 8


@dataclass
class _Bucket:
    """Means over consecutive log lines."""

    step: int
    """Step of the last line."""
    records: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def join(self, other: _Bucket) -> None:
        """Merges a later bucket into this one."""
        self.step, self.records = other.step, self.records + other.records
        for name, total in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + total
            self.counts[name] = self.counts.get(name, 0) + other.counts[name]

    def mean(self, name: str) -> float | None:
        """Mean with four significant digits, None without values."""
        return float(f"{self.sums[name] / self.counts[name]:.4g}") if self.counts.get(name) else None


class TrainingCurves:
    """The curves of one log.jsonl; `update` reads new lines."""

    def __init__(self, path: Path) -> None:
        """Nothing is read yet."""
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self._place, self._file = 0, None
        self._buckets: list[_Bucket] = []
        self._width = 1
        self._names: list[str] = []
        self.last: dict[str, object] = {}
        """The newest record."""

    def update(self) -> None:
        """Reads the lines added since the last call; a replaced log is read from its start.

        Raises:
            BestiaryError: the log is larger than `LARGEST_LOG`.
        """
        try:
            facts = self.path.stat()
        except FileNotFoundError:
            self._forget()
            return
        if facts.st_size > LARGEST_LOG:
            raise BestiaryError(f"{self.path.name} has {facts.st_size:,} bytes, at most {LARGEST_LOG:,} are shown")
        # a resumed run replaces its log by one without the steps that it repeats
        if (facts.st_ino, facts.st_dev) != self._file or facts.st_size < self._place:
            self._forget()
            self._file = (facts.st_ino, facts.st_dev)
        for step, record in self._new_records(facts.st_size):
            self._add(step, record)

    def _new_records(self, size: int) -> Iterator[tuple[int, Mapping[str, object]]]:
        with self.path.open("rb") as file:
            file.seek(self._place)
            while self._place < size:
                line = file.readline(LARGEST_LINE)
                # the last line may be incomplete while it is being written: read it next time
                if not line.endswith(b"\n") and len(line) < LARGEST_LINE:
                    return
                self._place += len(line)
                if record := _record(line):
                    yield record

    def _add(self, step: int, record: Mapping[str, object]) -> None:
        self.last = dict(record)
        bucket = _Bucket(step, 1)
        for name, value in _flat(record):
            if name not in self._names:
                # bounds the memory for logs with ever new keys
                if len(self._names) >= MOST_CURVES:
                    continue
                self._names.append(name)
            bucket.sums[name], bucket.counts[name] = value, 1
        if self._buckets and self._buckets[-1].records < self._width:
            self._buckets[-1].join(bucket)
        else:
            self._buckets.append(bucket)
        # long runs lose resolution instead of growing without limit
        if len(self._buckets) >= 2 * MOST_POINTS:
            self._halve()

    def _halve(self) -> None:
        pairs = zip(self._buckets[::2], self._buckets[1::2], strict=True)
        self._buckets = []
        for first, second in pairs:
            first.join(second)
            self._buckets.append(first)
        self._width *= 2

    def listed(self) -> dict[str, object]:
        """`steps`, and `curves` by name; entries of list curves are named `name/0`, `name/1`."""
        steps = [bucket.step for bucket in self._buckets]
        return {
            "steps": steps,
            "curves": {name: [bucket.mean(name) for bucket in self._buckets] for name in self._names},
        }


class CurveReaders:
    """Cache of the most recently requested logs."""

    def __init__(self) -> None:
        """None yet."""
        self._readers: OrderedDict[Path, TrainingCurves] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path) -> tuple[dict[str, object], dict[str, object]]:
        """Result of `TrainingCurves.listed`, and the latest record.

        Raises:
            BestiaryError: see `TrainingCurves.update`.
        """
        # serialised: two threads must not add the same lines twice
        with self._lock:
            reader = self._readers.pop(path, None) or TrainingCurves(path)
            self._readers[path] = reader
            while len(self._readers) > KEPT_LOGS:
                self._readers.popitem(last=False)
            reader.update()
            return reader.listed(), dict(reader.last)


def path_stamp(path: Path) -> str:
    """Stamp that changes with a file; empty if there is none."""
    try:
        facts = os.stat(path)
    except OSError:
        return ""
    return f"{facts.st_mtime_ns}-{facts.st_size}"


def _record(line: bytes) -> tuple[int, Mapping[str, object]] | None:
    """Step and content of a log line; None if it is not the record of a step."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return (step, record) if isinstance(step, int) and not isinstance(step, bool) else None


def _flat(record: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    """Finite numbers by name; those of a list as `name/0`, `name/1`."""
    for name, value in record.items():
        if name == "step":
            continue
        entries = (
            ((f"{name}/{n}", entry) for n, entry in enumerate(value)) if isinstance(value, list) else [(name, value)]
        )
        for label, number in entries:
            if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number):
                yield label[:80], float(number)
