"""Tests of the autoencoder's stage: drawings on disk, loss, fitting, cached latents."""

import numpy as np
import pytest
import torch
from bestiary.trainer.base_model.autoencoder import (
    SHARD,
    cache_latents,
    draw_pictures,
    draw_training_picture,
    fit_autoencoder,
    latent_scale,
    pick_pictures,
    reconstruction_loss,
    reconstruction_psnr,
    to_tensor,
)
from bestiary.trainer.base_model.denoiser_shapes import LATENT_CHANNELS
from bestiary.trainer.base_model.model_parts import LATENT_NOISE, build_autoencoder
from bestiary.trainer.base_model.training_state import RunLog, StagePlan, StageState


def _plan(**changes) -> StagePlan:
    return StagePlan(**({"seed": 0, "steps": 4, "batch": 2, "save_every": 100, "dtype": torch.float32} | changes))


class _Copies(torch.nn.Module):
    """An autoencoder without loss, or with a fixed error on every pixel."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.error = error

    def encode(self, images):
        return type("Encoded", (), {"latents": images})()

    def decode(self, latents):
        return type("Decoded", (), {"sample": latents + self.error})()


def test_drawings_are_made_once_and_survive_an_interruption(tmp_path):
    first = draw_pictures(tmp_path, seed=5, count=3, workers=1)
    assert first[0].shape == (3, 128, 128, 3) and first[0].dtype == np.uint8
    np.testing.assert_array_equal(first[0][2], draw_training_picture(5, 2).image)
    stamp = (tmp_path / "pictures-0000.npy").stat().st_mtime_ns
    draw_pictures(tmp_path, seed=5, count=3, workers=1)
    assert (tmp_path / "pictures-0000.npy").stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == ["pictures-0000.npy"]


def test_pictures_are_found_across_shards():
    shards = [np.zeros((SHARD, 1, 1, 3), np.uint8), np.ones((5, 1, 1, 3), np.uint8)]
    picked = pick_pictures(shards, torch.tensor([0, SHARD + 4]))
    assert picked[:, 0, 0, 0].tolist() == [0, 1]


def test_pixels_run_from_minus_one_to_one():
    images = to_tensor(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1).repeat(3, axis=3))
    assert images.shape == (2, 3, 1, 1)
    assert images[0].eq(-1).all() and images[1].eq(1).all()


def test_psnr_of_a_known_error():
    images = torch.zeros(2, 3, 16, 16)
    assert reconstruction_psnr(_Copies(0.2), images) == pytest.approx(20.0, abs=1e-3)  # error 0.1 of the range 1


def test_the_loss_is_zero_only_for_equal_pictures_and_sees_edges():
    images = torch.rand(1, 3, 32, 32)
    assert float(reconstruction_loss(images, images)) == 0
    shifted = images + 0.1
    noisy = images + 0.1 * (torch.rand_like(images) > 0.5).float().mul(2).sub(1)
    pixels_alone = 0.1 + 4 * 0.1**2
    assert float(reconstruction_loss(images, shifted)) == pytest.approx(pixels_alone + 0.1)  # and the tone, no edges
    assert float(reconstruction_loss(images, noisy)) > pixels_alone + 0.08  # and edges, hardly any tone


def test_a_fit_logs_its_psnr_and_resumes_exactly(tmp_path):
    shards = draw_pictures(tmp_path / "pictures", seed=1, count=4, workers=1)

    def fit(path, steps_at_a_time):
        torch.manual_seed(0)
        for until in steps_at_a_time:
            autoencoder = build_autoencoder()
            state = StageState({"autoencoder": autoencoder}, path, learning_rate=1e-3, ema_decay=0.9)
            state.load()
            # the schedule depends on the steps in all, so a stop is a deadline in the past, not fewer steps
            plan = _plan(steps=2, deadline=None if until == 2 else 0.0)
            log = RunLog(tmp_path / "log.jsonl")
            fit_autoencoder(autoencoder, state, shards, log, plan, magnitude_weight=1e-4)
        return state

    theirs = fit(tmp_path / "whole.pt", [2])
    ours = fit(tmp_path / "split.pt", [1, 2])
    assert ours.step == theirs.step == 2
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters, theirs.parameters, strict=True))
    assert "psnr" in (tmp_path / "log.jsonl").read_text()


def test_latents_are_cached_and_read_back(tmp_path):
    shards = draw_pictures(tmp_path / "pictures", seed=1, count=3, workers=1)
    autoencoder = build_autoencoder().eval()
    ours = cache_latents(autoencoder, shards, tmp_path / "latents", _plan())
    assert ours.shape == (3, LATENT_CHANNELS, 16, 16) and ours.dtype == torch.float16
    with torch.no_grad():
        theirs = autoencoder.encode(to_tensor(np.asarray(shards[0]))).latents
    torch.testing.assert_close(ours.float(), theirs, atol=2e-3, rtol=2e-3)
    assert torch.equal(ours, cache_latents(build_autoencoder(), shards, tmp_path / "latents", _plan()))


def test_the_scale_gives_unit_deviation_noise_included():
    latents = 3 * torch.randn(64, 2, 16, 16)
    noisy = latents + LATENT_NOISE * torch.randn_like(latents)
    assert float((noisy * latent_scale(latents)).std()) == pytest.approx(1, abs=0.01)
