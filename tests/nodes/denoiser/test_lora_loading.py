"""Tests of LoRA in a MODEL: every naming against merged diffusers weights, alphas, strengths and faults."""

import copy

import pytest
import torch
from bestiary.concepts.denoiser.lora_names import ALPHA, DOWN, UP, from_kohya
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.denoiser.lora_loading import apply_lora

NAMINGS = ["kohya", "partcraft", "partcraft-sdxl", "diffusers", "lora_layer", "peft", "peft-plain", "diffengine"]
RANK = 3


@pytest.fixture(params=["sd15", "sdxl"])
def backbone(request):
    return request.param


@pytest.fixture
def model(backbone, request):
    return request.getfixturevalue(f"{backbone}_model").model


@pytest.fixture
def unet(backbone, request):
    return request.getfixturevalue(f"{backbone}_reference").unet


def attention_layers(unet: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    endings = ("to_q", "to_k", "to_v", "to_out.0")
    return {name: module for name, module in unet.named_modules() if name.endswith(endings)}


def random_lora(unet: torch.nn.Module, alpha: float | None = None) -> dict[str, torch.Tensor]:
    """Adapters of all attention layers under kohya names."""
    noise, tensors = torch.Generator().manual_seed(0), {}
    for path, layer in attention_layers(unet).items():
        name = "lora_unet_" + path.replace(".", "_")
        tensors[name + DOWN] = torch.randn(RANK, layer.in_features, generator=noise) / 8
        tensors[name + UP] = torch.randn(layer.out_features, RANK, generator=noise) / 8
        if alpha is not None:
            tensors[name + ALPHA] = torch.tensor(alpha)
    return tensors


def merged(unet: torch.nn.Module, lora: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """Diffusers' weights plus scale * up @ down, by path."""
    result = {}
    for path, layer in attention_layers(unet).items():
        name = "lora_unet_" + path.replace(".", "_")
        result[path] = layer.weight.detach() + scale * lora[name + UP] @ lora[name + DOWN]
    return result


def patched_weights(model: object, paths: list[str]) -> dict[str, torch.Tensor]:
    """What ComfyUI computes with, by diffusers path."""
    import comfy.utils

    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    patched = model.clone()
    patched.patch_model()
    try:
        state = model.model.state_dict()
        return {path: state[f"diffusion_model.{names[path + '.weight']}"].clone() for path in paths}
    finally:
        patched.unpatch_model()


def largest_gap(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    return max((ours[path] - theirs[path]).abs().max().item() for path in theirs)


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_reaches_every_layer(model, unet, naming):
    lora = random_lora(unet)
    expected = merged(unet, lora, 0.7)
    applied = apply_lora(model, from_kohya(lora, naming), 0.7)
    assert applied.reached == applied.given == len(expected)
    assert largest_gap(patched_weights(applied.model, list(expected)), expected) <= 1e-6


def test_block_numbers_of_original_checkpoints_are_known(model, unet):
    import comfy.utils

    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    lora, native = random_lora(unet), {}
    for path in attention_layers(unet):
        name = "lora_unet_" + path.replace(".", "_")
        other = "lora_unet_" + names[path + ".weight"].removesuffix(".weight").replace(".", "_")
        native |= {other + DOWN: lora[name + DOWN], other + UP: lora[name + UP]}
    expected = merged(unet, lora, 1.0)
    applied = apply_lora(model, native, 1.0)
    assert applied.reached == len(expected)
    assert largest_gap(patched_weights(applied.model, list(expected)), expected) <= 1e-6


def test_alphas_scale_the_update(model, unet):
    lora = random_lora(unet, alpha=6.0)
    expected = merged(unet, lora, 6.0 / RANK)
    ours = patched_weights(apply_lora(model, lora, 1.0).model, list(expected))
    assert largest_gap(ours, expected) <= 1e-6


def test_alpha_of_peft_gives_what_peft_merges(model, unet):
    import copy

    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict

    wrapped = get_peft_model(
        copy.deepcopy(unet),
        LoraConfig(r=RANK, lora_alpha=7, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False),
    )
    tensors = get_peft_model_state_dict(wrapped)
    theirs = wrapped.merge_and_unload()
    expected = {path: layer.weight.detach() for path, layer in attention_layers(theirs).items()}
    applied = apply_lora(model, tensors, 1.0, alpha=7)
    assert applied.reached == len(expected)
    assert largest_gap(patched_weights(applied.model, list(expected)), expected) <= 1e-6


def test_the_original_model_and_strength_zero_stay_unchanged(model, unet):
    lora = random_lora(unet)
    before = {path: layer.weight.detach() for path, layer in attention_layers(unet).items()}
    apply_lora(model, lora, 1.0)
    assert model.patches == {}
    nothing = apply_lora(model, lora, 0.0)
    assert nothing.reached == 0
    assert largest_gap(patched_weights(nothing.model, list(before)), before) == 0


def test_two_loras_add_up(model, unet):
    lora = random_lora(unet)
    twice = apply_lora(apply_lora(model, lora, 0.5).model, lora, 0.25).model
    expected = merged(unet, lora, 0.75)
    assert largest_gap(patched_weights(twice, list(expected)), expected) <= 1e-6


def test_layers_of_text_encoders_reach_the_clip(sd15_model, sd15_reference):
    lora = random_lora(sd15_reference.unet)
    name = "lora_te_text_model_encoder_layers_0_self_attn_v_proj"
    lora |= {name + DOWN: torch.linspace(-1, 1, 32)[None] ** 3, name + UP: torch.ones(32, 1)}
    applied = apply_lora(sd15_model.model, lora, 1.0, clip=sd15_model.clip)
    assert applied.reached == applied.given == len(lora) // 2
    tokens = sd15_model.clip.tokenize("a bird")
    before = sd15_model.clip.encode_from_tokens(tokens)
    assert (applied.clip.encode_from_tokens(tokens) - before).abs().max() > 1e-4
    assert (sd15_model.clip.encode_from_tokens(tokens) - before).abs().max() == 0
    # without a CLIP the rest still loads
    assert apply_lora(sd15_model.model, lora, 1.0).reached == applied.given - 1


def test_a_lora_of_another_model_is_refused(model, unet):
    strange = {"lora_unet_double_blocks_0_img_attn_qkv" + DOWN: torch.ones(2, 8)}
    strange["lora_unet_double_blocks_0_img_attn_qkv" + UP] = torch.ones(8, 2)
    with pytest.raises(BestiaryError, match=r"for a transformer model such as Flux or SD3 \('lora_unet_double_blocks"):
        apply_lora(model, strange, 1.0)
    elsewhere = {"lora_unet_nose" + DOWN: torch.ones(2, 8), "lora_unet_nose" + UP: torch.ones(8, 2)}
    with pytest.raises(BestiaryError, match=r"none of the 1 LoRA layers belongs .*'lora_unet_nose.*to_q"):
        apply_lora(model, elsewhere, 1.0)
    with pytest.raises(BestiaryError, match="no LoRA layer among 1 tensors"):
        apply_lora(model, {"weights": torch.ones(2)}, 1.0)


def packed_clone(model: object) -> object:
    """The model with the weights of all its linear layers as fp4 files hold them: two numbers in a byte."""
    packed, inner = model.clone(), copy.copy(model.model)
    inner._modules = {**inner._modules, "diffusion_model": copy.deepcopy(inner.diffusion_model)}
    packed.model = inner
    for layer in packed.model.modules():
        if isinstance(layer, torch.nn.Linear):
            nibbles = torch.zeros(layer.out_features, layer.in_features // 2, dtype=torch.uint8)
            layer.weight = torch.nn.Parameter(nibbles, requires_grad=False)
    return packed


def test_packed_weights_are_no_other_model(model, unet):
    packed, lora = packed_clone(model), random_lora(unet)
    applied = apply_lora(packed, lora, 1.0)
    assert applied.reached == applied.given == len(attention_layers(unet))
    # another width is told as before, by the shape that is computed with
    wrong = {name: torch.randn(3, 48) if name.endswith(DOWN) else tensor for name, tensor in lora.items()}
    with pytest.raises(BestiaryError, match=r"the model's layer is \(\d+, \d+\): it was trained for another model"):
        apply_lora(packed, wrong, 1.0)


def test_wrong_shapes_are_told_before_sampling(model, unet):
    lora = random_lora(unet)
    name = next(iter(lora))
    lora[name] = torch.ones(RANK, 5)
    with pytest.raises(BestiaryError, match=rf"\({RANK}, 5\), the model's layer is \(\d+, \d+\): .* another model"):
        apply_lora(model, lora, 1.0)
