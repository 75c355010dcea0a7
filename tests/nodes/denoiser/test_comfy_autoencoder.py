"""ComfyUI's VAE as a training asks it: moments without a draw, pictures back, a fingerprint of its weights."""

from types import SimpleNamespace

import pytest
import torch
from bestiary.concepts.errors import BestiaryError


@pytest.fixture
def pictures() -> torch.Tensor:
    """(2, 3, 64, 48) in 0..1."""
    return torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(2))


def test_moments_are_those_of_the_posterior(sd15_model, sd15_reference, pictures) -> None:
    from bestiary.nodes.denoiser.comfy_autoencoder import ComfyAutoencoder

    state = torch.get_rng_state()
    mean, log_variance = ComfyAutoencoder(sd15_model.vae).encode(pictures)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn
    with torch.no_grad():
        theirs = sd15_reference.vae.encode(pictures * 2 - 1).latent_dist
    torch.testing.assert_close(mean, theirs.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(log_variance, theirs.logvar, atol=1e-5, rtol=1e-4)
    assert mean.shape == (2, 4, 8, 6)


def test_pictures_come_back_as_comfyui_decodes_them(sd15_model, demo_model) -> None:
    from bestiary.nodes.denoiser.comfy_autoencoder import ComfyAutoencoder

    for model, channels in ((sd15_model, 4), (demo_model, 8)):
        latents = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(3))
        ours = ComfyAutoencoder(model.vae).decode(latents)
        theirs = model.vae.decode(latents).movedim(-1, 1)
        assert ours.shape == (1, 3, 64, 64) and 0 <= float(ours.min()) <= float(ours.max()) <= 1
        torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=1e-4)


def test_an_autoencoder_without_a_posterior_draws_the_same_every_time(demo_model, pictures) -> None:
    from bestiary.nodes.denoiser.comfy_autoencoder import NO_SPREAD, ComfyAutoencoder

    mean, log_variance = ComfyAutoencoder(demo_model.vae).encode(pictures)
    assert (log_variance == NO_SPREAD).all() and mean.shape == (2, 8, 8, 6)
    theirs = demo_model.vae.encode(pictures.movedim(1, -1))
    torch.testing.assert_close(mean, theirs.float(), atol=1e-5, rtol=1e-4)
    assert float((0.5 * log_variance).exp().max()) < 1e-6


def test_the_fingerprint_follows_the_weights(sd15_model, demo_model) -> None:
    from bestiary.nodes.denoiser.comfy_autoencoder import ComfyAutoencoder

    coder = ComfyAutoencoder(sd15_model.vae)
    before = coder.fingerprint()
    assert len(before) == 16 and before != ComfyAutoencoder(demo_model.vae).fingerprint()
    weight = next(iter(sd15_model.vae.first_stage_model.parameters()))
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.flatten()[0] += 1
    assert coder.fingerprint() != before
    with torch.no_grad():
        weight.copy_(kept)
    assert coder.fingerprint() == before


def test_what_makes_no_pictures_is_told() -> None:
    from bestiary.nodes.denoiser.comfy_autoencoder import ComfyAutoencoder

    audio = SimpleNamespace(first_stage_model=torch.nn.Linear(1, 1), latent_dim=1, output_channels=2)
    with pytest.raises(BestiaryError, match=r"this VAE \(Linear\) makes no pictures: connect the VAE of an image"):
        ComfyAutoencoder(audio)
