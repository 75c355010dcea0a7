"""Turns Ctrl-C into a question that a loop asks between two steps."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_signals(should_stop: Callable[[], bool] | None = None) -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether a stop was asked for, by signal or by `should_stop`.

    The first SIGINT or SIGTERM is remembered, the second interrupts at once. Outside the main thread signals cannot
    be caught, so only `should_stop` counts there.
    """
    asked = threading.Event()

    def remember(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    caught = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, remember) for number in caught}
    try:
        yield lambda: asked.is_set() or bool(should_stop and should_stop())
    finally:
        # handlers of whoever called, as they were
        for number, handler in before.items():
            signal.signal(number, handler)
