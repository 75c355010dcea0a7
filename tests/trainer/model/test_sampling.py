"""Sampling against diffusers' own pipelines, and independence of seeds, batches and prompt lengths."""

from collections.abc import Callable

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import AttentionRequest, Conditioning, PromptPiece
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.model.sampling import SAMPLERS, build_sampler, draw_noise, sample_images
from torch import Tensor

SETTINGS = {"steps": 3, "size": 64, "guidance": 1.5}
"""Little guidance: random weights amplify rounding."""


def encoded(denoiser: object, text: str, vectors: int = 0) -> Conditioning:
    tokens = denoiser.text.tokenize([PromptPiece(text), *[PromptPiece(None)] * vectors])
    learned = torch.randn(1, vectors, denoiser.backbone.vector_width) if vectors else None
    return denoiser.text.encode([tokens], None if learned is None else denoiser.backbone.split_vector(learned))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equals_the_pipeline_of_diffusers(sampler: str, tiny_denoiser: Callable, tiny_folder: Callable) -> None:
    from diffusers import StableDiffusionPipeline

    denoiser = tiny_denoiser("sd15")
    positive, negative = encoded(denoiser, "a red bird"), encoded(denoiser, "head")
    ours = sample_images(denoiser, positive, negative, seeds=[4], sampler=sampler, **SETTINGS).images
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder("sd15"), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = build_sampler(sampler, denoiser.scheduler_config)
    theirs = pipeline(
        prompt_embeds=positive.context,
        negative_prompt_embeds=negative.context,
        latents=draw_noise(denoiser, [4], (64, 64)),
        num_inference_steps=3,
        guidance_scale=1.5,
        output_type="pt",
    ).images
    torch.testing.assert_close(ours, theirs, atol=5e-4, rtol=0)


def test_sdxl_equals_the_pipeline_of_diffusers(tiny_denoiser: Callable, tiny_folder: Callable) -> None:
    from diffusers import StableDiffusionXLPipeline

    denoiser = tiny_denoiser("sdxl")
    positive = encoded(denoiser, "a red bird")
    ours = sample_images(denoiser, positive, None, seeds=[4], sampler="euler", **SETTINGS).images
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        # an empty negative is the encoding of no words, as in ComfyUI; the published folders ask for zeros instead
        tiny_folder("sdxl"),
        add_watermarker=False,
        force_zeros_for_empty_prompt=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a red bird",
        latents=draw_noise(denoiser, [4], (64, 64)),
        num_inference_steps=3,
        guidance_scale=1.5,
        height=64,
        width=64,
        output_type="pt",
    ).images
    torch.testing.assert_close(ours, theirs, atol=5e-4, rtol=0)


def test_a_seed_gives_one_picture_in_any_batch(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    text = encoded(denoiser, "a bird")
    together = sample_images(denoiser, text, None, seeds=[1, 2, 3], **SETTINGS).images
    alone = sample_images(denoiser, text, None, seeds=[2], **SETTINGS).images
    in_pieces = sample_images(denoiser, text, None, seeds=[1, 2, 3], batch_size=2, **SETTINGS).images
    torch.testing.assert_close(together[1:2], alone, atol=5e-4, rtol=0)
    torch.testing.assert_close(together, in_pieces, atol=5e-4, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.01


def test_prompts_of_different_length_guide_each_other(tiny_denoiser: Callable) -> None:
    """A context repeated twice is the same condition to attention, so both paths must agree."""
    denoiser = tiny_denoiser("sd15")
    positive, negative = encoded(denoiser, "a bird"), encoded(denoiser, "head")
    doubled = Conditioning.of(negative.context.repeat(1, 2, 1))
    ours = sample_images(denoiser, positive, doubled, seeds=[1], **SETTINGS).images
    theirs = sample_images(denoiser, positive, negative, seeds=[1], **SETTINGS).images
    torch.testing.assert_close(ours, theirs, atol=5e-4, rtol=0)


def test_without_guidance_the_negative_prompt_is_not_used(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    rows: list[int] = []
    denoiser.unet.register_forward_pre_hook(lambda _module, inputs: rows.append(len(inputs[0])))
    text = encoded(denoiser, "a bird")
    first = sample_images(denoiser, text, encoded(denoiser, "head"), seeds=[1], **{**SETTINGS, "guidance": 1}).images
    assert rows == [1, 1, 1]
    assert torch.equal(first, sample_images(denoiser, text, None, seeds=[1], **{**SETTINGS, "guidance": 1}).images)


def test_maps_are_those_of_the_conditional_half_and_leave_the_picture_alone(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    text = encoded(denoiser, "a bird ", vectors=2)
    plain = sample_images(denoiser, text, None, seeds=[1, 2], **SETTINGS)
    asked = AttentionRequest(text.columns, tuple(denoiser.attention_factors()))
    ours = sample_images(denoiser, text, None, seeds=[1, 2], attention=asked, **SETTINGS)
    assert plain.attention is None and torch.equal(plain.images, ours.images)
    assert ours.attention.shape == (2, 2, 8, 8)
    lengths = sample_images(
        denoiser,
        text,
        Conditioning.of(denoiser.empty_conditioning().context.repeat(1, 2, 1)),
        seeds=[1, 2],
        attention=asked,
        **SETTINGS,
    )
    torch.testing.assert_close(ours.attention, lengths.attention, atol=1e-6, rtol=1e-4)


def test_several_prompts_give_each_its_own_picture(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    first, second = encoded(denoiser, "a bird"), encoded(denoiser, "red red red head")
    both = Conditioning.of(torch.cat([first.context, second.context]))
    ours = sample_images(denoiser, both, None, seeds=[5, 5], **SETTINGS).images
    alone = sample_images(denoiser, second, None, seeds=[5], **SETTINGS).images
    torch.testing.assert_close(ours[1:], alone, atol=5e-4, rtol=0)
    with pytest.raises(BestiaryError, match="2 positive prompts for 3 seeds"):
        sample_images(denoiser, both, None, seeds=[1, 2, 3], **SETTINGS)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_progress_ends_at_the_total(sampler: str, tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    steps: list[tuple[int, int]] = []
    text = encoded(denoiser, "a bird")
    sample_images(
        denoiser,
        text,
        None,
        seeds=[1, 2],
        sampler=sampler,
        batch_size=1,
        on_step=lambda done, total: steps.append((done, total)),
        **SETTINGS,
    )
    assert [done for done, _ in steps] == list(range(1, steps[-1][1] + 1))
    assert len({total for _, total in steps}) == 1


def test_pictures_need_not_be_square(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    text = encoded(denoiser, "a bird", vectors=1)
    asked = AttentionRequest(text.columns)
    out = sample_images(denoiser, text, None, seeds=[1], steps=1, size=(64, 96), attention=asked)
    assert out.images.shape == (1, 3, 64, 96) and out.attention.shape == (1, 1, 2, 3)
    assert out.images.min() >= 0 and out.images.max() <= 1 and out.images.dtype == torch.float32


def test_numbers_that_overflow_are_reported(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    text = encoded(denoiser, "a bird")
    broken = Conditioning.of(text.context * float("nan"))
    with pytest.raises(BestiaryError, match="latents contain numbers that are not finite.*dtype fp32 or bf16"):
        sample_images(denoiser, broken, None, seeds=[1], **SETTINGS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "no seed was given"),
        ({"steps": 0}, "steps is 0: it must be at least 1"),
        ({"sampler": "heun"}, "unknown sampler 'heun': choose one of ddim, dpmpp_2m, euler, pndm"),
        ({"size": 100}, "picture size 100 x 100: both edges must be positive multiples of 8 pixels"),
        ({"size": (64, 0)}, "picture size 64 x 0"),
    ],
)
def test_bad_requests(changes: dict[str, object], message: str, tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    with pytest.raises(BestiaryError, match=message):
        sample_images(denoiser, encoded(denoiser, "a bird"), None, **{"seeds": [1], **SETTINGS, **changes})


def test_noise_depends_on_the_seed_alone(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    noise: Tensor = draw_noise(denoiser, [7, 8], (64, 32))
    assert noise.shape == (2, 4, 8, 4)
    assert torch.equal(noise[1], draw_noise(denoiser, [8], (64, 32))[0])
