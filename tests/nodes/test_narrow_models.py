"""Tests of the fixtures: narrow SD1.5 and SDXL in ComfyUI's classes equal diffusers and transformers."""

import pytest
import torch


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (ours - theirs).abs().max().item()


@pytest.fixture(params=["sd15", "sdxl"])
def backbone(request):
    return request.param


@pytest.fixture
def loaded(backbone, request):
    return request.getfixturevalue(f"{backbone}_model")


@pytest.fixture
def reference(backbone, request):
    return request.getfixturevalue(f"{backbone}_reference")


@torch.no_grad()
def test_denoisers_agree(loaded, reference):
    noise = torch.Generator().manual_seed(0)
    unet = reference.unet
    x, times = torch.randn(2, 4, 16, 24, generator=noise), torch.tensor([7.0, 900.0])
    context = torch.randn(2, 77, unet.config.cross_attention_dim, generator=noise)
    more, theirs_more = {}, {}
    if unet.config.addition_embed_type:
        pooled, sizes = torch.randn(2, 64, generator=noise), torch.tensor([[128.0, 192, 0, 0, 128, 192]] * 2)
        theirs_more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
        more = {"y": torch.cat([pooled, loaded.model.model.embedder(sizes.flatten()).view(2, -1)], 1)}
    ours = loaded.model.model.diffusion_model(x, times, context=context, **more)
    assert gap(ours, unet(x, times.long(), context, **theirs_more).sample) <= 2e-6


@torch.no_grad()
def test_text_encoders_agree(loaded, reference):
    tokens = loaded.clip.tokenize("a red bird, photo")
    cond, pooled = loaded.clip.encode_from_tokens(tokens, return_pooled=True)
    states = {}
    for name, encoder in reference.text_encoders.items():
        ids = torch.tensor([[token for token, _ in tokens[name[-1]][0]]])
        states[name] = encoder(ids, output_hidden_states=True)
    if "clip_g" not in states:
        assert gap(cond, states["clip_l"].last_hidden_state) <= 2e-6
        return
    theirs = torch.cat([states[name].hidden_states[-2] for name in ("clip_l", "clip_g")], -1)
    assert gap(cond, theirs) <= 2e-6
    assert gap(pooled, states["clip_g"].text_embeds) <= 2e-6


@torch.no_grad()
def test_autoencoders_agree(loaded, reference):
    noise = torch.Generator().manual_seed(0)
    latents, images = torch.randn(1, 4, 8, 12, generator=noise), torch.rand(1, 64, 96, 3, generator=noise)
    theirs = (reference.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert gap(loaded.vae.decode(latents).movedim(-1, 1), theirs) <= 3e-6
    theirs = reference.vae.encode(images.movedim(-1, 1) * 2 - 1).latent_dist
    torch.manual_seed(0)
    assert gap(loaded.vae.encode(images), theirs.mean) < 6 * theirs.std.max().item()


@torch.no_grad()
def test_core_sampler_runs(loaded):
    import nodes

    positive, negative = (nodes.CLIPTextEncode().encode(loaded.clip, text)[0] for text in ("a red bird", ""))
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    args = (1, 2, 5.0, "euler", "normal", positive, negative, latent)
    first, second = (nodes.KSampler().sample(loaded.model, *args)[0]["samples"] for _ in range(2))
    assert first.isfinite().all()
    assert gap(first, second) == 0
