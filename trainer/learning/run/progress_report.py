"""Progress with remaining time on stderr: a text line for people, or JSON lines for programs."""

import json
import sys
import time
from collections.abc import Callable
from typing import Literal, TextIO

ProgressStyle = Literal["line", "json", "off"]
_SECONDS_BETWEEN_JSON = 0.5
_SECONDS_BETWEEN_LOGGED = 10.0


def progress_callback(
    stage: str, style: ProgressStyle = "line", stream: TextIO | None = None
) -> Callable[[int, int], None]:
    """A callback of (done, total) that reports a stage of work on stderr.

    On a terminal the line is rewritten in place; in a log a line appears at most every ten seconds; `json` writes one
    object per line with the keys stage, done, total, seconds and seconds_left.
    """
    target = stream or sys.stderr
    started = time.monotonic()
    # refresh quickly on a terminal, but keep log files short
    interval = 0.1 if target.isatty() else _SECONDS_BETWEEN_LOGGED
    interval = _SECONDS_BETWEEN_JSON if style == "json" else interval
    last_written = started - interval

    def report(done: int, total: int) -> None:
        nonlocal last_written
        now = time.monotonic()
        # the last report is always written, the others at most once per interval
        if style == "off" or (done < total and now - last_written < interval):
            return
        last_written = now
        target.write(_line(stage, done, total, now - started, style, target.isatty()))
        target.flush()

    return report


def duration(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _line(stage: str, done: int, total: int, seconds: float, style: ProgressStyle, in_place: bool) -> str:
    # remaining time at the mean speed so far
    left = seconds / done * (total - done) if done else None
    if style == "json":
        record = {"stage": stage, "done": done, "total": total, "seconds": round(seconds, 2)}
        return json.dumps({**record, "seconds_left": None if left is None else round(left, 1)}) + "\n"
    text = f"{stage:<12} {done}/{total}  {100 * done // max(total, 1):3d} %  {duration(seconds)}"
    text += f"  {duration(left)} left" if left is not None and done < total else ""
    # on a terminal: carriage return and erase, so that the line is rewritten in place
    if not in_place:
        return text + "\n"
    return f"\r\x1b[2K{text}" + ("\n" if done >= total else "")
