"""Progress on the error stream: quiet in logs, exact as JSON, rewritten in place on a terminal."""

import io
import json

import pytest
from bestiary.trainer.learning.run.progress_report import duration, progress_callback


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_json_lines_hold_stage_counts_and_time_left():
    stream = io.StringIO()
    report = progress_callback("train", "json", stream)
    report(1, 4)
    report(4, 4)
    first, last = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["stage"], first["done"], first["total"]) == ("train", 1, 4)
    assert first["seconds_left"] >= 0
    assert last["done"] == 4 and last["seconds_left"] == 0


def test_nothing_done_yet_has_no_time_left():
    stream = io.StringIO()
    progress_callback("train", "json", stream)(0, 10)
    assert json.loads(stream.getvalue())["seconds_left"] is None


def test_log_gets_few_lines_but_always_the_last():
    stream = io.StringIO()
    report = progress_callback("train", "line", stream)
    for step in range(1, 1001):
        report(step, 1000)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert "1000/1000" in lines[-1] and "100 %" in lines[-1]


def test_terminal_line_is_rewritten_and_ended_once():
    stream = _Terminal()
    report = progress_callback("train", "line", stream)
    report(1, 2)
    report(2, 2)
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().count("\r") == 2


def test_off_is_silent():
    stream = io.StringIO()
    progress_callback("train", "off", stream)(1, 1)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (61.4, "1:01"), (3599.6, "1:00:00"), (7322, "2:02:02")])
def test_duration(seconds, shown):
    assert duration(seconds) == shown
