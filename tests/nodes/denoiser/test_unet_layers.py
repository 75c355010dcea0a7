"""ComfyUI's layers under diffusers' names: the same weights, all of them, in the same order, at the same scale."""

from collections.abc import Callable

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from torch import nn

KINDS = ("sd15", "sdxl")


@pytest.fixture
def read(request: pytest.FixtureRequest) -> Callable[[str], tuple]:
    """`read(kind)` -> layers of ComfyUI's UNet and diffusers' UNet of the same weights."""

    def build(kind: str) -> tuple:
        from bestiary.nodes.denoiser.unet_layers import read_unet_layers

        model = request.getfixturevalue(f"{kind}_model").model.model
        layers = read_unet_layers(model.diffusion_model, model.model_config.unet_config)
        return layers, request.getfixturevalue(f"{kind}_reference").unet

    return build


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_and_convolution_layer_has_its_name(read, kind: str) -> None:
    layers, unet = read(kind)
    theirs = {name: module for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    # ComfyUI's table calls the embedding of sizes by two names
    assert {name for name in layers.linear if not name.startswith("class_embedding.")} == set(theirs)
    for name, module in theirs.items():
        assert torch.equal(layers.linear[name].weight, module.weight), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("both", [False, True])
def test_projections_come_in_the_order_in_which_diffusers_makes_them(read, kind: str, both: bool) -> None:
    """Fresh adapters are drawn one after the other, so the order decides what each gets."""
    layers, unet = read(kind)
    wanted = (".attn1.", ".attn2.") if both else (".attn2.",)
    theirs = [
        name
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and any(part in name for part in wanted)
    ]
    assert list(layers.attention_projections(both)) == theirs


@pytest.mark.parametrize("kind", KINDS)
def test_factors_are_what_a_forward_pass_shows(read, kind: str) -> None:
    layers, unet = read(kind)
    seen: dict[str, int] = {}
    edge = 16

    def tokens(name: str) -> Callable:
        return lambda module, inputs, output: seen.update({name: edge // round(inputs[0].shape[1] ** 0.5)})

    def pixels(name: str) -> Callable:
        def note(module: nn.Module, inputs: tuple, output: object) -> None:
            seen[name] = edge // (output[0] if isinstance(output, tuple) else output).shape[-1]

        return note

    handles = [unet.get_submodule(name).register_forward_hook(tokens(name)) for name in layers.attention]
    handles += [unet.get_submodule(name).register_forward_hook(pixels(name)) for name in layers.blocks]
    told = {"text_embeds": torch.zeros(1, 64), "time_ids": torch.zeros(1, 6)} if kind == "sdxl" else None
    with torch.no_grad():
        unet(
            torch.zeros(1, 4, edge, edge), 1, torch.zeros(1, 7, unet.config.cross_attention_dim), added_cond_kwargs=told
        )
    for handle in handles:
        handle.remove()
    assert layers.factors == seen


def test_cross_attention_is_listed_in_the_order_in_which_it_runs(read) -> None:
    names = list(read("sd15")[0].cross_attention())
    sections = [name.split(".")[0] for name in names]
    assert sections == sorted(sections, key=["down_blocks", "mid_block", "up_blocks"].index)
    assert all(name.endswith(".attn2") for name in names) and len(names) == 7


def test_other_models_are_told() -> None:
    from bestiary.nodes.denoiser.unet_layers import read_unet_layers

    with pytest.raises(
        BestiaryError, match="this MODEL is a Linear: connect a Stable Diffusion 1.5, 2 or XL checkpoint"
    ):
        read_unet_layers(nn.Linear(1, 1), {"num_res_blocks": [1]})
