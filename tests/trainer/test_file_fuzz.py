"""A small run of benchmarks/file_fuzz.py with a fixed seed: mutated files of ours are refused in our words, or work."""

import importlib.util
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "benchmarks" / "file_fuzz.py"


@pytest.mark.filterwarnings("ignore")
def test_mutated_files_are_refused_in_our_words_or_work(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("file_fuzz", FUZZ)
    fuzz = importlib.util.module_from_spec(spec)
    sys.modules["file_fuzz"] = fuzz
    try:
        spec.loader.exec_module(fuzz)
        tally = fuzz.run_fuzz(tmp_path, files=250, seed=7)
    finally:
        del sys.modules["file_fuzz"]
    assert tally.files == 250
    # most changes are caught, and some leave a file that works: neither is so of a fuzz that reads nothing
    assert tally.refused > 100 and tally.reads > tally.refused + 100
    assert not tally.faults, "\n".join(tally.faults)
