"""Previews of the command line: one file per step, the same pictures every time, stages that say nothing look like none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.spectrum.staged_conditioning import encode_staged
from bestiary.trainer.learning.run.run_folder import RunFolder
from bestiary.trainer.learning.spectrum.spectrum_objective_setup import build_spectrum
from bestiary.trainer.learning.spectrum.spectrum_settings import load_spectrum_recipe
from bestiary.trainer.learning.spectrum.spectrum_sheet import sheet_prompts, sheet_seeds
from bestiary.trainer.training.previews import Previews
from bestiary.trainer.training.train_spectrum import SpectrumTask
from bestiary.trainer.training.training_setup import TrainingSetup, prepare
from PIL import Image


@pytest.fixture
def setup(tiny_folder: Callable, tmp_path: Path) -> TrainingSetup:
    """Three pictures, four stages, two pictures on a sheet, two sampling steps."""
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    values = {"images.source": tmp_path / "pictures", "images.size": 64, "base.path": str(tiny_folder("bestiary-demo"))}
    values |= {"run.out": tmp_path / "run", "run.device": "cpu", "run.dtype": "fp32", "run.preview_every": 5}
    values |= {"method.stages": 4, "run.preview_count": 2, "run.preview_steps": 2, "method.initial_words": "red"}
    with torch.random.fork_rng():
        return prepare(SpectrumTask(load_spectrum_recipe(None, values)))


def test_a_sheet_is_written_and_is_the_same_again(setup: TrainingSetup, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    previews, state = Previews(setup, run), torch.get_rng_state()
    previews.write(7)
    first = (run.samples / "step-0000007.png").read_bytes()
    previews.write(7)
    assert (run.samples / "step-0000007.png").read_bytes() == first
    assert [path.name for path in run.samples.iterdir()] == ["step-0000007.png"]
    assert torch.equal(torch.get_rng_state(), state)  # training draws what it would have drawn
    # two real ones, two of the whole, four stages: two rows of five
    assert Image.open(run.samples / "step-0000007.png").height // 160 == 2


def test_stages_alone_are_the_whole_where_they_say_the_same(setup: TrainingSetup, tmp_path: Path) -> None:
    previews = Previews(setup, RunFolder.create(tmp_path / "run"))
    learned = build_spectrum(setup.training, 0)
    plain = replace(learned, embeddings={n: t.expand(4, -1, -1).clone() for n, t in learned.neutral.items()})
    prompts = sheet_prompts(plain, "a photo of a {}", 2, [0, 3])
    made = previews.sample(encode_staged(setup.denoiser, prompts), sheet_seeds(2, [0, 3]), steps=2)
    assert made.shape == (4, 3, 64, 64) and 0 <= float(made.min()) <= float(made.max()) <= 1
    assert torch.allclose(made[2], made[0], atol=1e-5) and torch.allclose(made[3], made[0], atol=1e-5)
    assert not torch.allclose(made[1], made[0], atol=1e-3)  # another seed
