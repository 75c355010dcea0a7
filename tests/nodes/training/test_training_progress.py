"""A training on its node: bar, time left, previews; Cancel is remembered instead of raised from inside the bar."""

import logging
import sys
from types import SimpleNamespace

import pytest
from PIL import Image


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What the progress bar was told; it interrupts as ComfyUI's does."""
    import comfy.model_management
    import comfy.utils

    told: list[tuple] = []

    def update(self: object, done: int, total: int | None = None, preview: object = None) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        told.append((done, total, preview))

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", update)
    comfy.model_management.interrupt_current_processing(False)
    yield told
    comfy.model_management.interrupt_current_processing(False)


def test_every_step_moves_the_bar_and_previews_are_shown(bar: list[tuple]) -> None:
    from bestiary.nodes.training.training_progress import TrainingProgress

    progress, picture = TrainingProgress("7"), Image.new("RGB", (4, 4))
    progress.step(1, 3)
    progress.preview(picture, 1, 3)
    progress.step(2, 3)
    assert bar == [(1, 3, None), (1, 3, ("JPEG", picture, 512)), (2, 3, None)]
    assert not progress.should_stop()


def test_the_time_left_counts_the_steps_of_this_run_only(bar, monkeypatch, caplog) -> None:
    from bestiary.nodes.training import training_progress

    now = [100.0]
    monkeypatch.setattr(training_progress.time, "monotonic", lambda: now[0])
    sent = []
    instance = SimpleNamespace(
        send_progress_text=lambda text, node: sent.append((text, node)), send_sync=lambda *facts: None
    )
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=instance)))
    progress = training_progress.TrainingProgress("7", first_step=50)
    now[0] = 120.0
    with caplog.at_level(logging.INFO, logger="bestiary"):
        progress.step(60, 100)  # ten steps in twenty seconds, forty to go
    assert sent == [("step 60 of 100, 0:20 passed, 1:20 left", "7")]
    assert "training parts: step 60 of 100, 0:20 passed, 1:20 left" in caplog.text


def test_the_browser_is_told_now_and_then_and_at_the_end(bar, monkeypatch) -> None:
    from bestiary.nodes.training import training_progress

    now, sent = [100.0], []
    monkeypatch.setattr(training_progress.time, "monotonic", lambda: now[0])
    instance = SimpleNamespace(client_id="tab", send_sync=lambda *facts: sent.append(facts))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=instance)))
    progress = training_progress.TrainingProgress("7", run="birds-2")
    for step in range(1, 101):
        now[0] += 0.01
        progress.step(step, 100)
    assert [facts[1]["step"] for facts in sent] == [1, 51, 100]
    event, facts, client = sent[1]
    assert (event, client) == ("bestiary.training", "tab")
    assert facts == {"node": "7", "run": "birds-2", "step": 51, "total": 100, "passed": 0.5, "left": 0.5}
    progress.preview(Image.new("RGB", (4, 4)), 100, 100)
    assert len(sent) == 4
    # outside of a graph there is nobody to tell
    training_progress.TrainingProgress(None).step(1, 1)
    assert len(sent) == 4


def test_cancel_is_remembered_and_ends_the_graph_once(bar) -> None:
    import comfy.model_management as manager
    from bestiary.nodes.training.training_progress import TrainingProgress

    progress = TrainingProgress(None)
    manager.interrupt_current_processing(True)
    progress.step(1, 3)  # the bar takes the mark away
    assert progress.should_stop() and not manager.processing_interrupted()
    with pytest.raises(manager.InterruptProcessingException):
        progress.stop()
    asked = TrainingProgress(None)
    manager.interrupt_current_processing(True)
    assert asked.should_stop()  # between two steps
    with pytest.raises(manager.InterruptProcessingException):
        asked.stop()
    assert not manager.processing_interrupted()
