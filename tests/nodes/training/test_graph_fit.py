"""What all trainings in the graph share: the loop with the node as its face, the last preview, the end after Cancel."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn


class _Objective(nn.Module):
    """Draws its one weight to zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch: object) -> object:
        from bestiary.trainer.learning.run.fit import LossReport

        loss = self.weight.square().sum()
        return LossReport(loss, {"loss": loss.detach()})


class _Previews:
    """Notes for which steps it was asked; Cancel in the middle gives none."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.latest = None

    def show(self, state: object) -> None:
        self.steps.append(state.step)
        self.latest = Image.new("RGB", (len(self.steps), 1))

    def sheet(self) -> Image.Image:
        return Image.new("RGB", (99, 1))


@pytest.fixture
def run(tmp_path: Path) -> object:
    from bestiary.trainer.learning.run.run_folder import RunFolder

    return RunFolder.create(tmp_path / "moth")


def _fit(run: object, progress: object, previews: object, **changes: object) -> object:
    from bestiary.nodes.training.graph_fit import fit_in_graph
    from bestiary.trainer.learning.run.fit import LoopSettings, ParameterGroup

    objective = _Objective()
    batches = SimpleNamespace(draw=lambda step, micro: SimpleNamespace(names=("a",)))
    loop = LoopSettings(**{"steps": 5, "log_every": 1, **changes})
    groups = [ParameterGroup("weight", dict(objective.named_parameters()), 0.1)]
    return fit_in_graph(objective, groups, batches, loop, run, progress, previews)


def _progress(stop_at: int | None = None) -> object:
    told: list[tuple[int, int]] = []
    return SimpleNamespace(
        told=told,
        step=lambda done, total: told.append((done, total)),
        should_stop=lambda: stop_at is not None and len(told) >= stop_at,
        cancelled=False,
        interruption=KeyboardInterrupt,
    )


def test_every_step_is_told_and_previews_come_when_asked(run) -> None:
    from bestiary.nodes.training.graph_fit import logged_losses

    progress, previews = _progress(), _Previews()
    state = _fit(run, progress, previews, preview_every=2)
    assert state.step == 5 and progress.told == [(n, 5) for n in range(1, 6)] and previews.steps == [2, 4]
    losses = logged_losses(run)
    assert len(losses) == 5 and losses == sorted(losses, reverse=True)
    silent = _Previews()
    _fit(run, _progress(), silent, steps=7, preview_every=0)
    assert silent.steps == []


def test_cancel_gives_the_state_that_was_saved(run) -> None:
    state = _fit(run, _progress(stop_at=3), _Previews())
    assert state.step == 3 and run.newest_state().step == 3


def test_progress_begins_where_the_run_stopped(run, monkeypatch) -> None:
    from bestiary.nodes.training.graph_fit import begin_progress

    assert begin_progress(run, "7", "a spectrum")._first == 0
    _fit(run, _progress(stop_at=3), _Previews())
    progress = begin_progress(run, "7", "a spectrum")
    assert (progress._first, progress.run, progress._what) == (3, "moth", "a spectrum")


@pytest.mark.parametrize(
    ("cancelled", "every", "latest", "width"),
    [(False, 2, True, 1), (False, 2, False, 99), (False, 0, False, 99), (True, 2, True, 1), (True, 0, False, None)],
)
def test_the_last_preview(cancelled: bool, every: int, latest: bool, width: int | None) -> None:
    from bestiary.nodes.training.graph_fit import last_sheet
    from bestiary.trainer.learning.run.fit import LoopSettings

    previews = _Previews()
    previews.latest = Image.new("RGB", (1, 1)) if latest else None
    sheet = last_sheet(previews, LoopSettings(steps=1, preview_every=every), SimpleNamespace(cancelled=cancelled))
    assert (sheet.width if sheet else None) == width


def test_the_end_after_cancel_names_the_file(caplog: pytest.LogCaptureFixture) -> None:
    import logging

    from bestiary.nodes.training.graph_fit import end_cancelled

    stopped: list[bool] = []
    told: list[str] = []
    with caplog.at_level(logging.INFO, logger="bestiary"):
        progress = SimpleNamespace(
            stop=lambda: stopped.append(True), tell=told.append, run="moth", interruption=KeyboardInterrupt
        )
        end_cancelled(progress, 3, lambda: "moth_stopped.safetensors")
    assert stopped and "stopped at step 3; what was learned is in models/bestiary/moth_stopped.safetensors" in told[0]
    assert told[0].endswith("choose moth at resume to go on") and told[0] in caplog.text
