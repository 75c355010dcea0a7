"""Turns Ctrl-C into a flag that a loop polls between two steps, and a word on standard input into Ctrl-C."""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_BY_INPUT, STOP_WORD = "BESTIARY_STOP_BY_INPUT", "stop"
"""Environment variable that makes a command listen on its standard input, and the word that stops it."""


def listen_for_stop() -> threading.Thread | None:
    """If `STOP_BY_INPUT` is set, treat the word `stop` or the end of standard input as Ctrl-C.

    Must be called in the main thread. The command's own children do not listen.
    """
    if not os.environ.pop(STOP_BY_INPUT, ""):
        return None
    # a program started with SIGINT ignored (nohup, &) would not react otherwise
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    main_thread = threading.get_ident()

    def listen() -> None:
        # the loop also ends at the end of the input: the parent process is gone
        for line in iter(sys.stdin.readline, ""):
            if line.strip() == STOP_WORD:
                break
        if os.name == "nt":
            _thread.interrupt_main()
        else:
            # a real signal also interrupts blocking calls of the main thread
            signal.pthread_kill(main_thread, signal.SIGINT)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    return listener


@contextmanager
def stop_signals(should_stop: Callable[[], bool] | None = None) -> Iterator[Callable[[], bool]]:
    """Yields a function that returns True once a stop was requested, by signal or by `should_stop`.

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
        # restore the caller's handlers
        for number, handler in before.items():
            signal.signal(number, handler)
