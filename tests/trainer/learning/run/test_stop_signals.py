"""Ctrl-C becomes a question; a second one interrupts; handlers are put back."""

import os
import signal
import threading

import pytest
from bestiary.trainer.learning.run.stop_signals import stop_signals


def test_the_first_signal_is_remembered_and_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_signals() as stopped:
        assert not stopped()
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_handlers_are_put_back_after_an_exception() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), stop_signals():
        raise RuntimeError("inside")
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_only_the_question_counts() -> None:
    answers = []

    def ask() -> None:
        with stop_signals(lambda: True) as stopped:
            answers.append(stopped())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert answers == [True]
