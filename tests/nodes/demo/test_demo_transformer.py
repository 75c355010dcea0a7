"""Tests of the embedded transformer in ComfyUI's classes: parity with diffusers and transformers, on random weights of its shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError

CAPTION = "a red striped head, blue wing."


@pytest.fixture(scope="module")
def folder(comfy_modules: None, tmp_path_factory) -> Path:
    """A transformer with random weights everywhere; as built, its output is zero."""
    from bestiary.trainer.base_model.model_parts import build_base_model, export_base_model

    model = build_base_model(0, "dit")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    path = tmp_path_factory.mktemp("dit") / "base_model_dit"
    export_base_model(model, 1.0, path)
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    from bestiary.nodes.demo.demo_model import load_demo_model

    return load_demo_model(folder)


@pytest.fixture(scope="module")
def reference(folder):
    from bestiary.trainer.base_model.model_parts import load_base_model

    return load_base_model(folder)


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (ours - theirs).abs().max().item()


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_the_transformer_predicts_what_diffusers_does(loaded, reference, size):
    noise = torch.Generator().manual_seed(1)
    x, context = torch.randn(2, 8, *size, generator=noise), torch.randn(2, 77, 128, generator=noise)
    pooled, times = torch.randn(2, 128, generator=noise), torch.tensor([70.0, 900.0])
    ours = loaded[0].model.diffusion_model(x, times, context=context, y=pooled)
    theirs = reference.denoiser(x, context, pooled, times).sample
    assert theirs.std() > 0.1 and gap(ours, theirs) <= 1e-5


@torch.no_grad()
def test_a_model_call_takes_the_text_with_its_pooled_vector(loaded, reference):
    tokens = loaded[1].tokenize(CAPTION)
    context, pooled = loaded[1].encode_from_tokens(tokens, return_pooled=True)
    encoded = reference.text_encoder(torch.tensor([[token for token, _ in tokens["l"][0]]]))
    assert gap(context, encoded.last_hidden_state) <= 1e-5
    assert gap(pooled, encoded.text_embeds) <= 1e-5
    x, sigma = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(2)), torch.tensor([0.7])
    denoised = loaded[0].model.apply_model(x, sigma, c_crossattn=context, y=pooled)
    velocity = reference.denoiser(x, encoded.last_hidden_state, encoded.text_embeds, 1000 * sigma).sample
    assert gap(denoised, x - sigma.view(-1, 1, 1, 1) * velocity) <= 1e-5


def test_the_flow_has_the_shift_it_was_trained_with(loaded):
    sampling = loaded[0].model.model_sampling
    assert sampling.shift == 3.0
    assert sampling.percent_to_sigma(0.5) == pytest.approx(0.75)


def test_latents_and_autoencoder_are_those_of_the_unet(loaded, demo_model):
    latents = torch.ones(1, 8, 2, 2)
    assert torch.equal(loaded[0].model.process_latent_in(latents), demo_model.model.model.process_latent_in(latents))
    ours, theirs = loaded[2].first_stage_model.state_dict(), demo_model.vae.first_stage_model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize(("heads", "blocks"), [(3, 3), (2, 1)])
@torch.no_grad()
def test_other_numbers_of_blocks_are_converted_too(comfy_modules, heads, blocks):
    import comfy.latent_formats
    from bestiary.nodes.demo.demo_transformer import transformer_model
    from diffusers import SD3Transformer2DModel

    theirs = SD3Transformer2DModel(
        sample_size=4, in_channels=8, out_channels=8, num_layers=blocks, num_attention_heads=heads, attention_head_dim=64,
        joint_attention_dim=16, caption_projection_dim=64 * heads, pooled_projection_dim=16, pos_embed_max_size=2, qk_norm="rms_norm",
    )  # fmt: skip
    tensors = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}  # conversion swaps in place
    ours = transformer_model(theirs.config, tensors, comfy.latent_formats.LatentFormat(), 1.0).model.diffusion_model
    assert not tensors
    x, context, pooled, times = (
        torch.randn(1, 8, 4, 4),
        torch.randn(1, 5, 16),
        torch.randn(1, 16),
        torch.tensor([500.0]),
    )
    assert gap(ours(x, times, context=context, y=pooled), theirs(x, context, pooled, times).sample) <= 1e-5


def test_an_untrained_transformer_is_refused_with_the_command(comfy_modules, monkeypatch, tmp_path):
    from bestiary.nodes.demo import demo_model

    absent = tmp_path / "base_model_dit"
    monkeypatch.setattr(demo_model, "BASE_MODEL_DIT", absent)
    monkeypatch.setitem(demo_model.FOLDERS, "dit", absent)
    from bestiary.nodes.demo.demo_model_nodes import BestiaryDemoModel

    with pytest.raises(BestiaryError, match=r"base_model_dit does not exist.*demo train-base --shape dit --out"):
        BestiaryDemoModel.execute(shape="dit")


def test_the_node_loads_what_shape_says(folder, demo_model, monkeypatch):
    from bestiary.nodes.demo import demo_model as module
    from bestiary.nodes.demo.demo_model_nodes import BestiaryDemoModel

    monkeypatch.setitem(module.FOLDERS, "dit", folder)
    assert type(BestiaryDemoModel.execute(shape="dit").args[0].model).__name__ == "SD3"
    assert BestiaryDemoModel.execute().args[0].model is demo_model.model.model


@torch.no_grad()
def test_a_sampler_of_core_draws_what_the_trainer_draws(loaded, reference):
    import comfy.sample

    model, clip, _ = loaded
    noise = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(3))
    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (CAPTION, "")]
    empty = torch.zeros_like(noise)
    ours = comfy.sample.sample(
        model, noise, 4, 3.0, "euler", "normal", prompts[0], prompts[1], empty, disable_pbar=True, seed=0
    )
    from bestiary.trainer.base_model.denoiser import _read
    from bestiary.trainer.base_model.model_parts import encode_captions

    x, text = noise, _read(reference, encode_captions(reference.tokenizer, [CAPTION, ""]).unsqueeze(-1))
    for time, advance in reference.shape.sampling(4):
        outputs = reference.shape.evaluate(reference.denoiser, torch.cat([x, x]), time.expand(2), text)
        wanted, free = outputs.chunk(2)
        x = advance(x, free + 3.0 * (wanted - free))
    assert x.std() > 0.1 and gap(ours, loaded[0].model.process_latent_out(x)) <= 2e-4
