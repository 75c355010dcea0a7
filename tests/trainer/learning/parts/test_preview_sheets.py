"""What previews show: prompts with the tokens of each picture, and one heat map per part and picture."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bestiary.trainer.learning.parts.preview_sheets import preview_prompts, token_sheet
from bestiary.trainer.learning.parts.settings import load_recipe
from bestiary.trainer.learning.pictures.contact_sheet import PREVIEW_TILE, to_image
from bestiary.trainer.training.train_parts import PartTask
from bestiary.trainer.training.training_setup import TrainingSetup, prepare
from PIL import Image


@pytest.fixture(scope="module")
def setup(tmp_path_factory, make_discovery: Callable[..., Path], tiny_folder: Callable[[str], Path]) -> TrainingSetup:
    found = make_discovery(tmp_path_factory.mktemp("sheets"))
    flags = {
        "discovery.folder": found, "base.path": str(tiny_folder("bestiary-demo")), "images.size": 64, "run.device": "cpu",
        "run.dtype": "fp32", "run.preview_every": 0, "lora.rank": 2,
    }  # fmt: skip
    return prepare(PartTask(load_recipe(None, flags)))


def test_prompts_hold_the_shown_parts_only(setup: TrainingSetup) -> None:
    codes = torch.tensor([[0, 1, 0], [-1, 0, 0]])
    text = preview_prompts(setup.objective, codes, "bird")
    assert text.context.shape[0] == 2
    assert (text.columns[..., 0] >= 0).sum(1).tolist() == [3, 2]


def test_a_sheet_has_a_row_per_part(setup: TrainingSetup) -> None:
    batch = setup.batches.fixed([0, 1], 0.251)
    sheet = token_sheet(setup.objective, batch, ("head", "body", "background"), [Image.new("RGB", (64, 64))] * 2)
    assert sheet.width > 2 * PREVIEW_TILE and sheet.height > 3 * PREVIEW_TILE


def test_tensors_become_pictures() -> None:
    image = to_image(torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1).expand(3, 4, 6))
    assert image.size == (6, 4) and image.getpixel((0, 0)) == (0, 128, 255)
