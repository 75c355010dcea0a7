"""Frozen weights that gradients may pass: inference tensors, cast and offloaded layers, and what is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from bestiary.concepts.errors import BestiaryError
from torch import Tensor, nn


@pytest.fixture
def inference_linear() -> nn.Module:
    """A layer as ComfyUI's loaders leave it: its weights are inference tensors."""
    with torch.inference_mode():
        layer = nn.Linear(4, 3)
        layer.register_buffer("scale", torch.ones(3))
    return layer


def test_inference_tensors_get_a_normal_handle_on_the_same_memory(inference_linear: nn.Module) -> None:
    from bestiary.nodes.denoiser.trainable_weights import make_trainable

    places = [tensor.data_ptr() for tensor in (inference_linear.weight, inference_linear.bias, inference_linear.scale)]
    before = inference_linear.weight.detach().clone()
    x = torch.randn(2, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        inference_linear(x)
    assert make_trainable(inference_linear, "MODEL") == 3
    assert [t.data_ptr() for t in (inference_linear.weight, inference_linear.bias, inference_linear.scale)] == places
    inference_linear(x).sum().backward()
    torch.testing.assert_close(x.grad, before.sum(0).expand(2, -1))
    assert not inference_linear.weight.requires_grad and torch.equal(inference_linear.weight, before)
    assert make_trainable(inference_linear, "MODEL") == 0  # done already


def test_quantised_weights_are_refused() -> None:
    from bestiary.nodes.denoiser.trainable_weights import make_trainable

    layer = nn.Linear(4, 3)
    layer.weight = nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(
        BestiaryError, match=r"the MODEL holds .weight as float8_e4m3fn Tensor: quantised weights cannot"
    ):
        make_trainable(layer, "MODEL")


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_cast_layers_keep_no_copy_of_their_weights(kind: str) -> None:
    import comfy.ops
    from bestiary.nodes.denoiser.trainable_weights import cast_layer, needs_cast

    ops = comfy.ops.manual_cast
    if kind == "linear":
        layer, x = ops.Linear(6, 5, dtype=torch.bfloat16), torch.randn(2, 3, 6, requires_grad=True)
    else:
        layer = ops.Conv2d(4, 5, 3, stride=2, padding=1, dtype=torch.bfloat16)
        x = torch.randn(2, 4, 9, 9, requires_grad=True)
    for parameter in layer.parameters():
        nn.init.normal_(parameter).requires_grad_(False)
    assert needs_cast(layer, x.device, x.dtype) and not needs_cast(layer, x.device, torch.bfloat16)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ours = cast_layer(x, layer)
    assert kept == []
    ours.square().sum().backward()
    grad, x2 = x.grad, x.detach().clone().requires_grad_()
    weight, bias = layer.weight.float(), layer.bias.float()
    theirs = F.linear(x2, weight, bias) if kind == "linear" else F.conv2d(x2, weight, bias, stride=2, padding=1)
    theirs.square().sum().backward()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(grad, x2.grad)


def _copied(model: nn.Module) -> nn.Module:
    """A copy that shares its configuration: that of newer ComfyUIs cannot be copied."""
    return copy.deepcopy(model, {id(model.model_config): model.model_config})


def _in_inference_mode(loaded: object) -> tuple[object, object]:
    """Copies of MODEL and CLIP as loader nodes make them: every weight an inference tensor."""
    from comfy.model_patcher import ModelPatcher

    device = torch.device("cpu")
    with torch.inference_mode():
        model = _copied(loaded.model.model)
        stage = copy.deepcopy(loaded.clip.cond_stage_model)
        for module in (model, stage):
            for owner in module.modules():
                for name, parameter in list(owner._parameters.items()):
                    if parameter is not None:
                        owner._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
        clip = loaded.clip.clone()
        clip.cond_stage_model, clip.patcher = stage, ModelPatcher(stage, device, device)
    return ModelPatcher(model, device, device), clip


@pytest.mark.parametrize("recompute", [False, True])
def test_models_of_loader_nodes_are_trained(sd15_model, recompute: bool) -> None:
    from bestiary.concepts.denoiser.denoiser import AttentionRequest, PromptPiece
    from bestiary.concepts.denoiser.low_rank import LoraSpec
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    model, clip = _in_inference_mode(sd15_model)
    assert all(parameter.is_inference() for parameter in model.model.parameters())
    with torch.inference_mode():
        denoiser = ComfyDenoiser(model, clip)
        denoiser.network.set_gradient_checkpointing(recompute)
        with denoiser.training():
            adapters = denoiser.network.adapters.add(LoraSpec(rank=2))
            vectors = torch.zeros(1, 1, denoiser.backbone.vector_width, requires_grad=True)
            tokens = denoiser.text.tokenize([PromptPiece("a"), PromptPiece(None)])
            text = denoiser.text.encode([tokens], denoiser.backbone.split_vector(vectors))
            latents, layers = torch.ones(1, 4, 8, 8), tuple(denoiser.attention_factors())
            out = denoiser.network.predict(latents, torch.tensor([0.501]), text, AttentionRequest(text.columns, layers))
            (out.prediction.square().mean() + sum(maps.sum() for maps in out.attention.values())).backward()
    assert vectors.grad.abs().sum() > 0
    assert all(p.grad is not None for name, p in adapters.items() if name.endswith("up.weight"))
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(tensor, sd15_model.model.model.state_dict()[name]), name


def test_half_precision_weights_with_float32_arithmetic(sd15_model, sd15_reference) -> None:
    """ComfyUI's manual cast: every layer casts its weights, and gradients are those of the cast model."""
    import comfy.ops
    from bestiary.concepts.denoiser.denoiser import Conditioning
    from bestiary.concepts.denoiser.low_rank import LoraSpec
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    model, clip = _in_inference_mode(sd15_model)
    base = model.model
    base.diffusion_model.half()
    base.diffusion_model.dtype, base.manual_cast_dtype = torch.float16, torch.float32
    for module in base.diffusion_model.modules():
        if isinstance(module, comfy.ops.CastWeightBiasOp):
            module.comfy_cast_weights = True
    rounded = sd15_model.model.clone()
    plain = _copied(rounded.model)
    for parameter in plain.diffusion_model.parameters():
        parameter.data = parameter.data.half().float()
    rounded.model = plain
    grads = []
    for patcher in (model, rounded):
        denoiser = ComfyDenoiser(patcher, clip if patcher is model else sd15_model.clip)
        assert denoiser.dtype == torch.float32
        torch.manual_seed(0)
        with denoiser.training():
            adapters = denoiser.network.adapters.add(LoraSpec(rank=2))
            text = Conditioning.of(torch.ones(1, 7, 32).cumsum(1) / 7)
            denoiser.network.predict(
                torch.ones(1, 4, 8, 8), torch.tensor([0.501]), text
            ).prediction.square().mean().backward()
        grads.append({name: parameter.grad for name, parameter in adapters.items()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], atol=1e-5, rtol=1e-3)
