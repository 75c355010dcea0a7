"""The training loop on a small regression: bit-exact resume, also after kill -9; stops; not-a-number; host waits."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.run.fit import (
    LoopSettings,
    LossReport,
    ParameterGroup,
    TrainingState,
    TrainingStopped,
    fit,
)
from bestiary.trainer.learning.run.run_folder import RunFolder
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[4]


@dataclass(frozen=True)
class Points:
    x: Tensor
    y: Tensor
    names: tuple[str, ...] = ("a.png", "b.png")


class LinePoints:
    """Batches that are a function of step and micro-step."""

    def __init__(self, count: int = 8, spoil: int | None = None, interrupt: int | None = None, kill: int | None = None):
        self.count, self.spoil, self.interrupt, self.kill = count, spoil, interrupt, kill

    def draw(self, step: int, micro_step: int) -> Points:
        if step == self.interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        if step == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        generator = torch.Generator().manual_seed(1000 * step + micro_step)
        x = torch.randn(self.count, 4, generator=generator)
        y = x @ torch.tensor([1.0, -2.0, 3.0, 0.5]) + 0.1 * torch.randn(self.count, generator=generator)
        return Points(x, y * torch.nan if step == self.spoil else y)


class Line(nn.Module):
    """A linear fit."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-0.1, 0.1, 4))

    def forward(self, batch: Points) -> LossReport:
        loss = (batch.x @ self.weight - batch.y).square().mean()
        return LossReport(loss, {"loss": loss.detach()})


def train(run: RunFolder, batches: LinePoints | None = None, **changes: object) -> TrainingState:
    loop = LoopSettings(**{"steps": 12, "log_every": 1, "save_every": 5, "ema": 0.9, "warmup": 2, **changes})
    model = Line()
    return fit(model, [ParameterGroup("line", {"weight": model.weight}, 0.05)], batches or LinePoints(), loop, run)


def same(ours: TrainingState, theirs: TrainingState) -> bool:
    left, right = ours.tensors(), theirs.tensors()
    return all(torch.equal(left[name], right[name]) for name in right if not name.startswith("random."))


def losses(run: RunFolder) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in run.read_log()]


def test_the_loss_falls_and_every_step_is_logged(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    train(run, steps=60)
    curve = losses(run)
    assert [step for step, _ in curve] == list(range(1, 61))
    assert curve[-1][1] < 0.2 * curve[0][1]
    assert run.newest_state().step == 60


def test_accumulated_micro_steps_equal_one_large_batch(tmp_path: Path) -> None:
    class Halves(LinePoints):
        def draw(self, step: int, micro_step: int) -> Points:
            whole = LinePoints(8).draw(step, 0)
            part = slice(4 * micro_step, 4 * micro_step + 4)
            return Points(whole.x[part], whole.y[part])

    ours = train(RunFolder.create(tmp_path / "halves"), Halves(), accumulation=2)
    theirs = train(RunFolder.create(tmp_path / "whole"))
    torch.testing.assert_close(ours.parameters["line.weight"], theirs.parameters["line.weight"])
    # Adam forgives a wrong scale of the gradient, its norm in the log does not
    norms = [
        [record["gradient_norm"] for record in RunFolder(tmp_path / name).read_log()] for name in ("halves", "whole")
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, halved = RunFolder.create(tmp_path / "whole"), RunFolder.create(tmp_path / "halved")
    theirs = train(whole)
    with pytest.raises(TrainingStopped, match="stopped at step 8"):
        train(halved, LinePoints(interrupt=7))
    assert halved.newest_state().step == 8
    ours = train(halved)
    assert same(ours, theirs)
    assert losses(halved) == losses(whole)


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "killed")
    program = f"""
        import importlib.util, sys
        for name, path in (("conftest", {str(ROOT / "tests" / "conftest.py")!r}), ("test_fit", {__file__!r})):
            spec = importlib.util.spec_from_file_location(name, path)
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        import torch
        torch.set_num_threads(1)
        from pathlib import Path
        module.train(module.RunFolder(Path({str(run.path)!r})), module.LinePoints(kill=8))
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert run.newest_state().step == 5  # at most save_every steps are lost
    whole = RunFolder.create(tmp_path / "whole")
    theirs, ours = train(whole), train(run)
    assert same(ours, theirs)
    assert losses(run) == losses(whole)


def test_not_a_number_stops_with_step_batch_and_files(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    with pytest.raises(BestiaryError) as fault:
        train(run, LinePoints(spoil=7), accumulation=2)
    text = str(fault.value)
    assert "the loss of step 8 is not finite (loss nan, gradient norm nan)" in text
    assert "batch 7 contains a.png, b.png, a.png, b.png" in text
    assert f"the state of step 5 is kept in {run.states}" in text
    assert torch.isfinite(run.newest_state().tensors["parameter.line.weight"]).all()


def test_should_stop_is_asked_and_previews_are_shown(tmp_path: Path) -> None:
    run, model, shown, asked = RunFolder.create(tmp_path / "run"), Line(), [], []
    groups = [ParameterGroup("line", {"weight": model.weight}, 0.05)]
    loop = LoopSettings(steps=9, preview_every=2)
    with pytest.raises(TrainingStopped):
        fit(
            model, groups, LinePoints(), loop, run,
            on_preview=lambda state: shown.append(state.step),
            on_progress=lambda done, total: asked.append((done, total)),
            should_stop=lambda: len(asked) == 5,
        )  # fmt: skip
    assert shown == [2, 4] and asked == [(step, 9) for step in range(1, 6)]
    assert run.newest_state().step == 5


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    theirs = train(run)
    ours = train(run, LinePoints(spoil=0))
    assert ours.step == 12 and same(ours, theirs)


def test_a_full_disk_stops_and_keeps_the_earlier_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, replace = RunFolder.create(tmp_path / "run"), os.replace

    def full(source: str, target: str) -> None:
        if "0000010" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BestiaryError, match="The state of step 5 is kept"):
        train(run)
    assert run.newest_state().step == 5


class CountWaits(TorchDispatchMode):
    """Counts operations that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += str(func) in (
            "aten._local_scalar_dense.default",
            "aten.nonzero.default",
            "aten.is_nonzero.default",
        )
        return func(*args, **(kwargs or {}))


def test_micro_steps_never_wait_for_the_device(tmp_path: Path) -> None:
    counts = []
    for accumulation in (1, 6):
        with CountWaits() as waits:
            train(RunFolder.create(tmp_path / str(accumulation)), steps=3, accumulation=accumulation, log_every=100)
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0


class HostStop(BaseException):
    """What a host raises out of a layer when its user stops."""


@pytest.mark.parametrize("place", [0, 3, 7])
def test_a_step_that_the_host_cuts_short_is_done_again(tmp_path: Path, place: int) -> None:
    """Between the micro-steps of a step, whose first gradients are there already."""

    class Cut(Line):
        def forward(self, batch: Points) -> LossReport:
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 2 * place + 2:
                raise HostStop
            return super().forward(batch)

    def learn(model: Line, run: RunFolder, **options: object) -> TrainingState:
        loop = LoopSettings(steps=12, accumulation=2, log_every=1, save_every=5, ema=0.9)
        groups = [ParameterGroup("line", {"weight": model.weight}, 0.05)]
        return fit(model, groups, LinePoints(), loop, run, **options)

    whole, cut = RunFolder.create(tmp_path / "whole"), RunFolder.create(tmp_path / "cut")
    theirs = learn(Line(), whole)
    with pytest.raises(TrainingStopped, match=f"stopped at step {place}") as stopped:
        learn(Cut(), cut, interruptions=(HostStop,))
    assert stopped.value.state.parameters["line.weight"].grad is None
    assert cut.newest_state().step == place
    ours = learn(Line(), cut)
    assert same(ours, theirs) and losses(cut) == losses(whole)


def test_who_stops_before_the_first_step_waits_for_none(tmp_path: Path) -> None:
    run, model = RunFolder.create(tmp_path / "run"), Line()
    groups = [ParameterGroup("line", {"weight": model.weight}, 0.05)]
    with pytest.raises(TrainingStopped, match="stopped at step 0"):
        fit(model, groups, LinePoints(), LoopSettings(steps=3), run, should_stop=lambda: True)
    assert run.newest_state().step == 0 and run.read_log() == []


def test_a_run_that_died_before_its_first_state_logs_every_step_once(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    for step in (1, 2, 3):
        run.log({"step": step, "loss": 9.0})
    train(run)
    assert [step for step, _ in losses(run)] == list(range(1, 13))


def test_a_run_whose_only_state_is_damaged_is_not_begun_again_unseen(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    (run.states / "step-0000005.safetensors").write_bytes(b"half")
    with pytest.raises(BestiaryError, match="all saved states of .* are damaged"):
        train(run)
    assert run.read_log() == []


def test_a_second_training_in_a_folder_is_refused(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    with run.locked(), pytest.raises(BestiaryError, match="another training is writing into"):
        train(run)
    train(run)
