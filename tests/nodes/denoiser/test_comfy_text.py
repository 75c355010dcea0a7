"""ComfyUI's text encoders layer by layer: CLIP skip, gradients, and CLIPs that are none of Stable Diffusion's."""

from types import SimpleNamespace

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import PromptPiece
from bestiary.concepts.errors import BestiaryError
from torch import nn


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "demo"])
@pytest.mark.parametrize("skip", [-1, -2, -99])
def test_clip_skip_is_comfyuis(kind: str, skip: int, request: pytest.FixtureRequest) -> None:
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    loaded = request.getfixturevalue(f"{kind}_model")
    clip = loaded.clip.clone()
    clip.layer_idx = skip
    denoiser = ComfyDenoiser(loaded.model, clip)
    ours = denoiser.text.encode([denoiser.text.tokenize([PromptPiece("a red bird")])], None).context
    with torch.no_grad():
        theirs = clip.encode_from_tokens(clip.tokenize("a red bird"))
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=1e-5)


def test_weights_and_several_chunks_are_comfyuis(sd15_model) -> None:
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    denoiser = ComfyDenoiser(sd15_model.model, sd15_model.clip)
    words = "red bird " * 45
    pieces = [PromptPiece(words), PromptPiece("head", 1.4)]
    ours = denoiser.text.encode([denoiser.text.tokenize(pieces)], None).context
    with torch.no_grad():
        theirs = sd15_model.clip.encode_from_tokens(sd15_model.clip.tokenize(f"{words}(head:1.4)"))
    assert ours.shape == theirs.shape == (1, 154, 32)
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=1e-5)


def test_gradients_reach_the_vectors_only(sdxl_model) -> None:
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    denoiser = ComfyDenoiser(sdxl_model.model, sdxl_model.clip)
    vectors = torch.zeros(1, 2, 96, requires_grad=True)
    tokens = denoiser.text.tokenize([PromptPiece(None), PromptPiece("head"), PromptPiece(None)])
    with denoiser.training():
        text = denoiser.text.encode([tokens], denoiser.backbone.split_vector(vectors))
        (text.context.sum() + text.pooled.square().sum()).backward()
    assert (vectors.grad.abs().sum(-1) > 0).all()
    assert all(parameter.grad is None for parameter in sdxl_model.clip.cond_stage_model.parameters())


def test_other_clips_are_told() -> None:
    from bestiary.nodes.denoiser.comfy_text import text_encoders

    other = SimpleNamespace(cond_stage_model=nn.Linear(1, 1), tokenizer=object())
    with pytest.raises(
        BestiaryError, match="this CLIP is a Linear: connect the CLIP of a Stable Diffusion 1.5, 2 or XL"
    ):
        text_encoders(other)
