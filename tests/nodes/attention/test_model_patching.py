"""Part attention hung on ComfyUI's own samplers: exact parity, untouched pictures, and good company for other patches."""

import copy
import importlib.util
import threading

import comfy.model_management
import comfy.sample
import pytest
import torch
from bestiary.concepts.denoiser.attention_maps import average_maps
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.attention.attention_record import AttentionRecord
from bestiary.nodes.attention.model_patching import attention_factors, confine_part, record_attention
from bestiary.nodes.attention.part_regions import make_region
from bestiary.nodes.host.socket_types import SPANS_KEY, PartSpan
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

HEAD, WING = PartSpan("head:a", "head", (3, 4)), PartSpan("wing:b", "wing", (7,))
HAS_SEVERAL_GPUS = importlib.util.find_spec("comfy.multigpu") is not None
WIDTHS = {"sd15": 32, "sdxl": 96, "demo": 128}


@pytest.fixture(params=["sd15", "sdxl", "demo"])
def backbone(request):
    return request.param


@pytest.fixture
def model(backbone, request):
    return request.getfixturevalue(f"{backbone}_model").model


@pytest.fixture
def sd15(sd15_model):
    return sd15_model.model


def conditioning(width: int, tokens: int = 77, seed: int = 1, spans: tuple = (), **options: object) -> list:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, tokens, width, generator=generator)
    return [text, {"pooled_output": torch.randn(1, 64, generator=generator), SPANS_KEY: spans, **options}]


def sample(
    model: object,
    positive: list | None = None,
    negative: list | None = None,
    size: tuple[int, int] = (16, 16),
    batch: int = 1,
    steps: int = 2,
    cfg: float = 5.0,
    sampler: str = "euler",
    **options: object,
) -> Tensor:
    """A core sampling with fixed noise."""
    width = model.model.model_config.unet_config["context_dim"]
    channels = model.model.latent_format.latent_channels
    positive = [conditioning(width, spans=(HEAD, WING))] if positive is None else positive
    negative = [conditioning(width, seed=2)] if negative is None else negative
    noise = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            sampler,
            "normal",
            positive,
            negative,
            torch.zeros_like(noise),
            seed=4,
            disable_pbar=True,
            **options,
        )


def recorded(model: object, layers: str = "all", **options: object) -> tuple[Tensor, AttentionRecord]:
    record = AttentionRecord(layers)
    return sample(record_attention(model, record), **options), record


# --- parity ---------------------------------------------------------------------------------------------------------


def reference_unet(backbone: str, request: pytest.FixtureRequest) -> nn.Module:
    if backbone != "demo":
        return request.getfixturevalue(f"{backbone}_reference").unet
    from bestiary.nodes.demo.demo_model import BASE_MODEL
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(BASE_MODEL / "unet", torch_dtype=torch.float32).eval()


def reference_maps(unet: nn.Module, inputs: dict, columns: list[list[int]]) -> dict[str, Tensor]:
    """Head means of diffusers' own explicit probabilities, summed over each part's tokens: layer -> (R, P, N)."""
    from diffusers.models.attention_processor import AttnProcessor

    found, processors = {}, unet.attn_processors
    unet.set_attn_processor(AttnProcessor())
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            scores = type(module).get_attention_scores

            def keep(q, k, mask=None, name=name, module=module, scores=scores):
                probabilities = scores(module, q, k, mask)  # (R * H, N, K)
                mean = probabilities.unflatten(0, (-1, module.heads)).mean(1)  # (R, N, K)
                found[name] = torch.stack([mean[..., places].sum(-1) for places in columns], dim=1)
                return probabilities

            module.get_attention_scores = keep
    try:
        extra = {}
        if inputs["y"] is not None:
            # text and sizes as diffusers wants them: the pooled vector, and ComfyUI's already embedded sizes passed through
            pooled, sizes = inputs["y"].split([64, 6 * 256], dim=1)
            extra = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.zeros(len(pooled), 6)}}
            unet.add_time_proj.forward = lambda _: sizes.reshape(-1, 256)
        with torch.inference_mode():
            unet(inputs["x"], inputs["t"], inputs["context"], **extra)
    finally:
        unet.set_attn_processor(processors)
        for module in unet.modules():
            module.__dict__.pop("get_attention_scores", None)
            if module is getattr(unet, "add_time_proj", None):
                module.__dict__.pop("forward", None)
    return found


@pytest.mark.parametrize(("batch", "size"), [(1, (16, 16)), (2, (16, 24))])
def test_maps_are_diffusers_probabilities(backbone, model, request, batch, size):
    seen = []

    def watch(executor, x, timesteps, context, y=None, *rest, **kw):
        seen.append({"x": x, "t": timesteps, "context": context, "y": y, "options": rest[-1] if rest else kw})
        return executor(x, timesteps, context, y, *rest, **kw)

    record = AttentionRecord("all")
    patched = record_attention(model, record)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "tests", watch)
    sample(patched, batch=batch, size=size, steps=1)
    ours = record.find().maps[0]  # (B, P, h, w)
    theirs = reference_maps(reference_unet(backbone, request), seen[0], [[3, 4], [7]])
    # the uncond half comes first
    first = seen[0]["options"]["cond_or_uncond"].index(0) if "cond_or_uncond" in seen[0]["options"] else 1
    layers = {}
    for name, maps in theirs.items():
        factor = 2 ** round(torch.log2(torch.tensor(size[0] * size[1] / maps.shape[-1])).item() / 2)
        layers[name] = maps[first * batch : (first + 1) * batch].unflatten(2, (size[0] // factor, -1))
    theirs = average_maps(layers, tuple(ours.shape[-2:]))
    assert theirs.max() > 0.01
    assert (ours - theirs).abs().max() < 1e-6


@pytest.mark.parametrize(("batch", "size", "sampler"), [(1, (16, 16), "euler"), (2, (16, 24), "heun")])
def test_recording_leaves_the_picture_exactly_alone(model, batch, size, sampler):
    options = {"batch": batch, "size": size, "sampler": sampler}
    for layers in ("auto", "all"):
        ours, record = recorded(model, layers, **options)
        assert torch.equal(ours, sample(model, **options))
        maps = record.find(ours).maps
        assert maps.shape[:3] == (2, batch, 2)
        assert (maps > 0).all()


# --- batches of prompts ---------------------------------------------------------------------------------------------


def swapped_order(apply_model, arguments: dict) -> Tensor:
    """Runs the prompts of a batch in the opposite order, as other packs and versions may."""
    count = len(arguments["cond_or_uncond"])

    def turn(tensor: Tensor) -> Tensor:
        return torch.cat(tensor.chunk(count)[::-1]) if tensor.shape[0] > 1 else tensor

    c = {name: turn(value) if torch.is_tensor(value) else value for name, value in arguments["c"].items()}
    options = dict(c["transformer_options"])
    for name in ("cond_or_uncond", "uuids"):
        options[name] = options[name][::-1]
    c["transformer_options"] = options
    return turn(apply_model(turn(arguments["input"]), turn(arguments["timestep"]), **c))


def seen_orders(model: object) -> list:
    """Orders in which sides are run, collected from here on."""
    orders = []
    model.set_model_attn2_patch(lambda n, c, v, extra: (orders.append(tuple(extra["cond_or_uncond"])), n, c, v)[1:])
    return orders


@pytest.mark.parametrize("tokens", [77, 154])
def test_both_orders_of_the_sides_give_the_same_maps(sd15, tokens):
    options = {"negative": [conditioning(32, tokens, seed=2)], "batch": 2}
    _, theirs = recorded(sd15, **options)
    other = sd15.clone()
    other.set_model_unet_function_wrapper(swapped_order)
    orders = seen_orders(other)
    _, ours = recorded(other, **options)
    assert set(orders) == {(0, 1)}
    assert (ours.find().maps - theirs.find().maps).abs().max() < 1e-6


def test_sides_run_one_by_one_give_the_same_maps(sd15, monkeypatch):
    _, theirs = recorded(sd15, batch=2)
    monkeypatch.setattr(sd15.model, "memory_required", lambda *args, **kw: 1e30)
    other = sd15.clone()
    orders = seen_orders(other)
    _, ours = recorded(other, batch=2)
    assert set(orders) == {(0,), (1,)}
    assert (ours.find().maps - theirs.find().maps).abs().max() < 1e-6


def over_two_devices(model: object, threads: list) -> object:
    """A clone that is evaluated as ComfyUI does it on two GPUs: one thread and one copy of the weights for each."""
    import comfy.model_patcher
    import comfy.multigpu

    places = [torch.device("cpu"), torch.device("cpu", 0)]
    copied = copy.copy(model.model)
    copied._modules = {**model.model._modules, "diffusion_model": copy.deepcopy(model.model.diffusion_model)}
    other = comfy.model_patcher.ModelPatcher(copied, places[1], places[1])
    copied.current_patcher = other

    def evaluate(executor, inner: object, conds: list, x: Tensor, timestep: Tensor, options: dict) -> list[Tensor]:
        pool = comfy.multigpu.MultiGPUThreadPool(places)
        patchers = dict(zip(places, (inner.current_patcher, other), strict=True))
        try:
            return executor(
                inner, conds, x, timestep, {**options, "multigpu_clones": patchers, "multigpu_thread_pool": pool}
            )
        finally:
            pool.shutdown()

    def watch(n: Tensor, context: Tensor, value: Tensor, extra: dict) -> tuple[Tensor, Tensor, Tensor]:
        threads.append(threading.get_ident())
        return n, context, value

    clone = model.clone()
    clone.set_model_attn2_patch(watch)
    clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "two devices", evaluate)
    return clone


@pytest.mark.skipif(not HAS_SEVERAL_GPUS, reason="this ComfyUI knows one GPU only")
def test_two_devices_give_the_maps_of_one(sd15):
    prompts = {
        "positive": [conditioning(32, seed=seed, spans=(HEAD, WING)) for seed in (1, 5)],
        "negative": [conditioning(32, seed=2, spans=(WING,))],
    }
    found, threads = [], []
    for model in (sd15, over_two_devices(sd15, threads)):
        record = AttentionRecord("all", negative=True)
        picture = sample(record_attention(model, record), steps=3, **prompts)
        found.append((picture, record.find().maps))
    assert len(set(threads)) > 1
    for theirs, ours in zip(*found, strict=True):
        assert theirs.abs().max() > 0
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("lengths", [(77, 154), (154, 77), (154, 231)])
def test_prompts_of_different_length(sd15, lengths):
    far = PartSpan("head:a", "head", (lengths[0] - 70,))
    positive = [conditioning(32, lengths[0], spans=(far,))]
    _, alone = recorded(sd15, positive=positive, negative=[conditioning(32, lengths[0], seed=2)], steps=1)
    _, beside = recorded(sd15, positive=positive, negative=[conditioning(32, lengths[1], seed=2)], steps=1)
    assert (alone.find().maps - beside.find().maps).abs().max() < 1e-6


def test_without_guidance_there_is_one_side(sd15):
    ours, record = recorded(sd15, cfg=1.0)
    assert torch.equal(ours, sample(sd15, cfg=1.0))
    assert (record.find().maps > 0).all()


def test_the_negative_prompt_only_if_asked(sd15):
    negative = [conditioning(32, seed=2, spans=(PartSpan("head:a", "head", (9,)),))]
    _, record = recorded(sd15, negative=negative)
    assert [part.title for part in record.find().parts] == ["head:a", "wing:b"]
    both = AttentionRecord("all", negative=True)
    sample(record_attention(sd15, both), negative=negative)
    sampling = both.find()
    assert [part.title for part in sampling.parts] == ["head:a", "wing:b", "head:a (negative)"]
    assert torch.equal(sampling.maps[:, :, :2], record.find().maps)
    assert (sampling.maps[:, :, 0] - sampling.maps[:, :, 2]).abs().max() > 1e-4


def test_prompts_scheduled_in_stages(sd15):
    early = conditioning(32, spans=(HEAD,), start_percent=0.0, end_percent=0.5)
    late = conditioning(32, seed=5, spans=(WING,), start_percent=0.5, end_percent=1.0)
    ours, record = recorded(sd15, positive=[early, late], steps=4)
    assert torch.equal(ours, sample(sd15, positive=[early, late], steps=4))
    sampling = record.find()
    assert [part.label for part in sampling.parts] == ["head:a", "wing:b"]
    assert sampling.held[0].tolist() == [True, False]
    assert sampling.held[-1].tolist() == [False, True]
    assert sampling.maps[-1, 0, 0].abs().max() == 0
    _, theirs = recorded(sd15, positive=[conditioning(32, spans=(HEAD,))], steps=4)
    assert (sampling.maps[0, :, 0] - theirs.find().maps[0, :, 0]).abs().max() < 1e-6


def test_prompts_with_areas_fill_their_piece(sd15):
    plain = conditioning(32, seed=5)
    right = conditioning(32, spans=(HEAD,), area=(16, 8, 0, 8), strength=1.0)
    ours, record = recorded(sd15, "full", positive=[plain, right], batch=2)
    assert torch.equal(ours, sample(sd15, positive=[plain, right], batch=2))
    sampling = record.find()
    assert [part.label for part in sampling.parts] == ["head:a"]
    assert sampling.maps[..., :8].abs().max() == 0
    assert (sampling.maps[..., 8:] > 0).all()


# --- other packs ----------------------------------------------------------------------------------------------------


def louder(n: Tensor, context: Tensor, value: Tensor, extra: dict) -> tuple[Tensor, Tensor, Tensor]:
    """A cross-attention patch of another pack: two more tokens."""
    more = context[:, :2] * 0.5
    return n * 1.1, torch.cat((context, more), dim=1), torch.cat((value, more), dim=1)


def softer(calls: list):
    def override(func, q, k, v, heads, *args, **kw):
        calls.append(q.shape)
        return func(q * 0.9, k, v, heads, *args, **kw)

    return override


@pytest.mark.parametrize("theirs_first", [True, False])
def test_a_second_cross_attention_patch(sd15, theirs_first):
    reference = sd15.clone()
    reference.set_model_attn2_patch(louder)
    if theirs_first:
        ours, record = recorded(reference)
    else:
        record = AttentionRecord("all")
        patched = record_attention(sd15, record)
        patched.set_model_attn2_patch(louder)
        ours = sample(patched)
    assert torch.equal(ours, sample(reference))
    assert not torch.equal(ours, sample(sd15))
    assert (record.find().maps > 0).all()


@pytest.mark.parametrize("theirs_first", [True, False])
def test_another_attention_override(sd15, theirs_first):
    calls = []
    reference = sd15.clone()
    reference.model_options["transformer_options"]["optimized_attention_override"] = softer(calls)
    expected = sample(reference)
    count = len(calls)
    assert count > 0
    calls.clear()
    record = AttentionRecord("all")
    if theirs_first:
        patched = record_attention(reference, record)
    else:
        patched = record_attention(sd15, record)
        ours = patched.model_options["transformer_options"]["optimized_attention_override"]
        patched.model_options["transformer_options"]["optimized_attention_override"] = lambda func, *args, **kw: ours(
            lambda *inner, **options: softer(calls)(func, *inner, **options), *args, **kw
        )
    assert torch.equal(sample(patched), expected)
    assert len(calls) == count
    assert (record.find().maps > 0).all()


def test_a_block_replaced_by_another_pack_is_left_out(sd15):
    def replacement(q, k, v, extra):
        from comfy.ldm.modules.attention import attention_basic

        return attention_basic(q, k, v, extra["n_heads"])

    _, plain = recorded(sd15, "half", steps=3)
    other = sd15.clone()
    for block, number in (("input", 1), ("output", 2), ("output", 3)):
        other.set_model_attn2_replace(replacement, block, number)
    expected = sample(other, steps=3)
    ours, record = recorded(other, "half", steps=3)
    # a mark left by a replaced block must not be taken for another attention: not a self-attention, not the next step's
    assert torch.equal(ours, expected)
    assert (record.find().maps - plain.find().maps).abs().max() < 1e-3
    _, none = recorded(other, "full", steps=3)
    assert none.find().maps.abs().max() == 0


def test_a_patch_that_changes_the_batch_is_told_and_left_alone(sd15, caplog):
    def double(n, context, value, extra):
        return n.repeat(2, 1, 1), context.repeat(2, 1, 1), value.repeat(2, 1, 1)

    other = sd15.clone()
    other.set_model_attn2_patch(double)
    other.set_model_attn2_output_patch(lambda n, extra: n[: n.shape[0] // 2])
    expected = sample(other)
    ours, record = recorded(other)
    assert torch.equal(ours, expected)
    assert record.find().maps.abs().max() == 0
    assert "another patch changed the batch" in caplog.text


# --- clones, ends and errors ----------------------------------------------------------------------------------------


def options_of(model: object) -> str:
    return str((model.model_options, model.wrappers, model.callbacks, model.attachments))


def test_the_input_model_stays_unpatched(sd15):
    before = options_of(sd15)
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    recorded(confine_part(sd15, make_region("head", mask, 1.0, 0, 1, 0)))
    assert options_of(sd15) == before
    assert sd15.model.diffusion_model.__class__.forward.__module__.startswith("comfy")


def test_clones_write_to_the_same_record(sd15):
    record = AttentionRecord("all")
    patched = record_attention(sd15, record)
    clone = patched.clone().clone()
    latent = sample(clone)
    assert (record.find(latent).maps > 0).all()


def test_sampling_again_starts_afresh(sd15):
    record = AttentionRecord("all")
    patched = record_attention(sd15, record)
    first = sample(patched)
    maps = record.find(first).maps
    other = sample(patched, positive=[conditioning(32, seed=9, spans=(HEAD, WING))])
    again = sample(patched)
    assert torch.equal(first, again)
    assert torch.equal(record.find(again).maps, maps)
    assert not torch.equal(record.find(other).maps, maps)
    assert len(record.samplings) == 2


@pytest.mark.parametrize("error", [RuntimeError, comfy.model_management.InterruptProcessingException])
def test_nothing_is_left_after_a_sampling_that_broke_off(sd15, error):
    record = AttentionRecord("all")
    patched = record_attention(sd15, record)
    before = options_of(patched)

    def stop(step: int, *rest: object) -> None:
        if step == 1:
            raise error()

    with pytest.raises(error):
        sample(patched, steps=3, callback=stop)
    assert options_of(patched) == before
    assert len(record.samplings) == 0
    with pytest.raises(BestiaryError, match="the record is empty"):
        record.find()
    assert torch.equal(sample(patched), sample(sd15))
    assert len(record.samplings) == 1


def test_layers_that_a_model_has(sd15_model, sdxl_model, demo_model):
    assert attention_factors(sd15_model.model) == {1, 2}
    assert attention_factors(sdxl_model.model) == {2}
    assert attention_factors(demo_model.model) == {1, 2, 4}
    with pytest.raises(BestiaryError, match="no cross-attention at layers 'full'; choose auto, all, half"):
        record_attention(sdxl_model.model, AttentionRecord("full"))


def test_layers_are_those_asked_for(demo_model):
    grids = {}
    for layers in ("full", "half", "quarter", "all", "auto"):
        grids[layers] = recorded(demo_model.model, layers)[1].find().maps.shape[-1]
    assert grids == {"full": 16, "half": 8, "quarter": 4, "all": 16, "auto": 16}


def test_models_without_cross_attention_are_told(sd15):
    other = sd15.clone()
    other.model = type("Plain", (), {"model_config": type("Config", (), {"unet_config": {"image_model": "flux"}})})()
    with pytest.raises(BestiaryError, match="no cross-attention that can be recorded"):
        record_attention(other, AttentionRecord())
    with pytest.raises(BestiaryError, match="so 'head' cannot be confined to a mask"):
        confine_part(other, make_region("head", torch.ones(1, 4, 4), 1.0, 0, 1, 0))


# --- what is said where nothing can be seen --------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch) -> list[tuple[str, str]]:
    """Texts shown on nodes: (node, text)."""
    import sys
    import types

    from bestiary.nodes.attention import model_patching

    shown: list[tuple[str, str]] = []
    instance = types.SimpleNamespace(send_progress_text=lambda text, node: shown.append((node, text)))
    server = types.SimpleNamespace(PromptServer=types.SimpleNamespace(instance=instance))
    monkeypatch.setitem(sys.modules, "server", server)
    monkeypatch.setattr(model_patching, "_told", set())
    return shown


def watched(model: object) -> tuple[object, AttentionRecord]:
    """A model with Attention Maps as node 5 and Part Regions as node 6."""
    mask = torch.zeros(1, 16, 16)
    mask[..., :8] = 1
    record = AttentionRecord("all", block="5")
    return confine_part(record_attention(model, record), make_region("head", mask, 1.0, 0.0, 1.0, 0.0, "6")), record


def test_nothing_is_told_where_all_is_seen_and_an_old_text_goes_away(sd15, told):
    from bestiary.nodes.attention.model_patching import tell_block

    patched, record = watched(sd15)
    sample(patched)
    assert told == [] and record.find().notice == ""
    tell_block("5", "something")
    sample(patched)
    assert told == [("5", "something"), ("5", "")]


def replaced_attention(model: object) -> object:
    """All cross-attentions replaced, as by packs that bring their own."""
    patched = model.clone()
    for block, count in (("input", 12), ("middle", 1), ("output", 12)):
        for number in range(count):
            patched.set_model_attn2_replace(lambda q, k, v, facts: torch.zeros_like(q), block, number)
    return patched


def own_forward(model: object) -> object:
    """A network that runs in another way, as compiled and converted ones."""
    patched = model.clone()
    patched.set_model_unet_function_wrapper(lambda apply, facts: torch.zeros_like(facts["input"]))
    return patched


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (replaced_attention, "another pack replaced {n} of the {n} cross-attentions"),
        (own_forward, "the MODEL ran without its cross-attention patches"),
    ],
)
def test_what_keeps_ours_from_seeing_is_told_on_both_blocks(sd15, told, other, reason):
    from bestiary.nodes.attention.attention_view import view_attention

    patched, record = watched(other(sd15))
    samples = sample(patched)
    assert [node for node, _ in told] == ["5", "6"]
    beginning, _, end = reason.partition("{n} of the {n}")
    for _, text in told:
        assert beginning in text and end in text
    with pytest.raises(
        BestiaryError, match=f"nothing was recorded of any part in steps 1 to .*; Bestiary: {beginning}"
    ):
        view_attention(record, samples, None, "", 1, 1000, 0.6, 0.0)


def test_prompts_evaluated_by_another_pack_are_told(sd15, told):
    from bestiary.nodes.attention.model_patching import watch_sampling

    patched, record = watched(sd15)

    class Guider:
        """Stands for the guider of another pack's sampler, which calls the model by itself."""

        model_options = patched.model_options
        model_patcher = patched
        conds = {"positive": [{"uuid": "p", SPANS_KEY: (HEAD,)}]}

    def executor(noise: Tensor, *_: object) -> Tensor:
        return noise

    executor.class_obj = Guider
    watch_sampling(executor, torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), None, torch.tensor([7.0, 0.0]))
    assert [node for node, _ in told] == ["5", "6"]
    assert "the sampler evaluates the prompts without ComfyUI's calc_cond_batch" in told[0][1]


def test_hypertile_samples_with_our_attention(sd15):
    from comfy_extras.nodes_hypertile import HyperTile

    (tiled,) = tuple(getattr(answer := HyperTile.execute(sd15, 32, 1, 1, False), "args", answer))
    size = {"size": (32, 32), "steps": 1}
    assert not torch.equal(sample(tiled, **size), sample(sd15, **size)), "it cuts tiles"
    picture, record = recorded(tiled, **size)
    assert torch.equal(picture, sample(tiled, **size))
    assert record.find().notice == "" and record.find().held.all()
    assert record.find().maps.amax() > 0
