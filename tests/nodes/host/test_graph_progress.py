"""Progress on a node: steps arrive in order, and Cancel takes hold at every step."""

import comfy.model_management
import comfy.utils
import pytest
from bestiary.nodes.host.graph_progress import GraphProgress


@pytest.fixture
def events(monkeypatch) -> list[tuple]:
    seen: list[tuple] = []
    hook = lambda done, total, preview, node_id=None: seen.append((done, total, node_id))  # noqa: E731
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    return seen


def test_steps_are_shown_on_the_node(events):
    progress = GraphProgress("7")
    progress.begin(4)
    progress.add()
    progress.add(2)
    assert events == [(1, 4, "7"), (3, 4, "7")]


def test_it_never_runs_past_its_end(events):
    progress = GraphProgress("7")
    progress.begin(2)
    progress.add(5)
    assert events == [(2, 2, "7")]


def test_finishing_fills_the_bar(events):
    progress = GraphProgress("7")
    progress.begin(9)
    progress.add(2)
    progress.finish()
    assert events[-1] == (9, 9, "7")


def test_cancel_takes_hold_at_the_next_step(events):
    progress = GraphProgress("7")
    progress.begin(2)
    progress.add()
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        progress.add()
    assert events == [(1, 2, "7")]
    progress.add()  # the request is used up


def test_outside_a_graph_nothing_is_shown(events):
    GraphProgress(None).add()
    assert events == []
