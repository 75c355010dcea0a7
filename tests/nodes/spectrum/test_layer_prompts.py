"""Prompts per cross-attention layer, sampled by ComfyUI: equal to contexts put in module by module; an error without the hook."""

from collections.abc import Callable

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.concepts.spectrum.staged_prompt import PromptSources
from torch import Tensor

WIDTH = 32
NOISE = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))


def layers_of(model: object) -> int:
    from bestiary.nodes.spectrum.layer_prompts import attention_blocks

    return len(attention_blocks(model.model.diffusion_model))


def layered_spectrum(layers: int, stages: int, *, bypass: bool = False) -> PromptSpectrum:
    generator = torch.Generator().manual_seed(1)
    embeddings = {"clip_l": torch.randn(stages, layers, 1, WIDTH, generator=generator) * 0.4}
    extra = {"clip_l": torch.randn(stages, layers, 1, WIDTH, generator=generator)} if bypass else {}
    return PromptSpectrum("sd15", embeddings, StageBounds.equal(stages), bypass=extra)


def encode(
    clip: object, spectrum: PromptSpectrum, text: str = "a photo of a <it> bird", *, with_hooks: bool = True
) -> list[list]:
    from bestiary.nodes.spectrum.spectrum_prompts import PromptOptions, TypedSide, encode_typed_sides

    sides = [TypedSide(text), TypedSide("")]
    return encode_typed_sides(clip, sides, PromptSources({"it": spectrum}), PromptOptions(with_hooks=with_hooks))[0]


def sample(model: object, positive: list, negative: list, steps: int = 5, cfg: float = 3.0) -> Tensor:
    import comfy.sample

    empty = torch.zeros_like(NOISE)
    return comfy.sample.sample(
        model, NOISE, steps, cfg, "euler", "simple", positive, negative, empty, disable_pbar=True, seed=1
    )


def test_blocks_stand_in_the_order_in_which_they_run(sd15_model, sdxl_model, demo_model):
    from bestiary.nodes.spectrum.layer_prompts import attention_blocks

    blocks = attention_blocks(sd15_model.model.model.diffusion_model)
    seen: list[tuple[str, int]] = []
    clone = sd15_model.model.clone()
    clone.set_model_attn2_patch(lambda n, k, v, facts: seen.append(tuple(facts["block"])) or (n, k, v))
    plain = sd15_model.clip.encode_from_tokens_scheduled(sd15_model.clip.tokenize("a bird"))
    sample(clone, plain, plain, steps=1, cfg=1.0)
    assert seen == blocks
    assert len(attention_blocks(sdxl_model.model.model.diffusion_model)) == 4
    assert len(attention_blocks(demo_model.model.model.diffusion_model)) > 6


def test_sixteen_blocks_of_stable_diffusion_are_those_of_the_published_files():
    from bestiary.nodes.spectrum.layer_prompts import attention_blocks
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"):
        unet = UNetModel(
            image_size=32,
            in_channels=4,
            out_channels=4,
            model_channels=32,
            num_res_blocks=[2, 2, 2, 2],
            channel_mult=[1, 2, 4, 4],
            transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
            transformer_depth_output=[1] * 9 + [0] * 3,
            transformer_depth_middle=1,
            context_dim=32,
            num_heads=4,
            use_spatial_transformer=True,
            legacy=False,
        )
    inputs = [("input", number) for number in (1, 2, 4, 5, 7, 8)]
    outputs = [("output", number) for number in range(3, 12)]
    assert attention_blocks(unet) == [*inputs, ("middle", 0), *outputs]


def module_by_module(
    model: object, positive: list[Tensor], values: list[Tensor], negative: Tensor, steps: int, cfg: float
) -> Tensor:
    """The same sampling with hooks on the attention modules that put in each layer's keys and values."""
    unet = model.model.diffusion_model
    modules = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    order = sorted(range(len(modules)), key=lambda n: ("imo".index(_name_of(unet, modules[n])[0]), n))
    handles = []
    for layer, number in enumerate(order):
        handles.append(
            modules[number].register_forward_pre_hook(
                _replacing(positive[layer], values[layer], negative), with_kwargs=True
            )
        )
    try:
        return sample(model, [[positive[0], {}]], [[negative, {}]], steps, cfg)
    finally:
        for handle in handles:
            handle.remove()


def _name_of(unet: torch.nn.Module, wanted: torch.nn.Module) -> str:
    return next(name for name, module in unet.named_modules() if module is wanted)


def _replacing(keys: Tensor, values: Tensor, negative: Tensor) -> Callable:
    def replace(module: torch.nn.Module, inputs: tuple, named: dict) -> tuple:
        rows = named["context"]  # (B, T, E)
        is_negative = [bool(torch.equal(row, negative[0])) for row in rows]
        named["context"] = torch.cat([negative if no else keys for no in is_negative])
        named["value"] = torch.cat([negative if no else values for no in is_negative])
        return inputs, named

    return replace


@pytest.mark.parametrize("bypass", [False, True])
def test_packed_layers_equal_contexts_put_in_module_by_module(sd15_model, bypass):
    from bestiary.nodes.spectrum.layer_prompts import LayerPacking

    layers = layers_of(sd15_model.model)
    positive, negative = encode(sd15_model.clip, layered_spectrum(layers, 1, bypass=bypass))
    ((packed, options),) = positive
    packing = LayerPacking(layers, WIDTH, bypass)
    assert packed.shape == (1, 77, packing.packed_width)
    contexts = [packing.context(packed, layer) for layer in range(layers)]
    assert len({keys.numpy().tobytes() for keys, _ in contexts}) == layers
    assert torch.equal(*contexts[3]) is not bypass
    plain, _ = LayerPacking(layers, WIDTH, bypass).context(negative[0][0], 0)
    keys, values = ([pair[n].contiguous() for pair in contexts] for n in (0, 1))
    theirs = module_by_module(sd15_model.model, keys, values, plain.contiguous(), 5, 3.0)
    assert torch.equal(sample(sd15_model.model, positive, negative), theirs)


def test_every_layer_is_told_what_its_own_vector_says(sd15_model):
    from bestiary.nodes.spectrum.layer_prompts import LayerPacking

    layers = layers_of(sd15_model.model)
    spectrum = layered_spectrum(layers, 2)
    positive, _ = encode(sd15_model.clip, spectrum)
    for stage in range(2):
        packing = LayerPacking(layers, WIDTH, False)
        for layer in range(layers):
            single = PromptSpectrum(
                "sd15", {"clip_l": spectrum.embeddings["clip_l"][stage : stage + 1, layer]}, StageBounds.equal(1)
            )
            ((wanted, _),) = encode(sd15_model.clip, single)[0]
            assert torch.equal(packing.context(positive[stage][0], layer)[0], wanted)


def test_layers_and_stages_cost_what_one_prompt_costs(sd15_model):
    positive, negative = encode(sd15_model.clip, layered_spectrum(layers_of(sd15_model.model), 10))
    calls: list[int] = []
    clone = sd15_model.model.clone()

    def count(apply: Callable, facts: dict) -> Tensor:
        calls.append(len(facts["input"]))
        return apply(facts["input"], facts["timestep"], **facts["c"])

    clone.set_model_unet_function_wrapper(count)
    sample(clone, positive, negative, steps=10)
    assert calls == [2] * 10


def test_without_the_hook_it_is_an_error(sd15_model):
    positive, negative = encode(sd15_model.clip, layered_spectrum(layers_of(sd15_model.model), 2))
    stripped = [
        [[cond, {k: v for k, v in o.items() if k != "hooks"}] for cond, o in side] for side in (positive, negative)
    ]
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        sample(sd15_model.model, *stripped)


@pytest.mark.parametrize("bypass", [False, True])
def test_a_prepared_model_needs_no_hooks_and_gives_the_same_picture(sd15_model, bypass):
    from bestiary.nodes.spectrum.layer_prompts import with_layer_prompts

    spectrum = layered_spectrum(layers_of(sd15_model.model), 2, bypass=bypass)
    with_hooks, without = (encode(sd15_model.clip, spectrum, with_hooks=hooks) for hooks in (True, False))
    assert all("hooks" in options for side in with_hooks for _, options in side)
    assert not any("hooks" in options for side in without for _, options in side)
    theirs = sample(sd15_model.model, *with_hooks)
    prepared = with_layer_prompts(sd15_model.model)
    assert torch.equal(sample(prepared, *without), theirs)
    # both at once, a model prepared twice, and a clone of it
    assert torch.equal(sample(prepared, *with_hooks), theirs)
    assert torch.equal(sample(with_layer_prompts(prepared).clone(), *without), theirs)
    assert torch.equal(sample(sd15_model.model, *with_hooks), theirs)


def test_a_prepared_model_samples_plain_prompts_as_ever(sd15_model):
    from bestiary.nodes.spectrum.layer_prompts import with_layer_prompts

    plain = sd15_model.clip.encode_from_tokens_scheduled(sd15_model.clip.tokenize("a bird"))
    prepared, layers = with_layer_prompts(sd15_model.model), layers_of(sd15_model.model)
    assert torch.equal(sample(prepared, plain, plain), sample(sd15_model.model, plain, plain))
    positive, _ = encode(sd15_model.clip, layered_spectrum(layers, 2), with_hooks=False)
    hooked, _ = encode(sd15_model.clip, layered_spectrum(layers, 2))
    assert torch.equal(sample(prepared, positive, plain), sample(sd15_model.model, hooked, plain))


def test_a_prepared_model_refuses_what_does_not_fit(sd15_model):
    from bestiary.nodes.spectrum.layer_prompts import with_layer_prompts

    prepared, layers = with_layer_prompts(sd15_model.model), layers_of(sd15_model.model)
    with pytest.raises(BestiaryError, match=f"vectors for 16 cross-attention layers, but this MODEL has {layers}"):
        sample(prepared, *encode(sd15_model.clip, layered_spectrum(16, 2), with_hooks=False))
    sides = encode(sd15_model.clip, layered_spectrum(layers, 2), with_hooks=False)
    cut = [[[cond[..., :WIDTH], options] for cond, options in side] for side in sides]
    with pytest.raises(BestiaryError, match=f"layers of {WIDTH} channels is now {WIDTH} channels wide"):
        sample(prepared, *cut)


def test_a_model_whose_weights_move_is_not_loaded_twice(sd15_model):
    """ComfyUI takes another patcher, and with it a second copy of the weights, for conditionings with hooks."""
    from bestiary.nodes.spectrum.layer_prompts import with_layer_prompts

    swapped: list[int] = []

    class MovingPatcher(type(sd15_model.model)):
        """Says of itself that its weights are moved as they are needed."""

        def is_dynamic(self) -> bool:
            return True

        def get_non_dynamic_delegate(self) -> object:
            swapped.append(1)
            delegate = self.clone()
            delegate.__class__ = type(sd15_model.model)
            return delegate

    spectrum = layered_spectrum(layers_of(sd15_model.model), 1)
    moving = with_layer_prompts(sd15_model.model)
    moving.__class__ = MovingPatcher
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(moving)
    guider.set_conds(*encode(sd15_model.clip, spectrum, with_hooks=False))
    assert not swapped and guider.model_patcher is moving


def node_outputs(model: object, clip: object, spectrum: PromptSpectrum, linked: int | None) -> tuple:
    """What Spectrum Prompt gives in a graph that links its output of this number."""
    from types import SimpleNamespace

    from bestiary.nodes.host.socket_types import NamedSpectrum
    from bestiary.nodes.spectrum.prompt_spectrum_nodes import BestiarySpectrumPrompt

    inputs = {} if linked is None else {"model": ["7", linked]}
    prompt = {"7": {"inputs": {"text": "a"}}, "8": {"inputs": {"positive": ["7", 0], **inputs}}}
    node = type("Node", (BestiarySpectrumPrompt,), {"hidden": SimpleNamespace(unique_id="7", prompt=prompt)})
    made = node.execute(clip, "a <it>", "", model=model, spectrum_1=NamedSpectrum("it", spectrum))
    return tuple(made.args)


def test_the_node_leaves_hooks_out_where_its_own_model_is_sampled(sd15_model):
    model, clip, _ = sd15_model
    spectrum = layered_spectrum(layers_of(model), 2)
    positive, negative, _, given = node_outputs(model, clip, spectrum, None)
    assert all("hooks" in options for _, options in (*positive, *negative))
    theirs = sample(model, positive, negative)
    positive, negative, _, given = node_outputs(model, clip, spectrum, 3)
    assert given is not model and not any("hooks" in options for _, options in (*positive, *negative))
    assert torch.equal(sample(given, positive, negative), theirs)


def test_the_node_hands_its_model_on_where_layers_hear_the_same(sd15_model):
    plain = PromptSpectrum("sd15", {"clip_l": torch.randn(2, 1, WIDTH)}, StageBounds.equal(2))
    assert node_outputs(sd15_model.model, sd15_model.clip, plain, 3)[3] is sd15_model.model
    with pytest.raises(
        BestiaryError, match="Spectrum Prompt: the output model is connected, but the input model is not"
    ):
        node_outputs(None, sd15_model.clip, plain, 3)


def test_a_model_with_other_layers_is_refused(sd15_model):
    positive, negative = encode(sd15_model.clip, layered_spectrum(16, 2))
    count = layers_of(sd15_model.model)
    with pytest.raises(BestiaryError, match=f"vectors for 16 cross-attention layers, but this MODEL has {count}"):
        sample(sd15_model.model, positive, negative)


def test_a_changed_conditioning_is_refused(sd15_model):
    layers = layers_of(sd15_model.model)
    positive, negative = encode(sd15_model.clip, layered_spectrum(layers, 2))
    cut = [[[cond[..., :WIDTH], options] for cond, options in side] for side in (positive, negative)]
    with pytest.raises(BestiaryError, match=f"a prompt with {layers} layers of 32 channels is now 32 channels wide"):
        sample(sd15_model.model, *cut)


def test_nothing_stays_behind_after_a_fault(sd15_model):
    plain = sd15_model.clip.encode_from_tokens_scheduled(sd15_model.clip.tokenize("a bird"))
    before = sample(sd15_model.model, plain, plain)
    positive, negative = encode(sd15_model.clip, layered_spectrum(16, 2))
    with pytest.raises(BestiaryError):
        sample(sd15_model.model, positive, negative)
    assert torch.equal(sample(sd15_model.model, plain, plain), before)


def test_a_plain_negative_works_too(sd15_model):
    layers = layers_of(sd15_model.model)
    positive, negative = encode(sd15_model.clip, layered_spectrum(layers, 2))
    plain = sd15_model.clip.encode_from_tokens_scheduled(sd15_model.clip.tokenize(""))
    ours, theirs = sample(sd15_model.model, positive, plain), sample(sd15_model.model, positive, negative)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_a_controlnet_is_told_the_mean_of_the_layers(sd15_model):
    from bestiary.nodes.spectrum.layer_prompts import CONTROLNET_KEY, LayerPacking

    layers = layers_of(sd15_model.model)
    ((packed, options), *_) = encode(sd15_model.clip, layered_spectrum(layers, 1))[0]
    keys = [LayerPacking(layers, WIDTH, False).context(packed, layer)[0] for layer in range(layers)]
    assert torch.equal(options[CONTROLNET_KEY], torch.stack(keys).mean(0))


def test_part_attention_is_recorded_on_packed_prompts(sd15_model):
    from bestiary.nodes.attention.attention_record import AttentionRecord
    from bestiary.nodes.attention.model_patching import record_attention

    positive, negative = encode(sd15_model.clip, layered_spectrum(layers_of(sd15_model.model), 2))
    record = AttentionRecord("all")
    recorded = sample(record_attention(sd15_model.model, record), positive, negative)
    assert torch.equal(recorded, sample(sd15_model.model, positive, negative))
    assert len(record.find().parts) == 1


def test_prompts_of_different_lengths_cannot_be_packed():
    from bestiary.nodes.spectrum.layer_prompts import pack_layers

    with pytest.raises(BestiaryError, match=r"the layers of a prompt have \[77, 154\] tokens"):
        pack_layers([torch.zeros(1, 77, 4), torch.zeros(1, 154, 4)], None)


def test_bypass_vectors_move_the_state_before_the_last_norm(sd15_model):
    """NeTI: final_norm(h + 0.2 * |h| * b / |b|) for values, the plain state for keys."""
    from bestiary.nodes.spectrum.layer_prompts import LayerPacking

    layers = layers_of(sd15_model.model)
    spectrum = layered_spectrum(layers, 1, bypass=True)
    ((packed, _),) = encode(sd15_model.clip, spectrum)[0]
    core = sd15_model.clip.cond_stage_model.clip_l.transformer.text_model
    states: list[Tensor] = []
    handle = core.final_layer_norm.register_forward_pre_hook(lambda _, given: states.append(given[0]))
    single = PromptSpectrum("sd15", {"clip_l": spectrum.embeddings["clip_l"][:, 2]}, StageBounds.equal(1))
    encode(sd15_model.clip, single)
    handle.remove()
    hidden, b = states[0][0, 5], spectrum.bypass["clip_l"][0, 2, 0]
    wanted = core.final_layer_norm(hidden + 0.2 * b * hidden.norm() / b.norm())
    keys, values = LayerPacking(layers, WIDTH, True).context(packed, 2)
    assert (values[0, 5] - wanted).abs().max() < 1e-5
    others = [place for place in range(77) if place != 5]
    assert torch.equal(values[0, others], keys[0, others])
