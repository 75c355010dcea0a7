"""What the command line prepares for a spectrum: pictures, latents that are kept, and faults before anything costs time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.spectrum.spectrum_settings import load_spectrum_recipe
from bestiary.trainer.training import training_setup
from bestiary.trainer.training.train_spectrum import SpectrumTask
from bestiary.trainer.training.training_setup import TrainingSetup
from bestiary.trainer.training.training_setup import prepare as prepare_setup
from PIL import Image


@pytest.fixture
def prepare(tiny_folder: Callable, tmp_path: Path) -> Callable[..., TrainingSetup]:
    """`prepare(**changes)` -> a setup on two pictures in `tmp_path/pictures`."""
    (tmp_path / "pictures").mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (90, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")

    def build(**changes: object) -> TrainingSetup:
        values = {"images.source": tmp_path / "pictures", "images.size": 64, "base.path": str(tiny_folder("sd15"))}
        values |= {"run.out": tmp_path / "run", "run.device": "cpu", "run.dtype": "fp32", "run.preview_every": 0}
        return prepare_setup(SpectrumTask(load_spectrum_recipe(None, {**values, **changes})))

    return build


def test_latents_are_encoded_once(prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare()
    monkeypatch.setattr(training_setup, "open_cache", _counting(training_setup.open_cache, calls := [], opened := []))
    again = prepare(**{"method.stages": 3})
    assert calls == [] and len(opened) == 1  # nothing was left to encode
    assert torch.equal(first.batches.draw(0, 0).moments, again.batches.draw(0, 0).moments)
    prepare(**{"images.flip": True})
    assert sum(calls) == 4  # two pictures, two views


def _counting(open_cache: Callable, calls: list[int], opened: list[object]) -> Callable:
    def open_counting(folder: Path, spec: object, paths: list, load_encoder: Callable, **options: object) -> object:
        opened.append(spec)

        def load() -> Callable:
            encode = load_encoder()
            return lambda images: calls.append(len(images)) or encode(images)

        return open_cache(folder, spec, paths, load, **options)

    return open_counting


def test_margin_and_mirror_are_part_of_the_cache(prepare) -> None:
    setup = prepare(**{"images.margin": 0.25, "images.flip": True})
    assert (setup.spec.image_size, setup.spec.latent_size, setup.spec.views) == (80, 10, 2)
    assert setup.image_size == 64 and setup.batches.draw(0, 0).moments.shape[-1] == 8
    assert [name for name, _, _ in setup.spec.pictures] == ["0.png", "1.png"] == list(setup.pictures.names)


def test_words_are_looked_at_before_pictures_are_encoded(prepare, tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match="holds no word the tokenizer knows"):
        prepare(**{"method.initial_words": "  "})
    assert not (tmp_path / "latents").exists()


def test_the_autoencoder_is_dropped_unless_previews_need_it(prepare) -> None:
    kept = prepare(**{"run.preview_every": 5})
    assert kept.denoiser.images.decode(torch.zeros(1, 4, 8, 8)).shape == (1, 3, 64, 64)
    with pytest.raises(BestiaryError, match="autoencoder"):
        prepare().denoiser.images.decode(torch.zeros(1, 4, 8, 8))


def test_one_process_alone() -> None:
    task = SpectrumTask(load_spectrum_recipe(None))
    task.check_processes(1)
    with pytest.raises(BestiaryError, match="3 processes were started, but a spectrum is learned by one"):
        task.check_processes(3)
