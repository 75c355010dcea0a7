"""SD3 and Flux in ComfyUI's classes against the networks over diffusers: predictions, columns, features, gradients, and what is refused."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from bestiary.concepts.denoiser.backbone import get_backbone
from bestiary.concepts.denoiser.denoiser import AttentionRequest, Conditioning
from bestiary.concepts.denoiser.low_rank import LoraSpec
from bestiary.concepts.errors import BestiaryError
from torch import Tensor

from tests.nodes import tiny_transformers as tiny

KINDS = ("sd3: plain", "sd3: rms norms", "sd3: dual attention", "flux: guidance", "flux: no guidance")
TEXT, SIZE = 9, (4, 6)
SECOND = ("transformer_blocks.0.attn", "transformer_blocks.1.attn")
READ = {"sd3": SECOND, "flux": (*SECOND, "single_transformer_blocks.1.attn")}
FEATURES = {"sd3": ("transformer_blocks.0",), "flux": ("transformer_blocks.1", "single_transformer_blocks.0")}
COLUMNS = torch.tensor([[[1, 6], [4, -1], [-1, -1]], [[2, 8], [-1, -1], [3, 5]]])


@pytest.fixture(scope="module")
def pair() -> Callable[[str], tuple[object, object]]:
    """`pair(kind)` -> ComfyUI's denoiser and the one over diffusers, with the same weights."""
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser
    from bestiary.trainer.model.flux_denoiser import FluxDenoiser
    from bestiary.trainer.model.sd3_denoiser import SD3Denoiser
    from bestiary.trainer.model.transformer_network import TransformerParts

    def build(kind: str) -> tuple[object, object]:
        family, _, shape = kind.partition(": ")
        if family == "sd3":
            ours = ComfyDenoiser(tiny.sd3_model(shape), tiny.sd3_clip())
            theirs = SD3Denoiser(ours.backbone, TransformerParts(copy.deepcopy(tiny.sd3_reference(shape))))
            return ours, theirs
        ours = ComfyDenoiser(tiny.flux_model(shape == "guidance"), tiny.flux_clip())
        # schnell has no shift
        parts = TransformerParts(copy.deepcopy(tiny.flux_reference(shape == "guidance")), process=ours.process)
        return ours, FluxDenoiser(ours.backbone, parts)

    return build


def evaluation(denoiser: object) -> tuple[Tensor, Tensor, Conditioning]:
    """Latents, times and a text that wants a gradient."""
    record, rng = denoiser.backbone, torch.Generator().manual_seed(1)
    latents = torch.randn(2, record.latent_channels, *SIZE, generator=rng)
    context = torch.randn(2, TEXT, record.context_width, generator=rng).requires_grad_()
    pooled = torch.randn(2, sum(spec.width for spec in record.text_encoders if spec.pooled), generator=rng)
    return latents, torch.tensor([0.3, 1.0]), Conditioning.of(context, COLUMNS, pooled=pooled)


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5 of the largest number."""
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= 1e-5 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["text", "joint"])
def test_predictions_columns_and_features_are_those_over_diffusers(pair, kind: str, form: str) -> None:
    family = kind[: kind.index(":")]
    outputs = []
    for denoiser in pair(kind):
        latents, times, text = evaluation(denoiser)
        request = AttentionRequest(COLUMNS, READ[family], form=form)
        with torch.no_grad():
            outputs.append(denoiser.network.predict(latents, times, text, request, FEATURES[family]))
    ours, theirs = outputs
    close(ours.prediction, theirs.prediction)
    assert list(ours.attention) == list(theirs.attention) and list(ours.features) == list(theirs.features)
    for name, columns in theirs.attention.items():
        assert float(columns.abs().max()) > 1e-3
        assert float((ours.attention[name] - columns).abs().max()) < 1e-5
    for name, activations in theirs.features.items():
        close(ours.features[name], activations)


@pytest.mark.parametrize("kind", ["sd3: dual attention", "flux: guidance"])
def test_names_shapes_and_method_layers_are_those_over_diffusers(pair, kind: str) -> None:
    ours, theirs = (denoiser.network for denoiser in pair(kind))
    assert ours.attention_grids(SIZE) == theirs.attention_grids(SIZE)
    assert list(ours.feature_grids(SIZE)) == list(theirs.feature_grids(SIZE))
    assert ours.method_layers() == theirs.method_layers()
    for self_attention in (True, False):
        drawn = []
        for network in (ours, theirs):
            torch.manual_seed(0)
            parameters = network.adapters.add(LoraSpec(2, 4.0, self_attention))
            drawn.append({name: own.detach().clone() for name, own in parameters.items()})
            network.adapters.unload()
        assert list(drawn[0]) == list(drawn[1]) and len(drawn[0]) > 10
        assert all(torch.equal(own, drawn[1][name]) for name, own in drawn[0].items())


def gradients(denoiser: object, family: str, recompute: bool) -> dict[str, Tensor]:
    """Loss of prediction and columns, and its gradient in the text and all adapters."""
    network = denoiser.network
    latents, times, text = evaluation(denoiser)
    torch.manual_seed(0)
    parameters = network.adapters.add(LoraSpec(2, 4.0, targets=("to_q", "add_k_proj", "to_v", "to_out.0", "proj_mlp")[: 4 + (family == "flux")]))  # fmt: skip
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, own in parameters.items():
            own.copy_(torch.randn(own.shape, generator=rng) * (0.3 if "up" in name else 0.05))
    network.set_gradient_checkpointing(recompute)
    output = network.predict(latents, times, text, AttentionRequest(COLUMNS, READ[family], "one_hot"), FEATURES[family])
    terms = [output.prediction.square().mean(), *(own.square().mean() for own in output.features.values())]
    loss = sum(terms) + 10 * sum(own.square().sum() for own in output.attention.values())
    loss.backward()
    found = {name: own.grad for name, own in parameters.items()} | {"text": text.context.grad, "loss": loss.detach()}
    network.set_gradient_checkpointing(False)
    network.adapters.unload()
    return found


@pytest.mark.parametrize("kind", ["sd3: dual attention", "flux: guidance"])
def test_gradients_are_those_over_diffusers_with_and_without_recomputation(pair, kind: str) -> None:
    family = kind[: kind.index(":")]
    ours, theirs = pair(kind)
    expected = gradients(theirs, family, recompute=False)
    for recompute in (False, True):
        with ours.training():
            found = gradients(ours, family, recompute)
        assert found.keys() == expected.keys() and len(found) > 10
        for name, gradient in expected.items():
            scale = max(float(gradient.norm()), 1e-6)
            assert float((found[name] - gradient).norm()) <= 1e-5 * scale, (recompute, name)
            assert scale > 1e-5, name


@pytest.mark.parametrize("kind", ["sd3: dual attention", "flux: guidance"])
def test_the_model_is_untouched_afterwards(pair, kind: str) -> None:
    ours, _ = pair(kind)
    network = ours.network._transformer
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(RuntimeError, match="cut short"), ours.training():
        latents, times, text = evaluation(ours)
        ours.network.predict(latents, times, text)
        raise RuntimeError("cut short")
    assert not any("forward" in module.__dict__ for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    latents, times, text = evaluation(ours)
    with torch.no_grad():
        ours.network.predict(latents, times, text)
    assert not any("forward" in module.__dict__ or module._forward_hooks for module in network.modules())


def test_a_block_that_another_pack_replaces_is_refused_where_it_is_read(pair) -> None:
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    model = tiny.flux_model().clone()
    called = []

    def passes(given: dict, extra: dict) -> dict:
        called.append(1)
        return extra["original_block"](given)

    model.set_model_patch_replace(passes, "dit", "double_block", 1)
    ours, (_, theirs) = ComfyDenoiser(model, tiny.flux_clip()), pair("flux: guidance")
    latents, times, text = evaluation(ours)
    for asked in ({"attention": AttentionRequest(COLUMNS, (SECOND[1],))}, {"features": ("transformer_blocks.1",)}):
        with pytest.raises(
            BestiaryError, match="transformer_blocks.1.* cannot be read: another node .* has replaced its block"
        ):
            ours.network.predict(latents, times, text, **asked)
    with torch.no_grad():
        output = ours.network.predict(latents, times, text, AttentionRequest(COLUMNS, SECOND[:1]))
        close(output.prediction, theirs.network.predict(latents, times, text).prediction)
    assert called


def test_what_does_not_fit_is_refused(pair) -> None:
    ours, _ = pair("sd3: plain")
    latents, times, text = evaluation(ours)
    with pytest.raises(
        BestiaryError, match="latents of 3 x 6 are not covered by patches of 2 x 2: choose pictures .* multiples of 16"
    ):
        ours.network.predict(latents[:, :, :3], times, text)
    with pytest.raises(
        BestiaryError, match="the text is 24 wide, sd3 reads 4096: MODEL and CLIP are of different models"
    ):
        ours.network.predict(latents, times, replace(text, streams={"context": text.context[..., :24]}))
    with pytest.raises(BestiaryError, match="sd3 needs the pooled text vector"):
        ours.network.predict(latents, times, Conditioning.of(text.context))
    with pytest.raises(BestiaryError, match="unknown cross-attention layer 'transformer_blocks.7.attn': choose from"):
        ours.network.predict(latents, times, text, AttentionRequest(COLUMNS, ("transformer_blocks.7.attn",)))


def test_guidance_is_1_unless_the_text_names_another(pair) -> None:
    ours, _ = pair("flux: guidance")
    latents, times, text = evaluation(ours)
    with torch.no_grad():
        plain, one, four = (
            ours.network.predict(latents, times, text.with_extras(guidance=guidance)).prediction
            for guidance in (None, torch.ones(2), torch.full((2,), 4.0))
        )
    assert torch.equal(plain, one) and not torch.equal(plain, four)


def test_records_are_known_by_model_and_clip_together() -> None:
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    assert ComfyDenoiser(tiny.sd3_model(), tiny.sd3_clip()).backbone.name == "sd3"
    flux = ComfyDenoiser(tiny.flux_model(), tiny.flux_clip())
    assert flux.backbone.vector_width == tiny.CLIP_L + tiny.FLUX_T5 and flux.process.prediction == "flow"
    assert (
        flux.process.shift == pytest.approx(3.158, abs=1e-3) and get_backbone("flux").lora_prefix == "lora_transformer_"
    )
    with pytest.raises(
        BestiaryError, match=r"the MODEL is a sd3, the CLIP is that of flux \(clip_l, t5xxl\): load both"
    ):
        ComfyDenoiser(tiny.sd3_model(), tiny.flux_clip())
    with pytest.raises(BestiaryError, match="the MODEL is a flux, the CLIP is that of sd3"):
        ComfyDenoiser(tiny.flux_model(), tiny.sd3_clip())
