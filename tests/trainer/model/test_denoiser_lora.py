"""Adapters on a denoiser: identity, equality with merged weights, gradients, names, stacking and removal."""

from collections.abc import Callable

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import Conditioning
from bestiary.concepts.denoiser.lora_names import from_kohya
from bestiary.concepts.denoiser.low_rank import LoraSpec
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.model.denoiser_lora import AdaptedLayer, LowRankUpdate
from torch import Tensor, nn


def prediction(denoiser: object) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    text = Conditioning.of(torch.randn(2, 77, 32, generator=generator))
    return denoiser.network.predict(latents, torch.tensor([0.004, 0.601]), text).prediction


def trained(denoiser: object, spec: LoraSpec) -> dict[str, Tensor]:
    """Adapters with non-zero up matrices, as tensors; the denoiser is left without any."""
    generator = torch.Generator().manual_seed(5)
    for parameter in denoiser.network.adapters.add(spec).values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    tensors = denoiser.network.adapters.tensors()
    denoiser.network.adapters.unload()
    return tensors


def test_every_attention_projection_gets_an_adapter(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    parameters = denoiser.network.adapters.add(LoraSpec(rank=4))
    assert len(parameters) == 32 * 4 * 2  # 32 attention layers, q k v out, down and up
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in parameters.values())
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight"
    assert parameters[key].shape == (32, 4) and not parameters[key].any()
    down = parameters[key.replace("up.weight", "down.weight")]
    # 1 / rank, as diffusers' LoRALinearLayer starts, which the reference trains
    assert 0.2 < down.std() < 0.3 and abs(down.mean()) < 0.1


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_adapters_start_as_those_of_peft(rank: int) -> None:
    from bestiary.concepts.denoiser.low_rank import fresh_update
    from peft import LoraConfig, get_peft_model

    model = nn.Sequential(nn.Linear(2000, 8))
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"], init_lora_weights="gaussian")
    theirs = get_peft_model(model, config).base_model.model[0].lora_A["default"].weight
    ours = fresh_update(nn.Linear(2000, 8), LoraSpec(rank, float(rank)), torch.device("cpu"))
    assert float(ours.down.std()) == pytest.approx(float(theirs.std()), rel=0.1) and ours.down.shape == theirs.shape
    assert not ours.up.any() and ours.scale == 1


def test_cross_attention_alone(tiny_denoiser: Callable) -> None:
    names = tiny_denoiser("sd15").network.adapters.add(LoraSpec(rank=2, self_attention=False))
    assert len(names) == 16 * 4 * 2 and all("_attn2_to_" in name for name in names)


def test_fresh_adapters_change_nothing(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    with torch.no_grad():
        before = prediction(denoiser)
        denoiser.network.adapters.add(LoraSpec())
        torch.testing.assert_close(prediction(denoiser), before, atol=1e-6, rtol=1e-6)
        denoiser.network.adapters.unload()
        assert torch.equal(prediction(denoiser), before)
    assert not any(isinstance(module, AdaptedLayer) for module in denoiser.unet.modules())


def test_loaded_adapters_equal_merged_weights(tiny_denoiser: Callable) -> None:
    denoiser, merged = tiny_denoiser("sd15"), tiny_denoiser("sd15")
    tensors = trained(denoiser, LoraSpec(rank=3, alpha=1.5))
    with torch.no_grad():
        assert denoiser.network.adapters.load(tensors, 0.8) == 128
        for name, module in merged.unet.named_modules():
            key = "lora_unet_" + name.replace(".", "_")
            if f"{key}.alpha" in tensors:
                update = tensors[f"{key}.lora_up.weight"] @ tensors[f"{key}.lora_down.weight"]
                module.weight += 0.8 * 0.5 * update
        torch.testing.assert_close(prediction(denoiser), prediction(merged), atol=1e-4, rtol=1e-4)


def test_strength_zero_is_the_model_itself(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    tensors = trained(denoiser, LoraSpec())
    with torch.no_grad():
        before = prediction(denoiser)
        assert denoiser.network.adapters.load(tensors, 0.0) == 128
        assert torch.equal(prediction(denoiser), before)


def test_two_dictionaries_add_up_and_come_off(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    tensors = trained(denoiser, LoraSpec())
    with torch.no_grad():
        before = prediction(denoiser)
        denoiser.network.adapters.load(tensors, 1.0)
        once = prediction(denoiser)
        denoiser.network.adapters.unload()
        denoiser.network.adapters.load(tensors, 0.25)
        denoiser.network.adapters.load(tensors, 0.75)
        torch.testing.assert_close(prediction(denoiser), once, atol=1e-4, rtol=1e-4)
        denoiser.network.adapters.unload()
        assert torch.equal(prediction(denoiser), before)
    assert (once - before).abs().max() > 0.01


@pytest.mark.parametrize("naming", ("partcraft", "partcraft-sdxl", "peft", "diffusers"))
def test_other_namings_reach_the_same_layers(naming: str, tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    tensors = trained(denoiser, LoraSpec())
    with torch.no_grad():
        denoiser.network.adapters.load(tensors)
        expected = prediction(denoiser)
        denoiser.network.adapters.unload()
        assert denoiser.network.adapters.load(from_kohya(tensors, naming)) == 128
        torch.testing.assert_close(prediction(denoiser), expected, atol=1e-6, rtol=1e-6)


def test_tensors_come_back_after_a_load_into_fresh_adapters(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    tensors = trained(denoiser, LoraSpec(rank=2, alpha=8))
    assert tensors["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q.alpha"].item() == 8
    parameters = denoiser.network.adapters.add(LoraSpec(rank=2, alpha=8))
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[name])
    again = denoiser.network.adapters.tensors()
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("scale", (1.0, 0.5))
def test_the_joint_step_has_the_gradients_of_plain_autograd(scale: float) -> None:
    torch.manual_seed(0)
    base = nn.Linear(6, 5).requires_grad_(False)
    layer = AdaptedLayer(base)
    layer.adapters.append(LowRankUpdate(torch.randn(3, 6), torch.randn(5, 3), scale, trainable=True))
    update = layer.adapters[0]
    x = torch.randn(2, 4, 6, requires_grad=True)
    weights = torch.randn(2, 4, 5)
    ours = torch.autograd.grad((layer(x) * weights).sum(), [x, update.down, update.up])
    plain = base(x) + scale * (x @ update.down.t() @ update.up.t())
    torch.testing.assert_close(layer(x), plain)
    theirs = torch.autograd.grad((plain * weights).sum(), [x, update.down, update.up])
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their)


def test_adapters_stay_float32_beside_bf16_weights(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15", dtype="bf16")
    parameters = denoiser.network.adapters.add(LoraSpec())
    prediction(denoiser).square().mean().backward()
    assert denoiser.dtype == torch.bfloat16
    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients.values())


def test_convolution_adapters(tiny_denoiser: Callable) -> None:
    denoiser, merged = tiny_denoiser("sd15"), tiny_denoiser("sd15")
    key = "lora_unet_down_blocks_0_resnets_0_conv1"
    down, up = torch.randn(2, 32, 3, 3) * 0.1, torch.randn(32, 2, 1, 1)
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
    with torch.no_grad():
        assert denoiser.network.adapters.load(tensors) == 1
        merged.unet.down_blocks[0].resnets[0].conv1.weight += 0.5 * torch.einsum("or,rihw->oihw", up[..., 0, 0], down)
        torch.testing.assert_close(prediction(denoiser), prediction(merged), atol=1e-3, rtol=0)


def test_refusals(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    with pytest.raises(BestiaryError, match="none of the 1 LoRA layers belongs to this model"):
        denoiser.network.adapters.load(
            {"lora_unet_nose.lora_down.weight": torch.zeros(4, 8), "lora_unet_nose.lora_up.weight": torch.zeros(8, 4)}
        )
    wide = {name: torch.zeros(4, 768) if "lora_down" in name else torch.zeros(320, 4) for name in _pair()}
    with pytest.raises(
        BestiaryError, match=r"down \(4, 768\) and up \(320, 4\) do not fit a layer of shape \(32, 32\)"
    ):
        denoiser.network.adapters.load(wide)
    with pytest.raises(BestiaryError, match="LoRA rank is 0"):
        denoiser.network.adapters.add(LoraSpec(rank=0))
    denoiser.network.adapters.add(LoraSpec())
    with pytest.raises(BestiaryError, match="has trainable adapters already"):
        denoiser.network.adapters.add(LoraSpec())


def _pair() -> tuple[str, str]:
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    return f"{key}.lora_down.weight", f"{key}.lora_up.weight"
