"""Tests of `bestiary demo train-base`: settings, whole runs on a handful of drawings, resume."""

import json

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.base_model.model_parts import load_base_model
from bestiary.trainer.base_model.train_base import main, parse_settings, sample_captions, stage_plans, train_base

TINY = {
    "pictures": 64, "latent_pictures": 4, "vae_steps": 2, "vae_batch": 2, "denoiser_steps": 2, "denoiser_batch": 2, "save_every": 2,
    "compile": False, "device": "cpu", "dtype": "float32", "workers": 1,
}  # fmt: skip


def test_faulty_settings_are_all_named():
    with pytest.raises(BestiaryError, match=r"pictures = 3: .*; device = 'gpu': "):
        parse_settings({"pictures": 3, "device": "gpu"})
    with pytest.raises(BestiaryError, match=r"colour = 1: Extra inputs"):
        parse_settings({"colour": 1})


def test_plans_follow_the_settings():
    first, second = stage_plans(parse_settings(TINY | {"hours": 1.0}))
    assert (first.steps, first.batch, second.steps, second.batch) == (2, 2, 2, 2)
    assert first.dtype == torch.float32 and not first.compiled and first.deadline is not None
    assert stage_plans(parse_settings(TINY | {"dtype": "bfloat16"}))[0].dtype == torch.bfloat16


def test_sample_captions_hold_held_out_species_too():
    captions = sample_captions(0)
    assert len(captions) == 16 and captions == sample_captions(0)
    assert all(caption.startswith("a photo of a creature with ") for caption in captions)


@pytest.mark.train
def test_a_run_leaves_a_model_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("bestiary.trainer.base_model.train_base.sample_captions", lambda seed: ["a bird"])
    monkeypatch.setattr("bestiary.trainer.base_model.autoencoder.MEASURED_PICTURES", 2)
    out, work = tmp_path / "base", tmp_path / "base.work"
    settings = parse_settings(TINY)
    train_base(settings.model_copy(update={"vae_steps": 2, "hours": 1e-9}), out)  # time is up after one step
    assert (work / "autoencoder.pt").exists() and not out.exists()
    train_base(settings, out)
    assert (out / "model_index.json").exists() and (work / "samples" / "step-000002.png").exists()
    lines = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    assert sum("hardware" in line for line in lines) == 2
    assert [line["stage"] for line in lines if "psnr" in line or "bytes" in line].count("export") == 1
    before = load_base_model(out).denoiser.conv_in.weight
    train_base(settings, out)  # nothing left to do
    assert torch.equal(before, load_base_model(out).denoiser.conv_in.weight)
    with pytest.raises(BestiaryError, match=r"contains a run with seed = 1, but seed = 2 was requested"):
        train_base(settings.model_copy(update={"seed": 2}), out)


def test_the_command_names_an_unusable_value(tmp_path):
    with pytest.raises(BestiaryError, match=r"vae_steps = 'many'"):
        main(["--out", str(tmp_path / "x"), "--vae-steps", "many"])
