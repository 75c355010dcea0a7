"""Tests of what differs between the miniature's denoisers: times, noise, targets, weights, steps of sampling, files."""

import json

import pytest
import torch
from bestiary.concepts.denoiser.process import FlowProcess
from bestiary.trainer.base_model.denoiser_shapes import (
    LATENT_CHANNELS,
    SHAPES,
    add_noise,
    build_scheduler,
    snr_weights,
)
from bestiary.trainer.base_model.model_parts import SHARED_PARTS, build_base_model, export_base_model, load_base_model
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel


@pytest.fixture(scope="module")
def dit():
    return build_base_model(0, "dit")


def test_noise_is_added_as_the_scheduler_does():
    scheduler = build_scheduler()
    clean, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    times = torch.tensor([0, 400, 999])
    ours = add_noise(clean, noise, scheduler.alphas_cumprod[times])
    theirs = scheduler.add_noise(clean, noise, times)
    torch.testing.assert_close(ours, theirs)


def test_weights_clamp_the_signal_to_noise_ratio():
    alphas = torch.tensor([0.99, 5 / 6, 0.5, 0.01])
    ours = snr_weights(alphas)
    torch.testing.assert_close(ours, torch.tensor([5 / 99, 1.0, 1.0, 1.0]))
    lifted = snr_weights(alphas, floor=0.5)
    torch.testing.assert_close(lifted, torch.tensor([5 / 99, 1.0, 1.0, 49.5]))


def test_the_transformer_is_the_small_stable_diffusion_3_that_starts_at_zero(dit):
    assert isinstance(dit.denoiser, SD3Transformer2DModel)
    config = dit.denoiser.config
    assert (config.num_layers, config.num_attention_heads, config.attention_head_dim, config.patch_size) == (
        6,
        3,
        64,
        2,
    )
    assert sum(p.numel() for p in dit.denoiser.parameters()) == 7_777_184
    block = dit.denoiser.transformer_blocks[-1]
    for linear in (block.norm1.linear, block.norm1_context.linear, dit.denoiser.norm_out.linear, dit.denoiser.proj_out):
        assert not linear.weight.any() and not linear.bias.any()
    assert dit.text_encoder.text_projection.weight.shape == (128, 128)


def test_training_times_of_the_transformer_favour_the_middle_and_repeat():
    times = SHAPES["dit"].draw_times(4000, torch.Generator().manual_seed(1))
    assert torch.equal(times, SHAPES["dit"].draw_times(4000, torch.Generator().manual_seed(1)))
    shares = torch.histc(times, 10, 0, 1) / 4000
    # the shares of ten equal stages under a logit-normal draw with mean 0 and spread 1
    theirs = torch.tensor([0.013, 0.069, 0.115, 0.145, 0.157, 0.158, 0.144, 0.116, 0.069, 0.014])
    torch.testing.assert_close(shares, theirs, atol=0.02, rtol=0)


def test_the_transformer_predicts_the_flow_at_the_level_that_diffusers_has():
    shape, scheduler = SHAPES["dit"], FlowMatchEulerDiscreteScheduler(shift=3.0)
    clean, noise = torch.randn(2, LATENT_CHANNELS, 4, 4), torch.randn(2, LATENT_CHANNELS, 4, 4)
    places = torch.tensor([100, 700])
    times = (1000 - places) / 1000  # the scheduler's tables fall from pure noise
    theirs = scheduler.scale_noise(clean, scheduler.timesteps[places], noise)
    torch.testing.assert_close(shape.noised(clean, noise, times), theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(shape.target(clean, noise), noise - clean) and shape.weights(times).tolist() == [1, 1]


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_a_sampling_with_the_true_prediction_ends_at_the_picture(name):
    shape = SHAPES[name]
    clean, noise = torch.randn(1, LATENT_CHANNELS, 4, 4), torch.randn(1, LATENT_CHANNELS, 4, 4)
    x = noise if name == "dit" else shape.noised(clean, noise, torch.tensor([951]))
    for _, advance in shape.sampling(20):
        x = advance(x, shape.target(clean, noise))
    # DDIM's last step leaves the noise of timestep 0
    torch.testing.assert_close(x, clean, atol=1e-4 if name == "dit" else 0.15, rtol=0)


def test_an_export_of_the_transformer_shares_autoencoder_and_tokenizer(dit, tmp_path):
    with torch.no_grad():
        dit.denoiser.proj_out.weight.normal_(0, 0.1)
    size = export_base_model(dit, 1.0, tmp_path / "dit")
    assert size <= 20_000_000 and not (tmp_path / "dit" / "vae").exists()
    assert json.loads((tmp_path / "dit" / "bestiary.json").read_text()) == {"backbone": "bestiary-demo-dit"}
    assert FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "dit" / "scheduler").config.shift == 3.0
    loaded = load_base_model(tmp_path / "dit")
    assert loaded.shape.name == "dit"
    shipped = load_base_model(SHARED_PARTS)
    assert torch.equal(loaded.autoencoder.encoder.layers[0].weight, shipped.autoencoder.encoder.layers[0].weight)
    assert loaded.tokenizer.get_vocab() == dit.tokenizer.get_vocab()
    ours, theirs = loaded.denoiser.proj_out.weight, dit.denoiser.proj_out.weight
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_the_flow_is_that_of_stable_diffusion_3():
    assert SHAPES["dit"].process == FlowProcess(3.0, draw="logit_normal")
