"""The protocol over diffusers modules: autoencoder, sizes, empty prompts, dtypes and what may be missing."""

from collections.abc import Callable

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import AttentionRequest, Conditioning, PromptPiece
from bestiary.concepts.denoiser.image_side import NO_SPREAD
from bestiary.concepts.denoiser.low_rank import LoraSpec
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.model.backbones import load_denoiser
from bestiary.trainer.model.diffusers_denoiser import DenoiserParts, DiffusersDenoiser


def _certain(mean: torch.Tensor) -> torch.Tensor:
    """Moments (B, 2, C, h, w) of a mean (B, C, h, w)."""
    return torch.stack([mean, torch.full_like(mean, NO_SPREAD)], dim=1)


def test_moments_equal_the_autoencoder_of_diffusers(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    images = torch.rand(2, 3, 32, 48)
    mean, log_variance = denoiser.images.to_cache(images).unbind(1)
    with torch.no_grad():
        theirs = denoiser.vae.encode(images * 2 - 1).latent_dist
    assert mean.shape == (2, 4, 4, 6)
    torch.testing.assert_close(mean, theirs.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_variance, theirs.logvar, atol=1e-5, rtol=1e-5)


def test_decoding_undoes_scaling(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    latents = torch.randn(1, 4, 4, 4)
    torch.testing.assert_close(denoiser.images.from_cache(_certain(latents)), latents * 0.18215)
    with torch.no_grad():
        ours = denoiser.images.decode(denoiser.images.from_cache(_certain(latents)))
        theirs = (denoiser.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert ours.shape == (1, 3, 32, 32) and ours.min() >= 0 and ours.max() <= 1


def test_latents_are_shifted_where_the_config_says_so(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    denoiser.images.config["shift_factor"] = 0.5
    latents = torch.randn(1, 4, 4, 4)
    torch.testing.assert_close(denoiser.images.from_cache(_certain(latents)), (latents - 0.5) * 0.18215)


def test_an_autoencoder_without_posterior_has_no_spread(tiny_denoiser: Callable) -> None:
    from diffusers import AutoencoderTiny

    denoiser = tiny_denoiser("sd15")
    vae = AutoencoderTiny(latent_channels=4)
    denoiser.images.vae, denoiser.images.config = vae.eval().requires_grad_(False), dict(vae.config)
    images = torch.rand(1, 3, 32, 32)
    mean, log_variance = denoiser.images.to_cache(images).unbind(1)
    assert log_variance.unique().item() == NO_SPREAD
    with torch.no_grad():
        theirs = vae.encode(images * 2 - 1).latents
    torch.testing.assert_close(mean, theirs, atol=1e-5, rtol=1e-5)


def test_latents_are_scaled_without_the_autoencoder(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    denoiser.drop_autoencoder()
    assert denoiser.images.from_cache(_certain(torch.ones(1, 4, 1, 1))).unique().item() == pytest.approx(0.18215)
    with pytest.raises(BestiaryError, match="the autoencoder was dropped from this denoiser"):
        denoiser.images.to_cache(torch.rand(1, 3, 32, 32))
    with pytest.raises(BestiaryError, match="the autoencoder was dropped"):
        denoiser.images.decode(torch.rand(1, 4, 4, 4))


def test_without_text_encoders_prompts_are_refused(tiny_denoiser: Callable) -> None:
    full = tiny_denoiser("sd15")
    bare = DiffusersDenoiser(full.backbone, DenoiserParts(full.unet, None, None, full.process, {}))
    with pytest.raises(BestiaryError, match="loaded without text encoders"):
        bare.text.tokenize([PromptPiece("bird")])


def test_empty_negative_prompts(tiny_denoiser: Callable) -> None:
    """The same everywhere: in previews, and where a command or a graph encodes an empty text."""
    sdxl, sd15 = tiny_denoiser("sdxl"), tiny_denoiser("sd15")
    empty, nothing = sdxl.empty_conditioning(), sdxl.text.encode([sdxl.text.tokenize([PromptPiece("")])], None)
    assert torch.equal(empty.context, nothing.context) and torch.equal(empty.pooled, nothing.pooled)
    assert empty.context.shape == (1, 77, 96) and empty.context.any() and empty.pooled.any()
    encoded = sd15.empty_conditioning()
    assert torch.equal(encoded.context, sd15.text.encode([sd15.text.tokenize([])], None).context)
    assert encoded.context.any() and encoded.pooled is None


def test_sizes_are_told_to_the_pixel_in_half_precision(tiny_denoiser: Callable) -> None:
    """bfloat16 knows 1000 and 1004, but neither 1001 nor 1002."""
    denoiser, told = tiny_denoiser("sdxl"), []
    denoiser.unet.to(torch.bfloat16)
    text = denoiser.text.encode([denoiser.text.tokenize([PromptPiece("a bird")])], None)
    denoiser.unet.add_time_proj.register_forward_pre_hook(lambda _module, inputs: told.append(inputs[0].clone()))
    sizes = torch.tensor([[1001.0, 1002.0, 3.0, 517.0, 1022.0, 1023.0]])
    with torch.no_grad():
        predicted = denoiser.network.predict(
            torch.randn(1, 4, 8, 8), torch.tensor([0.301]), text.with_extras(sizes=sizes)
        ).prediction
    assert torch.equal(told[0], sizes.flatten()) and torch.isfinite(predicted).all()


def test_sdxl_is_told_size_and_crop(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sdxl")
    text = denoiser.text.encode([denoiser.text.tokenize([PromptPiece("a bird")])], None)
    latents, times = torch.randn(1, 4, 8, 16), torch.tensor([0.301])
    whole = text.with_extras(sizes=torch.tensor([[64.0, 128.0, 0.0, 0.0, 64.0, 128.0]]))
    cropped = text.with_extras(sizes=torch.tensor([[512.0, 512.0, 0.0, 64.0, 64.0, 128.0]]))
    with torch.no_grad():
        default = denoiser.network.predict(latents, times, text).prediction
        assert torch.equal(default, denoiser.network.predict(latents, times, whole).prediction)
        assert not torch.equal(default, denoiser.network.predict(latents, times, cropped).prediction)
        theirs = denoiser.unet(
            latents,
            torch.tensor([300]),
            text.context,
            added_cond_kwargs={"text_embeds": text.pooled, "time_ids": cropped.sizes},
        ).sample
    ours = denoiser.network.predict(latents, times, cropped).prediction
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    with pytest.raises(BestiaryError, match="sdxl needs the pooled text vector"):
        denoiser.network.predict(latents, times, Conditioning.of(text.context))


def test_low_precision_predictions_come_back_in_float32(tiny_denoiser: Callable) -> None:
    exact, rough = tiny_denoiser("sd15"), tiny_denoiser("sd15", dtype="bf16")
    latents, times = torch.randn(1, 4, 8, 8), torch.tensor([0.301])
    text = exact.text.encode([exact.text.tokenize([PromptPiece("a bird")])], None)
    asked = AttentionRequest(torch.tensor([[[1], [2]]]))
    with torch.no_grad():
        ours, theirs = (
            rough.network.predict(latents, times, text, asked),
            exact.network.predict(latents, times, text, asked),
        )
    assert rough.dtype == torch.bfloat16 and ours.prediction.dtype == torch.float32
    torch.testing.assert_close(ours.prediction, theirs.prediction, atol=0.1, rtol=0.1)
    for name, maps in ours.attention.items():
        assert maps.dtype == torch.float32
        torch.testing.assert_close(maps, theirs.attention[name], atol=5e-3, rtol=0.1)


def test_autocast_around_a_call_changes_nothing(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    denoiser.network.adapters.add(LoraSpec())
    text = denoiser.empty_conditioning()
    latents, times = torch.randn(1, 4, 8, 8), torch.tensor([0.301])
    with torch.no_grad():
        plain = denoiser.network.predict(latents, times, text).prediction
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(denoiser.network.predict(latents, times, text).prediction, plain)


@pytest.mark.parametrize("backbone", ("sd15", "sd2", "sdxl", "bestiary-demo"))
def test_vectors_and_adapters_learn_together(backbone: str, tiny_denoiser: Callable) -> None:
    """A short step down the gradient lowers the loss by the gradient's length, on every backbone."""
    torch.manual_seed(0)
    denoiser = tiny_denoiser(backbone)
    adapters = denoiser.network.adapters.add(LoraSpec(rank=2))
    tokens = denoiser.text.tokenize([PromptPiece("a "), PromptPiece(None), PromptPiece("bird")])
    vectors = torch.randn(2, 1, denoiser.backbone.vector_width, requires_grad=True)
    latents, noise = torch.randn(2, 2, denoiser.backbone.latent_channels, 32, 32).unbind(0)
    times = torch.tensor([0.101, 0.801])
    noised = denoiser.process.noised(latents, noise, times)
    target = denoiser.process.target(latents, noise, times)

    def loss() -> torch.Tensor:
        text = denoiser.text.encode([tokens, tokens], denoiser.backbone.split_vector(vectors))
        return (denoiser.network.predict(noised, times, text).prediction - target).square().mean()

    before = loss()
    before.backward()
    learned = [vectors, *adapters.values()]
    assert all(parameter.grad is not None for parameter in learned) and vectors.grad.any()
    length = sum(parameter.grad.square().sum() for parameter in learned).sqrt()
    step = 1e-3  # narrow group norms of random weights bend soon
    with torch.no_grad():
        for parameter in learned:
            parameter -= step * parameter.grad / length
    assert (before - loss()).item() == pytest.approx(step * length.item(), rel=0.3)


def test_the_embedded_model_runs() -> None:
    denoiser = load_denoiser("demo", device="cpu", dtype="fp32")
    mean, _ = denoiser.images.to_cache(torch.rand(1, 3, 128, 128)).unbind(1)
    assert mean.shape == (1, 8, 16, 16)
    assert denoiser.images.decode(denoiser.images.from_cache(_certain(mean))).shape == (1, 3, 128, 128)
    assert all(denoiser.attention_factors()[name] == 1 for name in denoiser.network.method_layers())
    assert denoiser.network.method_layers()
