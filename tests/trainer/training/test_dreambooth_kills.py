"""DreamBooth trainings killed at random moments: every saved state loads, the user's pictures stay as they are, and the result is the same."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bestiary.trainer.learning.dreambooth.dreambooth_settings import TrainDreamBoothSettings, load_dreambooth_recipe
from bestiary.trainer.learning.run.run_folder import CONFIG_NAME, RunFolder
from bestiary.trainer.training.tasks import resume_training
from bestiary.trainer.training.train_dreambooth import train_dreambooth
from PIL import Image

pytestmark = [pytest.mark.train, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]
STEPS = 12


def _pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(count)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def _settings(base: Path, thing: Path, kind: Path, out: Path) -> TrainDreamBoothSettings:
    values = {
        "images.instance": thing, "images.size": 64, "images.class_images": kind, "images.class_count": 6, "base.path": str(base),
        "run.out": out, "run.device": "cpu", "run.dtype": "fp32", "run.preview_every": 0, "run.estimate_memory": False, "run.tensorboard": False,
        "run.save_every": 1, "optimizer.steps": STEPS, "optimizer.batch_size": 1, "lora.rank": 2, "captions.instance_prompt": "a red bird",
        "captions.class_prompt": "a bird",
    }  # fmt: skip
    return load_dreambooth_recipe(None, values)


def _train_or_resume(settings: TrainDreamBoothSettings) -> Path:
    if (settings.run.out / CONFIG_NAME).is_file():
        return resume_training(settings.run.out).path
    # a run that was killed before it had a config holds nothing to go on with
    if settings.run.out.is_dir():
        assert not list(settings.run.out.glob("state/*"))
        settings.run.out.rename(settings.run.out.with_name(f"killed-{time.monotonic_ns()}"))
    return train_dreambooth(settings).path


def _killed(work: Callable[[], object], after: float) -> None:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(kills: int, tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    thing = _pictures(tmp_path / "thing", 2)
    own, other = _pictures(tmp_path / "kind", 4), _pictures(tmp_path / "other_kind", 4)
    theirs = {path.name: path.read_bytes() for path in own.iterdir()}
    started = time.monotonic()
    whole = train_dreambooth(_settings(tiny_folder("bestiary-demo"), thing, other, tmp_path / "whole"))
    duration = time.monotonic() - started
    settings = _settings(tiny_folder("bestiary-demo"), thing, own, tmp_path / "killed")
    rng = np.random.default_rng(kills)
    for _ in range(kills):
        _killed(lambda: _train_or_resume(settings), float(rng.uniform(0.05, 0.6)) * duration)
        assert {name: (own / name).read_bytes() for name in theirs} == theirs
        if (settings.run.out / CONFIG_NAME).is_file():
            run = RunFolder.open(settings.run.out)
            newest = run.newest_state()
            assert newest is None or (newest.step > 0 and newest.tensors)
    finished = _train_or_resume(settings)
    ours, expected = (_tensors(path) for path in (finished, whole.path))
    assert ours == expected
    assert {name: (own / name).read_bytes() for name in theirs} == theirs


def _tensors(path: Path) -> dict[str, bytes]:
    from safetensors.torch import load_file

    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}
