"""Turns Ctrl-C into a question that a loop asks between two steps, and a word on the input into Ctrl-C."""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_BY_INPUT, STOP_WORD = "BESTIARY_STOP_BY_INPUT", "stop"
"""Name in the environment of a command that shall listen on its input, and what it hears there."""


def listen_for_stop() -> threading.Thread | None:
    """Where whoever started this command asked for it, the word `stop` on the input, or its end, is Ctrl-C from then on.

    Must be called in the main thread. The command's own children do not listen.
    """
    if not os.environ.pop(STOP_BY_INPUT, ""):
        return None
    # a program that was started with Ctrl-C switched off would not hear it
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    main_thread = threading.get_ident()

    def listen() -> None:
        # the end of the input: whoever started this is gone
        for line in iter(sys.stdin.readline, ""):
            if line.strip() == STOP_WORD:
                break
        if os.name == "nt":
            _thread.interrupt_main()
        else:
            # a real signal also wakes the main thread where it waits
            signal.pthread_kill(main_thread, signal.SIGINT)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    return listener


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
