"""Tests of the denoiser's stage: noise, weights, captions of pictures, training, samples."""

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.demo.creatures import draw_creature
from bestiary.demo.species import random_species
from bestiary.trainer.base_model import denoiser_shapes
from bestiary.trainer.base_model.autoencoder import draw_training_picture
from bestiary.trainer.base_model.caption_reading import ReadingLoss
from bestiary.trainer.base_model.denoiser import (
    LatentSet,
    QuickAttention,
    QuickJointAttention,
    _read,
    cache_emphasis,
    decode_latents,
    fit_denoiser,
    part_emphasis,
    picture_truth,
    predict,
    predict_and_read,
    sample_latents,
    sample_pictures,
    save_sheet,
)
from bestiary.trainer.base_model.denoiser_shapes import LATENT_CHANNELS
from bestiary.trainer.base_model.model_parts import LATENT_NOISE, build_base_model, encode_captions
from bestiary.trainer.base_model.training_state import RunLog, StagePlan, StageState
from PIL import Image


@pytest.fixture(scope="module")
def model():
    built = build_base_model(0)
    for module in (built.autoencoder, built.denoiser, built.text_encoder):
        module.eval()
    return built


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "quick", "times"), [("unet", QuickAttention, [5, 900]), ("dit", QuickJointAttention, [0.2, 0.9])]
)
def test_quick_attention_gives_what_diffusers_gives(name, quick, times):
    built = build_base_model(1, name)
    for parameter in built.denoiser.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))  # a transformer starts at zero
    noisy, times = torch.randn(2, LATENT_CHANNELS, 16, 16), torch.tensor(times)
    ids = encode_captions(built.tokenizer, ["a red bird", ""])
    theirs = predict(built, noisy, times, ids)
    assert theirs.std() > 0.01
    built.denoiser.set_attn_processor(quick())
    torch.testing.assert_close(predict(built, noisy, times, ids), theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("name", "times"), [("unet", [5, 900]), ("dit", [0.2, 0.9])])
def test_slots_of_single_words_are_the_plain_caption(name, times):
    built = build_base_model(1, name)
    noisy, times = torch.randn(2, LATENT_CHANNELS, 16, 16), torch.tensor(times)
    ids = encode_captions(built.tokenizer, ["a red bird", ""])
    slots = ReadingLoss(built).merge(ids, torch.zeros(2, dtype=torch.bool))
    ours, context = predict_and_read(built, noisy, times, slots)
    encoded = built.text_encoder(input_ids=ids)
    torch.testing.assert_close(context, encoded.last_hidden_state, atol=1e-5, rtol=1e-4)
    if name == "dit":
        text = _read(built, slots)
        torch.testing.assert_close(text.pooled, encoded.text_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours, predict(built, noisy, times, ids), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("quick", [QuickAttention, QuickJointAttention])
def test_quick_attention_refuses_masks(quick):
    with pytest.raises(BestiaryError, match=r"attends without masks, got one of shape \(2, 4\)"):
        quick()(None, torch.zeros(2, 4, 8), None, torch.zeros(2, 4))


def test_the_truth_of_a_picture_is_known_without_drawing_it():
    rng = np.random.default_rng((3, 11))
    drawing = draw_creature(random_species(rng), rng)
    assert picture_truth(3, 11) == (drawing.species, drawing.scene)


def test_batches_are_scaled_and_repeatable():
    values = torch.randn(6, LATENT_CHANNELS, 4, 4).half()
    latents = LatentSet(values, 0.5, [])
    ours, theirs = (latents.batch(torch.tensor([1, 4]), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(ours, theirs)
    assert float((ours / 0.5 - values[[1, 4]].float()).std()) == pytest.approx(LATENT_NOISE, rel=0.3)


def test_small_parts_count_as_much_as_large_ones():
    labels = np.zeros((128, 128), np.uint8)
    labels[:64] = 1
    labels[64:72, :16] = 2  # two places of 256, one 64th of the other part
    weights = part_emphasis(labels).astype(float)
    assert weights.shape == (16, 16) and weights.mean() == pytest.approx(1, abs=2e-3)
    assert weights[8, 0] > 10 * weights[0, 0] > 0
    np.testing.assert_allclose(part_emphasis(np.zeros((128, 128), np.uint8)), 1)


def test_emphasis_is_computed_once_for_the_drawings_of_the_training_set(tmp_path):
    first = cache_emphasis(tmp_path, 3, 2)
    drawing = draw_training_picture(3, 1)
    np.testing.assert_array_equal(first[1].numpy(), part_emphasis(drawing.labels))
    (tmp_path / "emphasis-0000-2.npy").touch()
    stamp = (tmp_path / "emphasis-0000-2.npy").stat().st_mtime_ns
    assert torch.equal(cache_emphasis(tmp_path, 3, 2), first)
    assert (tmp_path / "emphasis-0000-2.npy").stat().st_mtime_ns == stamp


def test_errors_are_weighed_by_place():
    emphasis = torch.ones(2, 16, 16).half()
    emphasis[1, 0] = 3.0
    errors = torch.zeros(2, LATENT_CHANNELS, 16, 16)
    errors[:, :, 0] = 1.0
    ours = LatentSet(errors, 1.0, [], emphasis).weigh(errors, torch.tensor([0, 1]))
    torch.testing.assert_close(ours, torch.tensor([1 / 16, 3 / 16]))
    torch.testing.assert_close(LatentSet(errors, 1.0, []).weigh(errors, torch.tensor([0, 1])), torch.full((2,), 1 / 16))


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_training_saves_publishes_and_resumes_exactly(tmp_path, monkeypatch, name):
    monkeypatch.setattr(denoiser_shapes, "DIT_BLOCKS", 1)
    truths = [picture_truth(0, index) for index in range(4)]
    latents = LatentSet(torch.randn(4, LATENT_CHANNELS, 16, 16).half(), 1.0, truths)
    published = []

    def fit(path, stops):
        for deadline in stops:
            built = build_base_model(0, name)
            parts = {"denoiser": built.denoiser, "text_encoder": built.text_encoder}
            state = StageState(parts, path, learning_rate=1e-3, ema_decay=0.9)
            state.load()
            plan = StagePlan(0, 2, 2, 100, dtype=torch.float32, deadline=deadline)
            fit_denoiser(built, state, latents, RunLog(tmp_path / "log.jsonl"), plan, published.append)
        return state

    theirs = fit(tmp_path / "whole.pt", [None])
    ours = fit(tmp_path / "split.pt", [0.0, None])
    assert published == [2, 1, 2]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters, theirs.parameters, strict=True))


def test_a_loss_that_is_not_finite_stops_with_step_and_pictures(tmp_path):
    truths = [picture_truth(0, 0)]
    latents = LatentSet(torch.full((1, LATENT_CHANNELS, 16, 16), torch.nan), 1.0, truths)
    built = build_base_model(0)
    state = StageState({"denoiser": built.denoiser}, tmp_path / "x.pt", learning_rate=1e-3, ema_decay=0.9)
    plan = StagePlan(0, 2, 1, 100, dtype=torch.float32)
    with pytest.raises(FloatingPointError, match=r"denoiser loss is nan at step 0, pictures \[0\]"):
        fit_denoiser(built, state, latents, RunLog(tmp_path / "log.jsonl"), plan, lambda step: None)


def test_samples_repeat_by_seed_and_obey_the_caption_slot(model):
    ours, theirs = (sample_latents(model, ["a red bird", ""], steps=2, seed=4) for _ in range(2))
    assert ours.shape == (2, LATENT_CHANNELS, 16, 16)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, sample_latents(model, ["a red bird", ""], steps=2, seed=5))


def test_pictures_have_the_promised_form(model):
    pictures = sample_pictures(model, ["a bird"], 0.5, steps=1)
    assert pictures.shape == (1, 128, 128, 3) and pictures.dtype == np.uint8
    decoded = decode_latents(model, torch.zeros(1, LATENT_CHANNELS, 16, 16), 0.5)
    assert decoded.shape == (1, 128, 128, 3)


def test_a_sheet_holds_all_pictures_in_rows(tmp_path):
    pictures = np.stack([np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30)])
    save_sheet(pictures, 2, tmp_path / "deep" / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "deep" / "sheet.png"))
    assert sheet.shape == (8, 12, 3)
    assert (sheet[0, 0, 0], sheet[0, 6, 0], sheet[4, 0, 0], sheet[4, 6, 0]) == (10, 20, 30, 255)
