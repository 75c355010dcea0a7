"""The denoiser over ComfyUI's objects equals the one over diffusers: text, noise, attention, features, adapters, gradients."""

from collections.abc import Callable, Iterator

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import AttentionRequest, PromptPiece
from bestiary.concepts.denoiser.low_rank import LoraSpec
from bestiary.concepts.errors import BestiaryError
from torch import Tensor

KINDS = ("sd15", "sdxl", "demo")


@pytest.fixture(scope="module")
def pair(diffusers_denoiser, sd15_model, sdxl_model, demo_model) -> Callable[[str], tuple[object, object]]:
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    models = {"sd15": sd15_model, "sdxl": sdxl_model, "demo": demo_model}
    return lambda kind: (ComfyDenoiser(*models[kind]), diffusers_denoiser(kind))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


PIECES = (PromptPiece("a photo of a"), PromptPiece(None), PromptPiece("red", 1.3), PromptPiece(None))


def _case(denoiser: object, batch: int = 2) -> tuple[list, Tensor, Tensor, Tensor]:
    """Prompts, vectors (B, 2, D), latents (B, C, 16, 16) and times (B,)."""
    record = denoiser.backbone
    generator = torch.Generator().manual_seed(1)
    vectors = 0.02 * torch.randn(batch, 2, record.vector_width, generator=generator)
    latents = torch.randn(batch, record.latent_channels, 16, 16, generator=generator)
    return [denoiser.text.tokenize(PIECES)] * batch, vectors, latents, torch.tensor([0.011, 0.701])[:batch]


@pytest.mark.parametrize("kind", KINDS)
def test_records_and_names_are_those_of_diffusers(pair, kind: str) -> None:
    ours, theirs = pair(kind)
    assert ours.backbone == theirs.backbone
    assert ours.attention_factors() == theirs.attention_factors()
    assert list(ours.attention_factors()) == list(theirs.attention_factors())
    assert (
        ours.feature_factors() == theirs.feature_factors()
        and ours.network.method_layers() == theirs.network.method_layers()
    )
    assert list(ours.feature_factors()) == list(theirs.feature_factors())
    torch.testing.assert_close(ours.process.alphas_cumprod, theirs.process.alphas_cumprod, rtol=2e-5, atol=1e-7)
    assert ours.process.prediction == theirs.process.prediction


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_encoded_alike(pair, kind: str) -> None:
    ours, theirs = pair(kind)
    prompts, vectors, _, _ = _case(ours)
    expected = theirs.text.tokenize(PIECES)
    for name, layout in expected.items():
        assert torch.equal(prompts[0][name].ids, layout.ids)
    ours_text, theirs_text = (
        ours.text.encode(prompts, ours.backbone.split_vector(vectors)),
        theirs.text.encode([expected] * 2, theirs.backbone.split_vector(vectors)),
    )
    torch.testing.assert_close(ours_text.context, theirs_text.context, atol=5e-6, rtol=1e-5)
    assert torch.equal(ours_text.columns, theirs_text.columns)
    if kind == "sdxl":
        torch.testing.assert_close(ours_text.pooled, theirs_text.pooled, atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(ours.text.word_vectors("red bird"), theirs.text.word_vectors("red bird"))


@pytest.mark.parametrize("kind", KINDS)
def test_plain_prompts_are_what_comfyui_encodes(kind: str, request: pytest.FixtureRequest) -> None:
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    loaded = request.getfixturevalue(f"{kind}_model")
    text = "a red bird head"
    ours = ComfyDenoiser(*loaded)
    ours = ours.text.encode([ours.text.tokenize([PromptPiece(text)])], None)
    theirs, pooled = loaded.clip.encode_from_tokens(loaded.clip.tokenize(text), return_pooled=True)
    torch.testing.assert_close(ours.context, theirs, atol=5e-6, rtol=1e-5)
    if kind == "sdxl":
        torch.testing.assert_close(ours.pooled, pooled, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_attention_and_features_equal_diffusers(pair, kind: str) -> None:
    ours, theirs = pair(kind)
    prompts, vectors, latents, times = _case(ours)
    layers = tuple(ours.attention_factors())
    with torch.no_grad():
        text = theirs.text.encode(prompts, theirs.backbone.split_vector(vectors))
        if kind == "sdxl":
            sizes = torch.tensor([[160.0, 128, 8, 0, 128, 128]]).expand(2, -1)
            text = text.with_extras(sizes=sizes)
        blocks = tuple(ours.feature_factors())
        for method in ("lse", "one_hot"):
            request = AttentionRequest(text.columns, layers, method)
            a, b = (denoiser.network.predict(latents, times, text, request, blocks) for denoiser in (ours, theirs))
            torch.testing.assert_close(a.prediction, b.prediction, atol=5e-5, rtol=1e-4)
            assert a.attention.keys() == b.attention.keys()
            for name in layers:
                torch.testing.assert_close(a.attention[name], b.attention[name], atol=1e-5, rtol=1e-4)
            for name in blocks:
                torch.testing.assert_close(a.features[name], b.features[name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_prediction_is_what_comfyuis_own_samplers_get(kind: str, request: pytest.FixtureRequest) -> None:
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    loaded = request.getfixturevalue(f"{kind}_model")
    ours = ComfyDenoiser(*loaded)
    prompts, vectors, latents, times = _case(ours)
    with torch.no_grad():
        text = ours.text.encode(prompts, ours.backbone.split_vector(vectors))
        noise = ours.network.predict(latents, times, text).prediction
        base = loaded.model.model
        sigma = base.model_sampling.sigmas[ours.process.timesteps(times).long()]
        scaled = latents * (sigma.view(-1, 1, 1, 1) ** 2 + 1).sqrt()
        extra = {}
        if kind == "sdxl":
            extra["y"] = base.encode_adm(pooled_output=text.pooled, width=128, height=128)
        denoised = base.apply_model(scaled, sigma, c_crossattn=text.context, **extra)
    torch.testing.assert_close((scaled - denoised) / sigma.view(-1, 1, 1, 1), noise, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_become_the_same_moments(pair, kind: str) -> None:
    ours, theirs = pair(kind)
    images = torch.rand(2, 3, 64, 64)
    for a, b in zip(ours.images.to_cache(images).unbind(1), theirs.images.to_cache(images).unbind(1), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    moments = theirs.images.to_cache(images)
    latents = ours.images.from_cache(moments)
    torch.testing.assert_close(latents, theirs.images.from_cache(moments))
    torch.testing.assert_close(ours.images.decode(latents), theirs.images.decode(latents), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_equal_diffusers_also_when_recomputed(pair, kind: str, recompute: bool) -> None:
    ours, theirs = pair(kind)
    results = []
    for denoiser in (ours, theirs):
        torch.manual_seed(5)
        adapters = denoiser.network.adapters.add(LoraSpec(rank=2, alpha=4.0))
        with torch.no_grad():  # the ups start at zero, where downs have no gradient
            for number, (name, parameter) in enumerate(adapters.items()):
                if name.endswith("up.weight"):
                    parameter.copy_(0.02 * torch.sin(torch.arange(parameter.numel()) + number).view_as(parameter))
        denoiser.network.set_gradient_checkpointing(recompute)
        prompts, vectors, latents, times = _case(denoiser)
        vectors.requires_grad_()

        def step(denoiser=denoiser, prompts=prompts, vectors=vectors, latents=latents, times=times) -> Tensor:
            text = denoiser.text.encode(prompts, denoiser.backbone.split_vector(vectors))
            out = denoiser.network.predict(
                latents, times, text, AttentionRequest(text.columns, tuple(denoiser.attention_factors()))
            )
            loss = out.prediction.square().mean() + sum(maps.square().sum() for maps in out.attention.values())
            loss.backward()
            return loss.detach()

        if denoiser is ours:
            with denoiser.training():
                loss = step()
        else:
            loss = step()
        results.append((loss, vectors.grad, {name: p.grad for name, p in adapters.items()}))
        denoiser.network.adapters.unload()
    (loss, vector_grad, grads), (loss2, vector_grad2, grads2) = results
    torch.testing.assert_close(loss, loss2, atol=1e-5, rtol=1e-5)
    _assert_near(vector_grad, vector_grad2)
    assert list(grads) == list(grads2)  # one order, so that one seed draws the same adapters
    for name, grad in grads.items():
        _assert_near(grad, grads2[name])


def _assert_near(ours: Tensor, theirs: Tensor) -> None:
    """Equal up to rounding, measured by the largest entry."""
    torch.testing.assert_close(ours, theirs, atol=1e-5 + 1e-4 * float(theirs.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_adapters_reach_the_same_layers(pair, kind: str) -> None:
    ours, theirs = pair(kind)
    torch.manual_seed(1)
    adapters = theirs.network.adapters.add(LoraSpec(rank=2))
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.normal_(std=0.1)
    tensors = theirs.network.adapters.tensors()
    assert ours.network.adapters.load(tensors) == len(adapters) // 2
    prompts, vectors, latents, times = _case(ours)
    with torch.no_grad():
        text = theirs.text.encode(prompts, theirs.backbone.split_vector(vectors))
        a, b = (denoiser.network.predict(latents, times, text).prediction for denoiser in (ours, theirs))
        torch.testing.assert_close(a, b, atol=5e-5, rtol=1e-4)
        ours.network.adapters.unload()
        plain = ours.network.predict(latents, times, text).prediction
    assert not torch.allclose(plain, a, atol=1e-3)


def test_a_lora_of_another_model_is_told(pair) -> None:
    ours, _ = pair("sd15")
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
    wrong = {f"{name}.lora_down.weight": torch.zeros(2, 99), f"{name}.lora_up.weight": torch.zeros(32, 2)}
    with pytest.raises(BestiaryError, match=r"down \(2, 99\) and up \(32, 2\) do not fit a layer of shape \(32, 32\)"):
        ours.network.adapters.load(wrong)
    with pytest.raises(BestiaryError, match="LoRA rank is 0: it must be at least 1"):
        ours.network.adapters.add(LoraSpec(rank=0))


def test_unknown_names_are_told(pair) -> None:
    ours, _ = pair("sd15")
    prompts, vectors, latents, times = _case(ours)
    text = ours.text.encode(prompts, ours.backbone.split_vector(vectors))
    with pytest.raises(
        BestiaryError, match=r"unknown block 'nowhere': choose from down_blocks.0.resnets.0 \(16 x 16\)"
    ):
        ours.network.predict(latents, times, text, features=["nowhere"])
    with pytest.raises(BestiaryError, match="unknown cross-attention layer 'mid.attn9'"):
        ours.network.predict(latents, times, text, AttentionRequest(text.columns, ("mid.attn9",)))
    with pytest.raises(BestiaryError, match="no cross-attention layer lies on the grid of image / 32"):
        ours.network.predict(latents, times, text, AttentionRequest(text.columns))


def test_attention_that_another_node_replaced_is_told(sd15_model) -> None:
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    model = sd15_model.model.clone()
    model.set_model_attn2_replace(lambda q, k, v, extra: q, "middle", 0)
    ours = ComfyDenoiser(model, sd15_model.clip, sd15_model.vae)
    prompts, vectors, latents, times = _case(ours)
    text = ours.text.encode(prompts, ours.backbone.split_vector(vectors))
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    with pytest.raises(BestiaryError, match=f"the attention of {name} cannot be read: another node"):
        ours.network.predict(latents, times, text, AttentionRequest(text.columns, (name,)))


def test_objects_that_do_not_belong_together_are_told(sd15_model, sdxl_model) -> None:
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    with pytest.raises(BestiaryError, match="the MODEL reads texts 96 wide and latents of 4 channels, the CLIP"):
        ComfyDenoiser(sdxl_model.model, sd15_model.clip)
    with pytest.raises(BestiaryError, match="pictures are needed here: connect a VAE"):
        ComfyDenoiser(sd15_model.model, sd15_model.clip).images.to_cache(torch.zeros(1, 3, 64, 64))


def test_nothing_stays_on_the_modules(sd15_model) -> None:
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    ours = ComfyDenoiser(*sd15_model)
    prompts, vectors, latents, times = _case(ours)
    text = ours.text.encode(prompts, ours.backbone.split_vector(vectors))
    ours.network.predict(latents, times, text)
    with pytest.raises(RuntimeError, match="stopped"), ours.training():
        raise RuntimeError("stopped")
    with pytest.raises(BestiaryError), ours.training(), ours.training():
        pass
    left = [name for name, module in sd15_model.model.model.named_modules() if "forward" in module.__dict__]
    assert left == []


def test_diffusion_features_of_graph_and_command_line_are_the_same(pair) -> None:
    from bestiary.concepts.features.patch_features import DiffusionFeatures

    ours, theirs = pair("demo")
    images = torch.rand(2, 3, 128, 128)
    a, b = (DiffusionFeatures(denoiser) for denoiser in (ours, theirs))
    assert a.spec == b.spec
    torch.testing.assert_close(a(images).features, b(images).features, atol=1e-3, rtol=1e-3)
