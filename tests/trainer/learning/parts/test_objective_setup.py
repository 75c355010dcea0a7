"""From settings to the loop: its own settings, and batches of one process where nobody says otherwise."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.parts.objective_setup import build_batches, check_layers
from bestiary.trainer.learning.parts.settings import load_recipe
from bestiary.trainer.learning.run.run_settings import loop_settings
from bestiary.trainer.training.train_parts import PartTask
from bestiary.trainer.training.training_setup import prepare


@pytest.fixture
def flags(tmp_path: Path, make_discovery: Callable[..., Path], tiny_folder: Callable[[str], Path]) -> dict[str, object]:
    return {
        "discovery.folder": make_discovery(tmp_path), "base.path": str(tiny_folder("bestiary-demo")), "images.size": 64,
        "run.device": "cpu", "run.dtype": "fp32", "run.preview_every": 3, "optimizer.steps": 7, "optimizer.ema": 0.5,
    }  # fmt: skip


def test_the_loop_gets_what_the_recipe_says(flags: dict[str, object]) -> None:
    settings = load_recipe(None, flags)
    setup = prepare(PartTask(settings))
    loop = loop_settings(settings.optimizer, settings.run, setup.denoiser)
    assert (loop.steps, loop.accumulation, loop.ema, loop.preview_every) == (7, 4, 0.5, 3)
    assert not loop.half_precision  # float32 needs no scaled loss


def test_batches_of_one_process(flags: dict[str, object]) -> None:
    settings = load_recipe(None, flags)
    setup = prepare(PartTask(settings))
    again = build_batches(settings, setup.pictures.names, setup.pictures.kinds, setup.cache, setup.denoiser)
    ours, theirs = again.draw(3, 1), setup.batches.draw(3, 1)
    assert ours.names == theirs.names and torch.equal(ours.noise, theirs.noise)
    assert settings.images.training_size(setup.denoiser.backbone) == 64


def test_unknown_layers_are_told(flags: dict[str, object]) -> None:
    setup = prepare(PartTask(load_recipe(None, flags)))
    with pytest.raises(BestiaryError, match=r"attention_loss.layers: nowhere do not exist in this model; it has down"):
        check_layers(load_recipe(None, flags | {"attention_loss.layers": ["nowhere"]}), setup.denoiser)
