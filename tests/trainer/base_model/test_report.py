"""Tests of the base model's report: what is measured, what the card says."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from bestiary.concepts.files.pack import ROOT
from bestiary.demo.attribute_judge import AttributeJudge
from bestiary.demo.species import HELD_OUT_SPECIES, PARTS, random_species
from bestiary.trainer.base_model import report as base_model_report
from bestiary.trainer.base_model.model_parts import build_base_model, export_base_model, load_base_model
from bestiary.trainer.base_model.report import (
    BaseModelFigures,
    fresh_drawings,
    generated_scores,
    held_out_loss,
    main,
    model_card,
    training_facts,
)
from bestiary.trainer.base_model.train_base import TrainBaseSettings

SHARES = {"color": 0.91, "pattern": 0.82, "shape": 0.73, "all_three": 0.64}
FIGURES = BaseModelFigures(120, 27.5, 0.0625, {"random": SHARES, "held_out": SHARES}, SHARES, {"wing": SHARES})


@pytest.fixture(scope="module")
def model():
    built = build_base_model(0)
    built.autoencoder.register_to_config(scaling_factor=1.0)
    return built


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "settings.json").write_text(TrainBaseSettings(seed=7).model_dump_json())
    lines = [
        {"stage": "start", "hardware": "an abacus"},
        {"stage": "autoencoder", "step": 250, "psnr": 20.0, "seconds": 60},
        {"stage": "autoencoder", "step": 500, "psnr": 25.0, "seconds": 120},
        {"stage": "denoiser", "step": 50, "loss": 0.2, "grad": 1.0},
        {"stage": "export", "step": 90, "bytes": 1, "seconds": 630},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_fresh_drawings_repeat_and_come_with_full_captions():
    images, captions = fresh_drawings(2, seed=5)
    assert images.shape == (2, 3, 128, 128) and -1 <= float(images.min()) < float(images.max()) <= 1
    assert all(f" {part} " in f"{caption} " for caption in captions for part in PARTS)
    assert torch.equal(images, fresh_drawings(2, seed=5)[0])


def test_a_denoiser_that_answers_nothing_loses_the_weighted_noise(model, monkeypatch):
    monkeypatch.setattr(base_model_report, "predict", lambda model, noisy, *rest: torch.zeros_like(noisy))
    images, captions = fresh_drawings(2, seed=5)
    loss = held_out_loss(model, images, captions)
    assert 0.6 < loss < 0.95  # unit noise times the mean of min(SNR, 5) / SNR over the eight timesteps
    assert loss == held_out_loss(model, images, captions)


def test_a_denoiser_that_knows_the_noise_loses_nothing(model, monkeypatch):
    drawn = []
    monkeypatch.setattr(model.shape, "noised", lambda clean, noise, times: drawn.append(noise) or noise)
    monkeypatch.setattr(base_model_report, "predict", lambda model, noisy, *rest: noisy)
    images, captions = fresh_drawings(2, seed=5)
    assert held_out_loss(model, images, captions) == 0.0
    assert len(drawn) == 8


def test_generated_pictures_are_judged_against_their_own_species(model, monkeypatch):
    asked = []

    def remember(model, captions, scale, **options):
        asked.extend(captions)
        return np.zeros((len(captions), 128, 128, 3), np.uint8)

    monkeypatch.setattr(base_model_report, "sample_pictures", remember)
    species = list(HELD_OUT_SPECIES[:2])
    torch.manual_seed(0)
    judge = AttributeJudge((32, 32, 32, 32))
    scores, pictures = generated_scores(model, judge, species, steps=1, guidance=1.0, seed=0)
    assert pictures.shape == (2, 128, 128, 3)
    assert f"{species[1].look('tail').color} {species[1].look('tail').pattern}" in asked[1]
    assert 0 <= scores.color <= 1 and set(scores.by_part) == set(PARTS)


def test_facts_are_those_of_the_last_lines(work):
    facts = training_facts(work)
    assert facts["autoencoder"] == {"step": 500, "minutes": 2.0}
    assert facts["export"] == {"step": 90, "minutes": 10.5}
    assert facts["hardware"] == "an abacus" and facts["settings"].seed == 7


def test_the_card_states_figures_settings_and_history(work):
    (work / "history.md").write_text("It was stopped twice.\n")
    card = model_card(FIGURES, training_facts(work), 18_500_000)
    for words in (
        "of 120 fresh drawings: 27.50 dB", "0.0625", "18.50 MB", "seed 7", "an abacus", "500 steps of 8 crops", "44000 drawings, 2.0 minutes",
        "90 steps of 32 on the first 44000 drawings, 10.5 minutes", "It was stopped twice.",
        "| colours | 0.910 | 0.910 | 0.100 | 0.910 |", "| all three at once | 0.640 | 0.640 | 0.004 | - |", "| wing | 0.910 | 0.820 | 0.730 |",
    ):  # fmt: skip
        assert words in card
    assert "Aim for colours: 0.9, reached.\nAim for patterns: 0.8, reached." in card
    worse = replace(FIGURES, generated={"random": SHARES | {"pattern": 0.79}, "held_out": SHARES})
    assert "Aim for patterns: 0.8, missed." in model_card(worse, training_facts(work), 1)


def test_the_card_of_the_transformer_names_no_autoencoder_training(work):
    settings = TrainBaseSettings.model_validate({"shape": "dit", "latent_pictures": 2000})
    (work / "settings.json").write_text(settings.model_dump_json())
    lines = (work / "log.jsonl").read_text().splitlines(keepends=True)
    (work / "log.jsonl").write_text("".join(line for line in lines if "autoencoder" not in line))
    card = model_card(FIGURES, training_facts(work), 16_900_000)
    for words in (
        "train-base --shape dit", "SD3Transformer2DModel", "16.90 MB", "90 steps of 32 on the first 2000 drawings, 10.5 minutes",
        "- learning rate 0.0006, falling over the last 40 %", "flow loss (mean over eight times) on fresh", "25 Euler steps",
    ):  # fmt: skip
        assert words in card
    assert "crops" not in card and "min-SNR" not in card and "Aim for colours: 0.9, reached." in card


@pytest.mark.train
def test_the_command_measures_a_folder_and_leaves_card_figures_and_sheet(model, work, tmp_path, monkeypatch):
    monkeypatch.setattr(AttributeJudge, "load", classmethod(lambda cls: cls()))
    monkeypatch.setattr(base_model_report, "SAMPLING_STEPS", 1)
    folder = tmp_path / "model"
    export_base_model(model, 1.0, folder)
    main(["--model", str(folder), "--work", str(work), "--pictures", "2"])
    figures = json.loads((work / "figures.json").read_text())
    assert set(figures["generated"]) == {"random", "held_out"} and figures["held_out_loss"] > 0
    assert f"{figures['reconstruction_psnr']:.2f} dB" in (folder / "README.md").read_text()
    assert (work / "report.png").exists()


@pytest.mark.parametrize("name", ["base_model", "base_model_dit"])
def test_the_shipped_models_draw_the_colours_of_their_captions(name):
    """Few pictures in few steps, far above chance (0.1); the cards hold the figures of many."""
    rng = np.random.default_rng(5)
    species = [random_species(rng) for _ in range(6)]
    shipped = load_base_model(ROOT / "demo" / name)
    scores, _ = generated_scores(shipped, AttributeJudge.load(), species, steps=10, guidance=3.0, seed=5)
    assert scores.color > 0.5
