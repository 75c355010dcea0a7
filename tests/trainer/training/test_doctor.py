"""The doctor's findings, and what it refuses."""

import shutil
from collections import namedtuple

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.parts.settings import TrainPartsSettings, load_recipe
from bestiary.trainer.training.doctor import examine, examine_setup, state_bytes
from bestiary.trainer.training.train_parts import PartTask
from bestiary.trainer.training.training_setup import prepare


@pytest.fixture(scope="module")
def settings(tmp_path_factory, make_discovery, tiny_folder) -> TrainPartsSettings:
    folder = tmp_path_factory.mktemp("doctor")
    flags = {
        "discovery.folder": make_discovery(folder), "base.path": str(tiny_folder("bestiary-demo")), "images.size": 64,
        "run.device": "cpu", "run.dtype": "fp32", "run.preview_every": 0, "run.out": folder / "run", "lora.rank": 2,
    }  # fmt: skip
    return load_recipe(None, flags)


def test_findings_cover_pictures_sizes_disk_memory_and_one_forward_pass(settings) -> None:
    lines = list(examine(PartTask(settings)))
    text = "\n".join(lines)
    assert "pictures: 6 in " in text and "head 4, body 5, background 6" in text
    assert "tokens: 6, each in 1 to 6 pictures (median 2), 5 in fewer than 3" in text
    assert "trained at 64 px, cached at 64 px (0 MiB of latents), attention read at 8 x 8" in text
    assert "work: 1000 steps of 8 pictures, 1333.3 passes" in text
    assert "disk: about" in text and "memory: about" in text
    assert lines[-1].startswith("first forward pass: loss ") and "on cpu in torch.float32" in lines[-1]
    assert not settings.run.out.exists()


def test_a_disk_that_is_too_small_is_refused(settings, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(
        BestiaryError, match=r"has 0 MiB free, this training needs about \d+ MiB .*set run.out, run.keep_states"
    ):
        list(examine(PartTask(settings)))


def test_a_loss_that_is_not_finite_is_refused(settings) -> None:
    setup = prepare(
        PartTask(settings.model_copy(update={"run": settings.run.model_copy(update={"estimate_memory": False})}))
    )
    with torch.no_grad():
        setup.objective.projector.embedding.weight.fill_(torch.nan)
    with pytest.raises(BestiaryError, match='first forward pass gives a loss of nan: set run.dtype = "fp32"'):
        examine_setup(setup, None)


def test_a_state_holds_weights_moments_and_the_average(settings) -> None:
    setup = prepare(PartTask(settings))
    learned = sum(parameter.numel() for parameter in setup.objective.parameters())
    assert state_bytes(setup) == 12 * learned
