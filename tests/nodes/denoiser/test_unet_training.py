"""What hangs on the modules of a UNet while it learns: adapters that add what they say, captures that close, recomputed blocks."""

from collections.abc import Callable, Iterator

import pytest
import torch
from bestiary.concepts.denoiser.low_rank import LoraSpec
from bestiary.concepts.errors import BestiaryError
from torch import Tensor


@pytest.fixture
def hooked(sd15_model) -> Iterator[Callable[[], tuple]]:
    """`hooked(on=True)` -> hooks for the narrow SD1.5, and a function that runs its UNet; all is taken off at the end."""
    from bestiary.nodes.denoiser.forward_overrides import ForwardOverrides
    from bestiary.nodes.denoiser.trainable_weights import make_trainable
    from bestiary.nodes.denoiser.unet_layers import read_unet_layers
    from bestiary.nodes.denoiser.unet_training import UnetHooks

    unet, overrides = sd15_model.model.model.diffusion_model, ForwardOverrides()
    make_trainable(unet, "MODEL")
    layers = read_unet_layers(unet, sd15_model.model.model.model_config.unet_config)
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, 32, generator=generator)

    def run() -> Tensor:
        return unet(x, torch.tensor([10.0]), context=context, transformer_options={})

    def build(on: bool = True) -> tuple:
        hooks = UnetHooks(layers, lambda: torch.device("cpu"))
        if on:
            hooks.put_on(overrides)
        return hooks, run

    yield build
    overrides.take_off()


def test_hooks_and_fresh_adapters_change_nothing(hooked) -> None:
    _, run = hooked(on=False)
    with torch.no_grad():
        theirs = run()
        hooks, run = hooked()
        torch.testing.assert_close(run(), theirs, atol=1e-5, rtol=1e-4)  # another attention kernel
        hooks.adapters.add(LoraSpec(2, 2.0, True))  # up starts at zero
        torch.testing.assert_close(run(), theirs, atol=1e-5, rtol=1e-4)


def test_an_adapter_is_a_change_of_the_weight(hooked) -> None:
    hooks, run = hooked()
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    layer = hooks._layers.linear[name]
    down, up = torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2)
    kohya = "lora_unet_" + name.replace(".", "_")
    tensors = {f"{kohya}.lora_down.weight": down, f"{kohya}.lora_up.weight": up, f"{kohya}.alpha": torch.tensor(1.0)}
    with torch.no_grad():
        plain = run()
        assert hooks.adapters.load(tensors, 0.5) == 1
        ours = run()
        hooks.adapters.unload()
        assert torch.equal(run(), plain)
        before = layer.weight.clone()
        layer.weight += 0.5 * (1.0 / 2) * up @ down
        theirs = run()
        layer.weight.copy_(before)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ours, plain, atol=1e-3)


def test_strength_zero_is_no_adapter(hooked) -> None:
    hooks, run = hooked()
    kohya = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{kohya}.lora_down.weight": torch.ones(2, 64, 1, 1), f"{kohya}.lora_up.weight": torch.ones(64, 2, 1, 1)}
    with torch.no_grad():
        plain = run()
        assert hooks.adapters.load(tensors, 0.0) == 1
        assert torch.equal(run(), plain)
        hooks.adapters.load(tensors, 1.0)
        assert not torch.equal(run(), plain)  # convolutions have adapters too


def test_trained_adapters_are_given_out_as_they_are_loaded(hooked) -> None:
    hooks, run = hooked()
    named = hooks.adapters.add(LoraSpec(2, 1.0, False))
    assert all(".attn2" not in name and "attn2" in name for name in named)  # kohya's names have no dots inside
    with torch.no_grad():
        for parameter in named.values():
            parameter.normal_()
        learned, tensors = run(), hooks.adapters.tensors()
        assert all(float(t) == 1.0 for name, t in tensors.items() if name.endswith(".alpha"))
        hooks.adapters.unload()
        assert hooks.adapters.load(tensors, 1.0) == len(tensors) // 3
        torch.testing.assert_close(run(), learned, atol=1e-5, rtol=1e-4)


def gradients(hooks: object, run: Callable[[], Tensor], recompute: bool = False) -> dict[str, Tensor]:
    """Gradients of fresh adapters, whose values are the same every time."""
    hooks.adapters.unload()
    hooks.recompute = recompute
    named = hooks.adapters.add(LoraSpec(2, 2.0, True))
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.fill_(0.05 if "up" in name else 0.1)
    run().square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in named.items()}


def test_gradients_reach_adapters_and_nothing_else(hooked, sd15_model) -> None:
    hooks, run = hooked()
    plain, again = gradients(hooks, run), gradients(hooks, run, recompute=True)
    assert all(grad.abs().max() > 0 for found in (plain, again) for grad in found.values())
    assert not any(parameter.requires_grad for parameter in sd15_model.model.model.parameters())
    torch.testing.assert_close(again, plain, atol=1e-7, rtol=1e-5)


def test_blocks_that_are_recomputed_are_those_of_diffusers(hooked, sd15_reference) -> None:
    hooks, _ = hooked()
    kinds = [type(module).__name__ for module in sd15_reference.unet.modules()]
    wanted = kinds.count("BasicTransformerBlock") + kinds.count("ResnetBlock2D")
    assert len(hooks._recomputed_blocks()) == wanted


def test_a_capture_is_closed_whatever_happens(hooked) -> None:
    from bestiary.trainer.learning.denoiser.attention_capture import AttentionCapture

    hooks, _ = hooked()
    capture = AttentionCapture(torch.zeros(1, 1, dtype=torch.long), {}, "lse")
    with pytest.raises(ValueError, match="stop"), hooks.reading(capture):
        raise ValueError("stop")
    assert not capture.open and hooks._capture is None


def test_faults_are_told(hooked) -> None:
    hooks, _ = hooked()
    with pytest.raises(BestiaryError, match="LoRA rank is 0: it must be at least 1"):
        hooks.adapters.add(LoraSpec(0, 1.0, True))
    hooks.adapters.add(LoraSpec(1, 1.0, True))
    with pytest.raises(BestiaryError, match="has trainable adapters already: unload them first"):
        hooks.adapters.add(LoraSpec(1, 1.0, True))
    kohya = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{kohya}.lora_down.weight": torch.ones(2, 9), f"{kohya}.lora_up.weight": torch.ones(64, 2)}
    with pytest.raises(BestiaryError, match=r"down \(2, 9\) and up \(64, 2\) do not fit a layer of shape \(64, 32\)"):
        hooks.adapters.load(tensors, 1.0)


def tiled_options(model: object) -> dict:
    """What the UNet is called with by a MODEL behind ComfyUI's HyperTile, tiles of 4 x 4 of a latent of 8 x 8."""
    from comfy_extras.nodes_hypertile import HyperTile

    # the smallest tiles of its menu are 32 pixels
    (tiled,) = tuple(getattr(answer := HyperTile.execute(model, 32, 2, 0, False), "args", answer))
    patches = tiled.model_options["transformer_options"]["patches"]
    return {"patches": {kind: list(own) for kind, own in patches.items()}, "original_shape": (1, 4, 8, 8)}


def test_hypertile_trains_as_it_samples(hooked, sd15_model) -> None:
    hooks, _ = hooked(on=False)
    unet, seen = sd15_model.model.model.diffusion_model, []
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, 32, generator=generator)

    def run() -> Tensor:
        torch.manual_seed(3)
        options = tiled_options(sd15_model.model)
        options["patches"]["attn1_patch"].append(lambda q, k, v, facts: (seen.append(len(q)), (q, k, v))[1])
        return unet(x, torch.tensor([10.0]), context=context, transformer_options=options)

    with torch.no_grad():
        theirs = run()
        hooks, plain = hooked()
        torch.testing.assert_close(run(), theirs, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(plain(), theirs, atol=1e-4)
    assert max(seen) > 1, "queries came in tiles"
    plain, again = gradients(hooks, run), gradients(hooks, run, recompute=True)
    torch.testing.assert_close(again, plain, atol=1e-7, rtol=1e-5)


def test_cross_attention_in_pieces_cannot_be_read(hooked, sd15_model) -> None:
    from bestiary.trainer.learning.denoiser.attention_capture import AttentionCapture

    hooks, run = hooked()
    name = next(name for name in hooks._layers.attention if name.endswith(".attn2"))
    layer = hooks._layers.attention[name]
    capture = AttentionCapture(torch.tensor([[1]]), {name: (8, 8)}, "lse")
    halves, context = torch.zeros(2, 32, layer.to_q.in_features), torch.zeros(1, 5, 32)
    with hooks.reading(capture), pytest.raises(BestiaryError, match="in pieces of 32 places instead of 8 x 8"):
        layer(halves, context=context)
