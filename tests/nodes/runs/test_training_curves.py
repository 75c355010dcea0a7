"""Curves out of a log: read on while it grows, thinned to a bounded size, and never broken by a strange line."""

import json

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.runs import training_curves
from bestiary.nodes.runs.training_curves import MOST_CURVES, MOST_POINTS, CurveReaders, TrainingCurves


def write(path, records, mode="a"):
    with path.open(mode) as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def curves_of(path):
    curves = TrainingCurves(path)
    curves.update()
    return curves.listed()


def test_numbers_and_lists_become_curves_and_gaps_stay(tmp_path):
    path = tmp_path / "log.jsonl"
    write(path, [{"step": 1, "loss": 0.5, "parts": [0.1, None]}, {"step": 2, "loss": 0.25, "parts": [None, 0.123456]}])
    assert curves_of(path) == {
        "steps": [1, 2],
        "curves": {"loss": [0.5, 0.25], "parts/0": [0.1, None], "parts/1": [None, 0.1235]},
    }
    assert curves_of(tmp_path / "none.jsonl") == {"steps": [], "curves": {}}


def test_only_what_was_added_is_read_and_half_a_line_waits(tmp_path):
    path = tmp_path / "log.jsonl"
    curves = TrainingCurves(path)
    write(path, [{"step": 1, "loss": 1.0}])
    curves.update()
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    curves.update()
    assert curves.listed()["steps"] == [1]
    with path.open("a") as file:
        file.write('ss": 3.0}\n')
    curves.update()
    assert curves.listed() == {"steps": [1, 2], "curves": {"loss": [1.0, 3.0]}}
    assert curves.last == {"step": 2, "loss": 3.0}


def test_a_log_that_a_resumed_run_wrote_anew_is_read_anew(tmp_path):
    path, anew = tmp_path / "log.jsonl", tmp_path / "anew"
    write(path, [{"step": n, "loss": float(n)} for n in range(5)])
    curves = TrainingCurves(path)
    curves.update()
    write(anew, [{"step": n, "loss": 9.0} for n in range(2)])
    anew.replace(path)
    curves.update()
    assert curves.listed() == {"steps": [0, 1], "curves": {"loss": [9.0, 9.0]}}
    path.unlink()
    curves.update()
    assert curves.listed()["steps"] == []


@pytest.mark.parametrize("count", [2 * MOST_POINTS - 1, 2 * MOST_POINTS, 10_000])
def test_long_logs_are_averaged_and_keep_their_mean_and_end(tmp_path, count):
    path = tmp_path / "log.jsonl"
    write(path, [{"step": n + 1, "loss": float(n)} for n in range(count)])
    listed = curves_of(path)
    assert len(listed["steps"]) < 2 * MOST_POINTS and listed["steps"][-1] == count
    assert len(listed["steps"]) > MOST_POINTS / 2
    assert listed["steps"] == sorted(listed["steps"])
    # the first bucket is the mean of its own lines
    first = listed["steps"][0]
    assert listed["curves"]["loss"][0] == pytest.approx((first - 1) / 2)


STRANGE = [
    "",
    "null",
    "[1]",
    "{",
    '{"loss": 1}',
    '{"step": "1"}',
    '{"step": true}',
    "[" * 100_000,
    '{"step": 7, "loss": NaN}',
]


def test_strange_lines_are_passed_over(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(
        "\n".join(STRANGE).encode() + b"\n\xff\xfe\n" + b'{"step": 8, "loss": 2, "run": "x", "on": true}\n'
    )
    assert curves_of(path) == {"steps": [7, 8], "curves": {"loss": [None, 2.0]}}


def test_too_many_curves_and_too_large_logs_are_bounded(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    write(path, [{"step": 1, "many": list(range(1000)), "x" * 500: 1.0}])
    assert len(curves_of(path)["curves"]) == MOST_CURVES
    monkeypatch.setattr(training_curves, "LARGEST_LOG", 100)
    with pytest.raises(BestiaryError, match=r"log.jsonl has [\d,]+ bytes, at most 100 are shown"):
        TrainingCurves(path).update()


def test_readers_go_on_where_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(training_curves, "KEPT_LOGS", 1)
    readers = CurveReaders()
    paths = [tmp_path / f"{n}.jsonl" for n in range(2)]
    for path in paths:
        write(path, [{"step": 1, "loss": 1.0}])
    for path in (*paths, *paths):
        assert readers.read(path) == ({"steps": [1], "curves": {"loss": [1.0]}}, {"step": 1, "loss": 1.0})
