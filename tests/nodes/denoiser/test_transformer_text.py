"""Texts of SD3 and Flux: layer by layer as ComfyUI encodes them, differentiable, and with encoders that are missing."""

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import PromptPiece
from bestiary.concepts.errors import BestiaryError

from tests.nodes import tiny_transformers as tiny

CLIPS = {
    "sd3": lambda: (tiny.sd3_model("plain"), tiny.sd3_clip()),
    "sd3 without T5": lambda: (tiny.sd3_model("plain"), tiny.sd3_clip("t5xxl")),
    "flux": lambda: (tiny.flux_model(), tiny.flux_clip()),
}


def denoiser(kind: str) -> object:
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    return ComfyDenoiser(*CLIPS[kind]())


@pytest.mark.parametrize("kind", CLIPS)
def test_plain_prompts_are_encoded_as_by_comfyui(kind: str) -> None:
    ours = denoiser(kind)
    text = "a photo of a (red bird:1.3) on snow"
    _, clip = CLIPS[kind]()
    cond, facts = clip.encode_from_tokens_scheduled(clip.tokenize(text))[0]
    pieces = [PromptPiece("a photo of a"), PromptPiece("red bird", 1.3), PromptPiece("on snow")]
    with torch.no_grad():
        encoded = ours.text.encode([ours.text.tokenize(pieces)], None)
    assert encoded.context.shape == cond.shape
    torch.testing.assert_close(encoded.context, cond, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(encoded.pooled, facts["pooled_output"], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "columns"), [("sd3", [5, 77 + 6]), ("sd3 without T5", [5]), ("flux", [6])])
def test_vectors_have_their_places_and_gradients(kind: str, columns: list[int]) -> None:
    ours = denoiser(kind)
    rng = torch.Generator().manual_seed(2)
    vectors = {
        spec.name: torch.randn(1, 1, spec.width, generator=rng).requires_grad_() for spec in ours.backbone.text_encoders
    }
    layout = ours.text.tokenize([PromptPiece("a photo of a"), PromptPiece(None), PromptPiece("bird")])
    with ours.training():
        encoded = ours.text.encode([layout], vectors)
        (encoded.context.square().sum() + encoded.pooled.square().sum()).backward()
    # CLIP has its start token, T5 cuts "a" in two
    assert encoded.columns[0, 0].tolist() == columns
    for name, own in vectors.items():
        held = name not in ours.text.missing
        assert (own.grad is not None and bool(own.grad.abs().sum() > 0)) == held, name


def test_gradients_equal_small_differences() -> None:
    ours = denoiser("flux")
    layout = ours.text.tokenize([PromptPiece("a"), PromptPiece(None)])
    rng = torch.Generator().manual_seed(2)
    widths = {spec.name: spec.width for spec in ours.backbone.text_encoders}
    vectors = {name: torch.randn(1, 1, width, generator=rng) for name, width in widths.items()}
    way = torch.randn(1, 1, tiny.FLUX_T5, generator=rng)
    look = torch.randn(1, 256, tiny.FLUX_T5, generator=rng)

    def seen(t5: torch.Tensor) -> torch.Tensor:
        return (ours.text.encode([layout], {**vectors, "t5xxl": t5}).context * look).sum()

    with ours.training():
        own = vectors["t5xxl"].clone().requires_grad_()
        seen(own).backward()
        with torch.no_grad():
            step = (seen(vectors["t5xxl"] + 1e-2 * way) - seen(vectors["t5xxl"] - 1e-2 * way)) / 2e-2
    assert float((own.grad * way).sum()) == pytest.approx(float(step), rel=2e-2)


def test_clips_that_are_not_trained_are_refused() -> None:
    clip = tiny.sd3_clip("clip_l", "clip_g", "t5xxl")
    from bestiary.nodes.denoiser.comfy_text import text_encoders

    with pytest.raises(BestiaryError, match="this CLIP is a SD3ClipModel.*: connect the CLIP of a Stable Diffusion"):
        text_encoders(clip)
