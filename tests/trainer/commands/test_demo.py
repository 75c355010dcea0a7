"""`bestiary demo train-base` as typed; the demo itself is in test_demo_job.py."""

import pytest
from bestiary.trainer.__main__ import main
from bestiary.trainer.base_model import train_base


@pytest.fixture
def trained(monkeypatch):
    calls = []
    monkeypatch.setattr(train_base, "train_base", lambda settings, out: calls.append((settings, out)))
    return calls


def test_settings_left_out_are_those_of_the_shipped_model(trained, tmp_path, capsys):
    assert main(["demo", "train-base", "--out", str(tmp_path / "base")]) == 0
    assert trained == [(train_base.TrainBaseSettings(), tmp_path / "base")]
    assert capsys.readouterr().out == f"wrote {tmp_path / 'base'}\n"


def test_options_reach_the_training(trained, tmp_path):
    options = ["--seed", "4", "--hours", "0.5", "--dtype", "bf16", "--device", "cpu", "--set", "vae_steps=3"]
    assert main(["demo", "train-base", "--out", str(tmp_path), *options]) == 0
    settings = trained[0][0]
    assert (settings.seed, settings.hours, settings.dtype, settings.vae_steps) == (4, 0.5, "bfloat16", 3)


@pytest.mark.parametrize("option", [["--shape", "dit"], ["--set", "shape=dit"]])
def test_a_shape_brings_its_own_learning_rate(trained, tmp_path, option):
    assert main(["demo", "train-base", "--out", str(tmp_path), *option]) == 0
    assert (trained[0][0].shape, trained[0][0].denoiser_learning_rate) == ("dit", 6e-4)
    faster = ["--set", "denoiser_learning_rate=0.002"]
    assert main(["demo", "train-base", "--out", str(tmp_path), *option, *faster]) == 0
    assert trained[1][0].denoiser_learning_rate == 0.002


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "mmdit"], "--shape 'mmdit'"),
        (["--hours", "0"], "--hours 0.0"),
        (["--set", "vae_setps=3"], "--vae-setps '3'"),
        (["--dtype", "fp16"], "--dtype 'fp16'"),
        (["--seed", "-1"], "--seed -1"),
    ],
)
def test_wrong_settings_are_one_line(trained, options, message, capsys):
    assert main(["demo", "train-base", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not trained
