"""Curves: averages leave out what was not seen, add up over batches, and go to the log and to tensorboard."""

from pathlib import Path

import pytest
import torch
from bestiary.trainer.learning.run.learning_curves import CurveMeter, CurveWriter
from bestiary.trainer.learning.run.run_folder import RunFolder


def test_means_leave_out_nan() -> None:
    meter = CurveMeter()
    meter.add({"loss": torch.tensor(1.0), "iou": torch.tensor([[0.5, torch.nan], [torch.nan, torch.nan]])})
    meter.add({"loss": torch.tensor(3.0), "iou": torch.tensor([[0.7, torch.nan], [0.9, 0.25]])})
    assert meter.read() == {"loss": 2.0, "iou": [pytest.approx(0.7), 0.25]}
    meter.add({"loss": torch.tensor(5.0), "iou": torch.tensor([[torch.nan, 1.0]])})
    assert meter.read() == {"loss": 5.0, "iou": [None, 1.0]}
    assert meter.read() == {}


def test_sums_of_several_processes_are_joined_before_dividing() -> None:
    meter = CurveMeter()
    meter.add({"iou": torch.tensor([0.5, torch.nan])})
    joined = meter.read(
        lambda tensor: tensor + torch.tensor([0.5, 1.0])
    )  # the other process saw [0.5, 1.0], count differs
    assert joined == {"iou": [pytest.approx(1.0 / 1.5, abs=1e-6), 1.0]}


def test_the_log_gets_one_line_per_reading(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    writer = CurveWriter(run, tensorboard=True)
    writer.write(10, {"loss": 0.5, "iou": [0.25, None]})
    writer.close()
    assert run.read_log() == [{"step": 10, "loss": 0.5, "iou": [0.25, None]}]
    assert list((run.path / "tensorboard").glob("events.*"))


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    writer = CurveWriter(None, tensorboard=True)
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []
