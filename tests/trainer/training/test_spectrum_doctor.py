"""What is looked over before the first step of a spectrum: pictures, stages, disk, one forward pass, one preview."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.run.run_folder import RunFolder
from bestiary.trainer.learning.spectrum.spectrum_settings import TrainSpectrumSettings, load_spectrum_recipe
from bestiary.trainer.training.doctor import examine, examine_setup
from bestiary.trainer.training.train_spectrum import SpectrumTask
from bestiary.trainer.training.training_setup import prepare
from PIL import Image


@pytest.fixture
def settings(tiny_folder: Callable, tmp_path: Path) -> Callable[..., TrainSpectrumSettings]:
    """`settings(**changes)` of a training on one picture."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "moth.png")

    def build(**changes: object) -> TrainSpectrumSettings:
        values = {"images.source": tmp_path / "moth.png", "images.size": 64, "base.path": str(tiny_folder("sd15"))}
        values |= {"run.out": tmp_path / "run", "run.device": "cpu", "run.dtype": "fp32", "run.preview_every": 0}
        values |= {
            "run.estimate_memory": False,
            "optimizer.steps": 30,
            "optimizer.batch_size": 4,
            "run.preview_steps": 1,
        }
        return load_spectrum_recipe(None, {**values, **changes})

    return build


def test_findings_name_material_work_and_cost(settings, tmp_path: Path) -> None:
    lines = list(examine(SpectrumTask(settings(**{"method.vectors": 3, "images.margin": 0.25}))))
    assert lines[0] == f"pictures: 1 in {tmp_path}, 0 files left out"
    assert lines[1] == "sizes: trained at 64 px, cached at 80 px"
    assert lines[2] == "stages: 10 with 3 vectors each, 960 learned numbers, start from common words"
    assert lines[3] == "work: 30 steps of 4 pictures, 12.0 pictures for every stage"
    assert lines[4].startswith("disk: about 0 MiB needed") and lines[5].startswith("first forward pass: loss ")
    assert len(lines) == 6 and not (tmp_path / "run").exists()


def test_memory_is_estimated_where_asked(settings) -> None:
    (line,) = [
        one for one in examine(SpectrumTask(settings(**{"run.estimate_memory": True}))) if one.startswith("memory")
    ]
    assert "frozen weights" in line and "activations" in line


def test_a_run_gets_a_first_preview(settings, tmp_path: Path) -> None:
    setup = prepare(SpectrumTask(settings(**{"run.preview_every": 10, "method.stages": 2})))
    run = RunFolder.create(tmp_path / "run")
    report = examine_setup(setup, run)
    assert any("step-0000000.png in " in line for line in report.lines)
    assert (run.samples / "step-0000000.png").is_file()


def test_a_full_disk_is_told_beforehand(settings, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 1000))
    with pytest.raises(BestiaryError, match=r"has 0 MiB free, this training needs about 0 MiB for states and previews"):
        list(examine(SpectrumTask(settings())))


def test_a_loss_that_is_not_finite_is_told_beforehand(settings) -> None:
    setup = prepare(SpectrumTask(settings()))
    with torch.no_grad():
        for row in setup.objective.table.rows:
            row.fill_(float("nan"))
    with pytest.raises(BestiaryError, match='gives a loss of nan: set run.dtype = "fp32", or use another base model'):
        examine_setup(setup, None)
