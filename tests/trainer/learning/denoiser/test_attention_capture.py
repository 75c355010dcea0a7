"""Attention columns against diffusers' explicit softmax, and outputs untouched where nothing is asked for."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import AttentionRequest, Conditioning
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.denoiser.attention_capture import halved, install_fused_attention
from torch import Tensor

POSITIONS = torch.tensor([[2, 5, -1], [7, 1, 3]])
METHODS = ("lse", "one_hot")


class ExplicitAttention:
    """Attention with diffusers' own scores, as an oracle that keeps every probability."""

    def __init__(self, kept: dict[str, Tensor], name: str) -> None:
        self.kept, self.name = kept, name

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):  # noqa: ANN001
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        scores = attn.get_attention_scores(q, k)  # (B * H, N, L)
        self.kept[self.name] = scores.unflatten(0, (-1, attn.heads)).mean(1)  # (B, N, L)
        return attn.to_out[0](attn.batch_to_head_dim(torch.bmm(scores, v)))


def evaluation(denoiser: object, size: tuple[int, int] = (16, 16)) -> tuple[Tensor, Tensor, Conditioning]:
    """Latents, timesteps and text of a batch of two."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, denoiser.backbone.latent_channels, *size, generator=generator)
    context = torch.randn(2, 77, denoiser.unet.config.cross_attention_dim, generator=generator)
    pooled = torch.randn(2, 64, generator=generator) if denoiser.backbone.name == "sdxl" else None
    return latents, torch.tensor([0.011, 0.701]), Conditioning.of(context, pooled=pooled)


def explicit(denoiser: object, size: tuple[int, int] = (16, 16)) -> tuple[Tensor, dict[str, Tensor]]:
    """Prediction and all probabilities by the oracle; the denoiser's own attention is put back."""
    kept: dict[str, Tensor] = {}
    denoiser.unet.set_attn_processor(
        {f"{name}.processor": ExplicitAttention(kept, name) for name in attention_layers(denoiser)}
    )
    with torch.no_grad():
        prediction = denoiser.network.predict(*evaluation(denoiser, size)).prediction
    install_fused_attention(denoiser.unet)
    return prediction, kept


def attention_layers(denoiser: object) -> list[str]:
    return [name.removesuffix(".processor") for name in denoiser.unet.attn_processors]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", ("sd15", "sd2", "sdxl", "bestiary-demo"))
def test_columns_equal_the_explicit_softmax(backbone: str, method: str, tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser(backbone)
    theirs, probabilities = explicit(denoiser)
    layers = tuple(denoiser.attention_factors())
    with torch.no_grad():
        ours = denoiser.network.predict(
            *evaluation(denoiser), AttentionRequest(POSITIONS.unsqueeze(-1), layers, method)
        )
    torch.testing.assert_close(ours.prediction, theirs, atol=1e-5, rtol=1e-5)
    assert tuple(ours.attention) == layers
    for name, columns in ours.attention.items():
        taken = probabilities[name].gather(
            -1, POSITIONS.clamp(min=0)[:, None].expand(-1, probabilities[name].shape[1], -1)
        )
        taken = (taken * (POSITIONS >= 0)[:, None]).transpose(1, 2).reshape(columns.shape)
        torch.testing.assert_close(columns, taken, atol=1e-6, rtol=0)


@pytest.mark.parametrize("backbone", ("sd15", "sdxl"))
def test_without_a_request_outputs_are_those_of_diffusers(backbone: str, tiny_denoiser: Callable) -> None:
    from diffusers.models.attention_processor import AttnProcessor2_0

    denoiser = tiny_denoiser(backbone)
    with torch.no_grad():
        ours = denoiser.network.predict(*evaluation(denoiser)).prediction
        captured = denoiser.network.predict(*evaluation(denoiser), AttentionRequest(POSITIONS.unsqueeze(-1))).prediction
        denoiser.unet.set_attn_processor(AttnProcessor2_0())
        theirs = denoiser.network.predict(*evaluation(denoiser)).prediction
    assert torch.equal(ours, theirs)
    assert torch.equal(captured, ours)


def test_sd15_has_five_layers_on_the_grid_of_the_method(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    with torch.no_grad():
        attention = denoiser.network.predict(*evaluation(denoiser), AttentionRequest(POSITIONS.unsqueeze(-1))).attention
    assert list(attention) == [
        "down_blocks.2.attentions.0.transformer_blocks.0.attn2",
        "down_blocks.2.attentions.1.transformer_blocks.0.attn2",
        "up_blocks.1.attentions.0.transformer_blocks.0.attn2",
        "up_blocks.1.attentions.1.transformer_blocks.0.attn2",
        "up_blocks.1.attentions.2.transformer_blocks.0.attn2",
    ]
    assert {tuple(maps.shape) for maps in attention.values()} == {(2, 3, 4, 4)}
    assert all(name in denoiser.attention_factors() for name in attention)
    assert denoiser.network.method_layers() == tuple(attention)


def test_sdxl_reads_every_transformer_layer_on_the_grid(tiny_denoiser: Callable) -> None:
    layers = tiny_denoiser("sdxl").network.method_layers()
    assert len(layers) == 2 * 3 + 3 + 3 * 3  # depth 3 in the lowest level: two down, middle, three up
    assert {name.split(".")[0] for name in layers} == {"down_blocks", "mid_block", "up_blocks"}


@pytest.mark.parametrize("size", ((8, 24), (9, 15)))
def test_maps_keep_the_shape_of_wide_and_odd_latents(size: tuple[int, int], tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    _, probabilities = explicit(denoiser, size)
    layers = tuple(denoiser.attention_factors())
    with torch.no_grad():
        ours = denoiser.network.predict(
            *evaluation(denoiser, size), AttentionRequest(POSITIONS.unsqueeze(-1), layers)
        ).attention
    for name, columns in ours.items():
        grid = halved(size, denoiser.attention_factors()[name])
        expected = probabilities[name][1, :, 7].view(grid)
        torch.testing.assert_close(columns[1, 0], expected, atol=1e-6, rtol=0)


def test_halved_rounds_up_like_a_strided_convolution() -> None:
    assert halved((9, 15), 1) == (9, 15)
    assert halved((9, 15), 4) == (3, 4)


@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_gives_the_same_maps_and_gradients(method: str, tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    gradients = []
    for enabled in (False, True):
        denoiser.network.set_gradient_checkpointing(enabled)
        latents, times, text = evaluation(denoiser)
        context = text.context.clone().requires_grad_()
        out = denoiser.network.predict(
            latents, times, Conditioning.of(context), AttentionRequest(POSITIONS.unsqueeze(-1), None, method)
        )
        loss = out.prediction.square().mean() + sum(maps.square().sum() for maps in out.attention.values())
        loss.backward()
        gradients.append((loss.detach(), context.grad))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-5)
    denoiser.network.set_gradient_checkpointing(False)
    assert not denoiser.unet.is_gradient_checkpointing


def test_nothing_stays_after_an_exception(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    latents, times, text = evaluation(denoiser)
    with torch.no_grad():
        before = denoiser.network.predict(latents, times, text).prediction
        with pytest.raises(RuntimeError):
            broken = Conditioning.of(text.context[..., :5])
            denoiser.network.predict(latents, times, broken, AttentionRequest(POSITIONS.unsqueeze(-1)), ["mid_block"])
        after = denoiser.network.predict(latents, times, text)
    assert torch.equal(before, after.prediction)
    assert not after.attention and not after.features
    assert not any(module._forward_hooks for module in denoiser.unet.modules())


def test_two_threads_get_what_each_asked_for(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    every = tuple(denoiser.attention_factors())

    def ask(number: int) -> tuple[int, int]:
        request = AttentionRequest(POSITIONS.unsqueeze(-1), every[:number])
        with torch.no_grad():
            out = denoiser.network.predict(*evaluation(denoiser), request, ["mid_block"] if number % 2 else [])
        return len(out.attention), len(out.features)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, (1, 2, 3, 4))) == [(1, 1), (2, 0), (3, 1), (4, 0)]


def test_features_are_the_activations_of_the_block(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    blocks = denoiser.feature_factors()
    with torch.no_grad():
        out = denoiser.network.predict(*evaluation(denoiser), features=tuple(blocks))
    for name, activations in out.features.items():
        assert activations.shape[-1] == 16 // blocks[name], name
        assert activations.dtype == torch.float32
    last = denoiser.unet.conv_norm_out(out.features["up_blocks.3"])
    ours = denoiser.unet.conv_out(denoiser.unet.conv_act(last))
    torch.testing.assert_close(ours, out.prediction, atol=1e-5, rtol=1e-5)


def test_unknown_names_list_the_choices(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    with pytest.raises(BestiaryError, match="unknown cross-attention layer 'nose': choose from down_blocks.0"):
        denoiser.network.predict(*evaluation(denoiser), AttentionRequest(POSITIONS.unsqueeze(-1), ("nose",)))
    with pytest.raises(BestiaryError, match=r"unknown block 'nose': choose from .*mid_block \(2 x 2\)"):
        denoiser.network.predict(*evaluation(denoiser), features=["nose"])


def test_attention_of_other_families_is_refused() -> None:
    from diffusers.models.attention_processor import Attention

    with pytest.raises(BestiaryError, match="has norm_q, norm_k: this denoiser is not of the Stable Diffusion"):
        install_fused_attention(
            torch.nn.ModuleDict({"layer": Attention(32, qk_norm="layer_norm", heads=2, dim_head=16)})
        )


def test_float32_attention_for_the_backward_pass(tiny_denoiser: Callable) -> None:
    """On a CPU in bf16 the attention that is differentiated runs in float32, and its result is the same up to rounding."""
    denoiser = tiny_denoiser("sd15", dtype="bf16")
    latents, times, text = evaluation(denoiser)
    seen: list[torch.dtype] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(q: Tensor, *rest: Tensor, **options: object) -> Tensor:
        seen.append(q.dtype)
        return attend(q, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        with torch.no_grad():
            plain = denoiser.network.predict(latents, times, text).prediction
        assert set(seen) == {torch.bfloat16}
        seen.clear()
        context = text.context.clone().requires_grad_()
        out = denoiser.network.predict(
            latents, times, Conditioning.of(context), AttentionRequest(POSITIONS.unsqueeze(-1), None, "one_hot")
        )
        out.prediction.square().mean().backward()
    assert torch.float32 in seen
    torch.testing.assert_close(out.prediction.detach(), plain, atol=0.05, rtol=0.1)
    assert context.grad.isfinite().all() and context.grad.any()
