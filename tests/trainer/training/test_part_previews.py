"""Preview sheets: varied pictures, the same every time, real above made, one heat map per part and picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.trainer.learning.parts.preview_sheets import varied_rows
from bestiary.trainer.learning.parts.settings import load_recipe
from bestiary.trainer.learning.pictures.contact_sheet import PREVIEW_TILE
from bestiary.trainer.learning.run.run_folder import RunFolder
from bestiary.trainer.training.previews import Previews
from bestiary.trainer.training.train_parts import PartTask
from bestiary.trainer.training.training_setup import TrainingSetup, prepare
from PIL import Image


@pytest.fixture(scope="module")
def setup(tmp_path_factory, make_discovery, tiny_folder) -> TrainingSetup:
    found = make_discovery(tmp_path_factory.mktemp("previews"))
    flags = {
        "discovery.folder": found, "base.path": str(tiny_folder("bestiary-demo")), "images.size": 64, "run.device": "cpu",
        "run.dtype": "fp32", "run.preview_every": 1, "run.preview_count": 3, "run.preview_steps": 1, "lora.rank": 2,
    }  # fmt: skip
    return prepare(PartTask(load_recipe(None, flags)))


def test_both_sheets_are_written(setup: TrainingSetup, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    previews = Previews(setup, run)
    previews.write(12)
    sheet = Image.open(run.samples / "step-0000012.png")
    attention = Image.open(run.samples / "step-0000012-attention.png")
    assert sheet.width > 3 * PREVIEW_TILE and sheet.height > 2 * PREVIEW_TILE and attention.height > 3 * PREVIEW_TILE
    first = (run.samples / "step-0000012.png").read_bytes()
    previews.write(12)
    assert (run.samples / "step-0000012.png").read_bytes() == first


def test_previews_leave_the_training_as_it_was(setup: TrainingSetup, tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    Previews(setup, RunFolder.create(tmp_path / "run")).write(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in setup.objective.parameters())


def test_rows_are_varied() -> None:
    codes = np.array([[0, 0, 0], [0, 0, 0], [1, 0, -1], [1, 1, 0], [2, 2, 2]])
    assert varied_rows(codes, 3) == [0, 4, 3]
    assert sorted(varied_rows(codes, 99)) == [0, 1, 2, 3, 4]
