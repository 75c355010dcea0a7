"""Maps and regions on diffusion transformers of ComfyUI: exact columns, untouched pictures, attention moved inside, good company."""

from types import SimpleNamespace

import pytest
import torch
from bestiary.concepts.denoiser.part_attention_patch import region_scores
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.attention.attention_record import AttentionRecord
from bestiary.nodes.attention.model_patching import confine_part, record_attention
from bestiary.nodes.attention.part_regions import PartRegion, make_region
from bestiary.nodes.attention.transformer_families import FAMILIES, Transformer, transformer_of
from bestiary.nodes.host.socket_types import SPANS_KEY, WORDS_KEY, PartSpan
from torch import Tensor

FAMILY_NAMES = {
    "sd3": "Stable Diffusion 3",
    "flux": "Flux.1",
    "qwen_image": "Qwen-Image",
    "z_image": "Z-Image",
    "anima": "Anima",
}
HEAD, WING = PartSpan("head:a", "head", (1, 4)), PartSpan("wing:b", "wing", (5,))
OVERRIDE = "optimized_attention_override"


@pytest.fixture(params=FAMILY_NAMES)
def family(request):
    return request.param


def left_half() -> Tensor:
    mask = torch.zeros(1, 8, 12)
    mask[..., :6] = 1
    return mask


def region(part: str = "head", mask: Tensor | None = None, strength: float = 1.0, **options: float) -> PartRegion:
    settings = {"start": 0.0, "end": 1.0, "feather": 0.0, **options}
    return make_region(part, left_half() if mask is None else mask, strength, **settings)


def watched(model: object, block_key: str = "bestiary_block") -> tuple[object, list]:
    """A clone whose attentions that ours acted on are kept: q, k by heads, heads and mask."""
    seen = []

    def watch(func, q, k, v, heads, *args, **kw):
        if kw["transformer_options"].get(block_key) == ():
            flat = not kw.get("skip_reshape")
            by_head = [x.unflatten(-1, (heads, -1)).transpose(1, 2) if flat else x for x in (q, k)]
            # SD3.5 has a second attention in some blocks, over the picture alone
            if by_head[1].shape[2] > 4 * 6:
                seen.append(by_head)
        return func(q, k, v, heads, *args, **kw)

    other = model.clone()
    other.model_options["transformer_options"][OVERRIDE] = watch
    return other, seen


def sides(family: str, tiny: object, q: Tensor, k: Tensor) -> tuple[slice, slice]:
    """Image places among queries and text among keys, written out per family."""
    places, tokens = 4 * 6, tiny.texts[family]
    if family == "anima":
        return slice(0, places), slice(0, 512)
    text = 32 if family == "z_image" else tokens
    assert q.shape[2] == text + (32 if family == "z_image" else places)
    return slice(text, text + places), slice(0, text)


@pytest.mark.parametrize("layers", ["auto", "all"])
def test_maps_equal_the_explicit_softmax_and_pictures_stay(family, layers, tiny):
    model = tiny.model(family)
    other, seen = watched(model)
    record = AttentionRecord(layers)
    ours = tiny.sample(family, record_attention(other, record), (HEAD, WING))
    assert torch.equal(ours, tiny.sample(family, model, (HEAD, WING)))
    transformer = transformer_of(model)
    assert len(seen) >= len(transformer.all_blocks if layers == "all" else transformer.method_blocks)
    theirs = torch.zeros(2, 2, 24)
    count = 0
    for q, k in seen:
        image, text = sides(family, tiny, q, k)
        shares = (
            (q[:, :, image] @ k[:, :, text].transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).mean(1)
        )  # (R, N, L)
        # the positive prompt's rows: runs of other lengths hold one side only
        rows = shares[:2] if len(shares) == 2 else shares[2:]
        theirs[:, 0] += rows[..., 1] + rows[..., 4]
        theirs[:, 1] += rows[..., 5]
        count += 1
    maps = record.find().maps
    assert maps.shape == (1, 2, 2, 4, 6)
    assert not record.find().notice
    assert (maps[0].flatten(2) - theirs / count).abs().max() < 1e-6


@pytest.mark.parametrize("idle", [{"mask": torch.ones(2, 5, 5)}, {"strength": 0.0}])
def test_white_masks_and_strength_0_change_nothing(family, idle, tiny):
    expected = tiny.sample(family, tiny.model(family), (HEAD,))
    assert torch.equal(tiny.sample(family, confine_part(tiny.model(family), region(**idle)), (HEAD,)), expected)


def test_attention_moves_inside_the_mask(family, tiny):
    def share(strength: float) -> float:
        record = AttentionRecord("auto")
        patched = confine_part(tiny.model(family), region(strength=strength)) if strength else tiny.model(family)
        tiny.sample(family, record_attention(patched, record), (HEAD, WING))
        maps = record.find().maps[0, 0, 0]
        return float(maps[:, :3].sum() / maps.sum())

    before, half, whole = share(0), share(0.5), share(1)
    assert 0.3 < before < 0.7
    assert before + 0.05 < half < whole
    assert whole > 0.99


def test_only_scores_from_the_picture_to_the_words_change(family, tiny):
    other, seen = watched(tiny.model(family))
    half_strength = region(strength=0.5)
    tiny.sample(family, confine_part(other, half_strength), (HEAD,))
    transformer = transformer_of(tiny.model(family))
    assert len(seen) == len(transformer.method_blocks)
    width = 64 if family == "sd3" else 32
    q, k = seen[0]
    assert q.shape[-1] == k.shape[-1] == width + 8
    scores = q @ k.transpose(-1, -2) * (width + 8) ** -0.5
    plain = q[..., :width] @ k[..., :width].transpose(-1, -2) * (width + 8) ** -0.5
    bias = (scores - plain)[:, 0]  # (R, S, T)
    image, _ = sides(family, tiny, q, k)
    expected = torch.zeros_like(bias)
    expected[2:, image, 1] = expected[2:, image, 4] = region_scores(left_half(), 0.5, (4, 6))
    assert (bias - expected).abs().max() < 1e-5


def test_several_parts_with_a_mask_for_every_picture(family, tiny):
    masks = torch.cat((left_half(), 1 - left_half()))
    patched = confine_part(confine_part(tiny.model(family), region(mask=masks)), region("wing", 1 - left_half()))
    record = AttentionRecord("auto")
    tiny.sample(family, record_attention(patched, record), (HEAD, WING))
    inside = record.find().maps[0, :, :, :, :3].sum((-1, -2)) / record.find().maps[0].sum((-1, -2))
    assert inside[0, 0] > 0.99 > 0.01 > inside[1, 0]
    assert inside[:, 1].max() < 0.01


def test_a_region_acts_in_its_time_only(tiny):
    latents = {}

    def keep(name: str):
        latents[name] = []
        return lambda step, denoised, x, total: latents[name].append(denoised.clone())

    model = tiny.model("flux")
    tiny.sample("flux", model, (HEAD,), steps=4, callback=keep("plain"))
    tiny.sample("flux", confine_part(model, region(start=0.6)), (HEAD,), steps=4, callback=keep("late"))
    same = [torch.equal(*both) for both in zip(latents["late"], latents["plain"], strict=True)]
    assert same[0] and not same[-1]


def test_words_are_found_in_their_places(family, tiny):
    from bestiary.concepts.part_prompt.prompt_words import PromptWords, token_run

    words = PromptWords((token_run([b"a ", b"head ", b"of ", b"a ", b"head "], 0),))
    positive = [tiny.prompt(family, **{SPANS_KEY: (HEAD,), WORDS_KEY: words})]
    record = AttentionRecord("auto", words=("head",))
    tiny.sample(family, record_attention(tiny.model(family), record), positive=positive)
    part, word = record.find().maps[0, 0]
    assert [one.title for one in record.find().parts] == ["head:a", "head"]
    assert torch.equal(part, word)


@pytest.mark.parametrize("edge", [(7, 9), (4, 6)])
def test_odd_latents_and_prompts_of_several_lengths(family, edge, tiny):
    record = AttentionRecord("auto")
    negative = [tiny.prompt(family, seed=2, tokens=tiny.texts[family] + 3)]
    patched = record_attention(confine_part(tiny.model(family), region()), record)
    options = {"batch": 1, "edge": edge, "negative": negative}
    ours = tiny.sample(family, patched, (HEAD,), **options)
    found = record.find()
    assert ours.isfinite().all()
    assert found.maps.shape[-2:] == ((edge[0] + 1) // 2, (edge[1] + 1) // 2)
    assert not found.notice


def test_a_prompt_with_an_area_sees_its_piece(family, tiny):
    size = (8, 6, 0, 6) if family not in ("qwen_image", "anima") else (1, 8, 6, 0, 0, 6)
    piece = tiny.prompt(family, seed=1, area=size, strength=1.0, **{SPANS_KEY: (HEAD,)})
    record = AttentionRecord("auto")
    mask = torch.zeros(1, 8, 12)
    mask[..., 6:9] = 1
    patched = record_attention(confine_part(tiny.model(family), region(mask=mask)), record)
    tiny.sample(family, patched, positive=[tiny.prompt(family, seed=5), piece])
    maps = record.find().maps[0, 0, 0]
    assert maps[:, :3].abs().max() == 0
    assert maps[:, 3:4].sum() / maps.sum() > 0.5
    # the copy of the area beside the negative prompt holds no part, so that another negative prompt changes nothing
    options = {"positive": [tiny.prompt(family, seed=5), piece], "negative": [tiny.prompt(family, seed=9)]}
    tiny.sample(family, patched, **options)
    assert (record.find().maps[0, 0, 0] - maps).abs().max() < 1e-6


def test_overrides_and_block_patches_of_other_packs_are_called(family, tiny):
    transformer = transformer_of(tiny.model(family))
    block, calls = max(transformer.method_blocks), []

    def override(name: str):
        def call(func, q, k, v, heads, *args, **kw):
            calls.append(name)
            return func(q, k, v, heads, *args, **kw)

        return call

    def replaced(args: dict, extra: dict) -> dict:
        calls.append("block")
        return extra["original_block"](args)

    other = tiny.model(family).clone()
    other.model_options["transformer_options"][OVERRIDE] = override("before")
    if transformer.family.named_by == "patch":
        other.set_model_patch_replace(replaced, "dit", *block)
    record = AttentionRecord("auto")
    patched = record_attention(confine_part(other, region()), record)
    ours = patched.model_options["transformer_options"]
    inner, after = ours[OVERRIDE], override("after")
    ours[OVERRIDE] = lambda func, *args, **kw: after(lambda *a, **k: inner(func, *a, **k), *args, **kw)
    result = tiny.sample(family, patched, (HEAD,))
    assert torch.equal(result, tiny.sample(family, confine_part(tiny.model(family), region()), (HEAD,)))
    assert calls.count("before") == calls.count("after") > 0
    assert ("block" in calls) == (transformer.family.named_by == "patch")
    assert not record.find().notice


def test_a_pack_that_replaces_our_block_is_told(tiny):
    record = AttentionRecord("auto")
    patched = record_attention(tiny.model("flux"), record)
    for block in transformer_of(tiny.model("flux")).method_blocks:
        patched.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", *block)
    tiny.sample("flux", patched, (HEAD,))
    assert "ran without its cross-attention patches" in record.find().notice


def test_reference_pictures_behind_the_image_are_left_out(tiny):
    record = AttentionRecord("auto")
    reference = torch.randn(1, 16, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    positive = [tiny.prompt("qwen_image", reference_latents=[reference], **{SPANS_KEY: (HEAD,)})]
    tiny.sample("qwen_image", record_attention(tiny.model("qwen_image"), record), positive=positive)
    assert record.find().maps.shape[-2:] == (4, 6)
    assert record.find().held.all()
    assert not record.find().notice


def test_blocks_lie_at_the_same_share_of_the_depth():
    known = {family.name: family for family in FAMILIES}
    full = Transformer(known["Flux.1"], (("double_block", 19), ("single_block", 38)), 2, 1)
    assert full.method_blocks == {("double_block", n) for n in (15, 16, 17, 18)}
    assert len(full.all_blocks) == 57
    sd3 = [Transformer(known["Stable Diffusion 3"], (("double_block", depth),), 2, 1) for depth in (24, 38, 6, 1)]
    assert [set(one.method_blocks) for one in sd3] == [{("double_block", n)} for n in (9, 14, 2, 0)]


def test_every_family_is_known_by_its_name(family, tiny):
    assert transformer_of(tiny.model(family)).family.name == FAMILY_NAMES[family]


def test_other_families_and_layers_are_refused_by_name(tiny):
    other = tiny.model("flux").clone()
    config = type("Flux2", (), {"unet_config": {"image_model": "flux2"}})()
    other.model = SimpleNamespace(model_config=config, diffusion_model=torch.nn.Identity())
    with pytest.raises(
        BestiaryError, match=r"this MODEL \(Flux2\) has no cross-attention .*, Flux.1, Qwen-Image, Z-Image"
    ):
        record_attention(other, AttentionRecord())
    with pytest.raises(
        BestiaryError, match=r"Part Regions: this MODEL \(Flux2\) .* Flux.1, Qwen-Image, Z-Image, Anima or"
    ):
        confine_part(other, region())
    with pytest.raises(
        BestiaryError, match="this MODEL is Flux.1, whose blocks have no layers 'quarter'; choose auto or all"
    ):
        record_attention(tiny.model("flux"), AttentionRecord("quarter"))


def test_a_network_of_another_pack_is_told_by_its_name(tiny):
    other = tiny.model("flux").clone()
    foreign = type("QuantisedFlux", (torch.nn.Identity,), {})()
    kind = type("Flux", (), {"model_config": other.model.model_config, "diffusion_model": foreign})
    other.model = kind()
    with pytest.raises(BestiaryError, match=r"this MODEL \(Flux run by QuantisedFlux\) has no"):
        record_attention(other, AttentionRecord())


@pytest.mark.parametrize("is_full", [True, False])
def test_a_mask_of_the_host_or_another_pack_counts(is_full, tiny):
    hidden = torch.zeros(24 + tiny.texts["flux"] if is_full else 1, 24 + tiny.texts["flux"])
    # the upper half of the picture, or all of it, may not look at the tail
    hidden[: tiny.texts["flux"] + 12, 7] = -torch.inf
    record = AttentionRecord("auto")
    patched = record_attention(confine_part(tiny.model("flux"), region()), record)
    options = patched.model_options["transformer_options"]
    inner = options[OVERRIDE]

    def masked(func, *args, **kw):
        return inner(func, *args, **{**kw, "mask": hidden})

    options[OVERRIDE] = masked
    tiny.sample("flux", patched, (HEAD, PartSpan("tail:c", "tail", (7,))), batch=1)
    head, tail = record.find().maps[0, 0]
    assert tail[:2].abs().max() == 0
    assert (tail[2:].min() > 0) == is_full
    assert head[:, :3].sum() / head.sum() > 0.99
    assert not record.find().notice


def test_a_quantised_base_is_read_and_steered(tiny):
    model = tiny.quantised("flux")
    assert model.model.diffusion_model.double_blocks[0].img_attn.qkv.weight.dtype == torch.float8_e4m3fn
    record = AttentionRecord("auto")
    ours = tiny.sample("flux", record_attention(model, record), (HEAD,))
    assert torch.equal(ours, tiny.sample("flux", model, (HEAD,)))
    moved = AttentionRecord("auto")
    tiny.sample("flux", record_attention(confine_part(model, region()), moved), (HEAD,))
    assert moved.find().maps[..., :3].sum() / moved.find().maps.sum() > 0.98
