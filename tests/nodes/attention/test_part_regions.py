"""Regions of parts: nothing where they should do nothing, attention moved inside where they act, and clear refusals."""

import comfy.sample
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.attention.attention_record import AttentionRecord
from bestiary.nodes.attention.model_patching import confine_part, record_attention
from bestiary.nodes.attention.part_regions import PartRegion, check_regions, make_region
from bestiary.nodes.host.socket_types import SPANS_KEY, PartSpan
from torch import Tensor

HEAD, WING = PartSpan("head:a", "head", (3, 4)), PartSpan("wing:b", "wing", (7,))
WIDTHS = {"sd15": 32, "sdxl": 96, "demo": 128}


@pytest.fixture(params=["sd15", "sdxl", "demo"])
def model(request):
    return request.getfixturevalue(f"{request.param}_model").model


@pytest.fixture
def sd15(sd15_model):
    return sd15_model.model


def conditioning(model: object, tokens: int = 77, seed: int = 1, spans: tuple = (), **options: object) -> list:
    generator = torch.Generator().manual_seed(seed)
    width = model.model.model_config.unet_config["context_dim"]
    text = torch.randn(1, tokens, width, generator=generator)
    return [text, {"pooled_output": torch.randn(1, 64, generator=generator), SPANS_KEY: spans, **options}]


def sample(
    model: object,
    positive: list | None = None,
    size: tuple = (16, 24),
    batch: int = 1,
    steps: int = 2,
    **options: object,
) -> Tensor:
    positive = [conditioning(model, spans=(HEAD, WING))] if positive is None else positive
    channels = model.model.latent_format.latent_channels
    noise = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(3))
    negative = options.pop("negative", [conditioning(model, seed=2)])
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            noise,
            steps,
            5.0,
            "euler",
            "normal",
            positive,
            negative,
            torch.zeros_like(noise),
            seed=4,
            disable_pbar=True,
            **options,
        )


def left_half(height: int = 40, width: int = 50) -> Tensor:
    mask = torch.zeros(1, height, width)
    mask[..., : width // 2] = 1
    return mask


def region(part: str = "head", mask: Tensor | None = None, strength: float = 1.0, **options: object) -> PartRegion:
    settings = {"start": 0.0, "end": 1.0, "feather": 0.0, **options}
    return make_region(part, left_half() if mask is None else mask, strength, **settings)


def share_inside(model: object, part: int = 0, **options: object) -> float:
    """Share of a part's attention in the left half, first step."""
    record = AttentionRecord("all")
    sample(record_attention(model, record), **options)
    maps = record.find().maps[0, 0, part]
    return float(maps[:, : maps.shape[1] // 2].sum() / maps.sum())


# --- identities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "idle",
    [
        {"mask": torch.ones(1, 8, 8)},
        {"mask": torch.ones(2, 30, 17), "feather": 20.0},
        {"strength": 0.0},
        {"strength": 0.0, "feather": 20.0},
    ],
)
def test_a_white_mask_and_strength_0_change_nothing_at_all(model, idle):
    expected = sample(model, batch=2)
    assert torch.equal(sample(confine_part(model, region(**idle)), batch=2), expected)


def test_what_comes_before_and_after_its_time_is_untouched(sd15):
    steps = 4
    latents = {}

    def keep(name: str):
        latents[name] = []
        return lambda step, denoised, x, total: latents[name].append(denoised.clone())

    sample(sd15, steps=steps, callback=keep("plain"))
    sample(confine_part(sd15, region(start=0.5)), steps=steps, callback=keep("late"))
    same = [torch.equal(ours, theirs) for ours, theirs in zip(latents["late"], latents["plain"], strict=True)]
    assert same == [True, True, False, False]


def test_regions_that_meet_act_one_after_the_other(sd15):
    steps, shares = 4, []
    record = AttentionRecord("all")
    patched = confine_part(sd15, region(end=0.5))
    patched = confine_part(patched, region(mask=1 - left_half(), start=0.5))
    sample(record_attention(patched, record), steps=steps)
    for maps in record.find().maps[:, 0, 0]:
        shares.append(float(maps[:, :12].sum() / maps.sum()))
    assert min(shares[:2]) > 0.9
    assert max(shares[2:]) < 0.1


# --- what it does ---------------------------------------------------------------------------------------------------


def test_attention_moves_inside_the_mask(model):
    before, after = share_inside(model), share_inside(confine_part(model, region()))
    half = share_inside(confine_part(model, region(strength=0.5)))
    assert 0.3 < before < 0.7
    assert before + 0.05 < half < after
    assert after > 0.9


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (24, 12)])
@pytest.mark.parametrize("mask_size", [(3, 4), (64, 64), (200, 100)])
def test_masks_of_any_size_on_pictures_of_any_shape(sd15, size, mask_size):
    patched = confine_part(sd15, region(mask=left_half(*mask_size)))
    assert share_inside(patched, size=size, steps=1) > 0.9


def test_a_feathered_mask_has_a_soft_edge(sd15):
    record = AttentionRecord("full")
    sample(record_attention(confine_part(sd15, region(mask=left_half(128, 192), feather=64.0)), record), steps=1)
    plain = AttentionRecord("full")
    sample(record_attention(sd15, plain), steps=1)
    kept = (record.find().maps / plain.find().maps)[0, 0, 0].mean(0)
    assert kept[0] > 0.5 and kept[-1] < 0.01
    assert 0.1 < kept[12] < 0.9


def test_several_parts_each_in_its_place(sd15):
    patched = confine_part(confine_part(sd15, region("head")), region("wing", 1 - left_half()))
    assert share_inside(patched, part=0) > 0.9
    assert share_inside(patched, part=1) < 0.1


def test_one_mask_for_every_picture(sd15):
    masks = torch.cat((left_half(), 1 - left_half()))
    record = AttentionRecord("all")
    patched = record_attention(confine_part(sd15, region(mask=masks)), record)
    sample(patched, batch=2, steps=1)
    first, second = record.find().maps[0, :, 0]
    assert first[:, :12].sum() / first.sum() > 0.9
    assert second[:, :12].sum() / second.sum() < 0.1


def test_the_record_and_the_region_may_come_in_either_order(sd15):
    records = AttentionRecord("all"), AttentionRecord("all")
    first = sample(confine_part(record_attention(sd15, records[0]), region()))
    second = sample(record_attention(confine_part(sd15, region()), records[1]))
    assert torch.equal(first, second)
    assert torch.equal(records[0].find().maps, records[1].find().maps)


def test_the_scores_are_those_of_the_explicit_softmax(sd15):
    seen = []

    def watch(func, q, k, v, heads, *args, **kw):
        if kw.get("mask") is not None:
            seen.append((q, k, kw["mask"]))
        return func(q, k, v, heads, *args, **kw)

    other = sd15.clone()
    other.model_options["transformer_options"]["optimized_attention_override"] = watch
    record = AttentionRecord("full")
    sample(record_attention(confine_part(other, region()), record), steps=1, batch=2)
    full = [entry for entry in seen if entry[0].shape[1] == 16 * 24]
    assert full
    theirs = torch.zeros(2, 16 * 24)
    for q, k, mask in full:
        q, k = (x.unflatten(2, (4, -1)).transpose(1, 2) for x in (q, k))
        probabilities = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + mask[:, None]).softmax(-1).mean(1)
        # the uncond half comes first and keeps its attention
        assert mask[:2].abs().max() == 0
        assert mask[2:, :, 5:].abs().max() == 0
        theirs += probabilities[2:, :, 3:5].sum(-1) / len(full)
    assert (record.find().maps[0, :, 0].flatten(1) - theirs).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["pytorch", "sub_quad", "split"])
def test_every_attention_of_comfyui_takes_the_mask(sd15, name):
    from comfy.ldm.modules.attention import get_attention_function

    def chosen(func, *args, **kw):
        return get_attention_function(name)(*args, **kw)

    other = sd15.clone()
    other.model_options["transformer_options"]["optimized_attention_override"] = chosen
    patched = confine_part(other, region(feather=8.0))
    record = AttentionRecord("all")
    ours = sample(record_attention(patched, record), batch=2)
    assert torch.equal(ours, sample(patched, batch=2))
    theirs = sample(confine_part(sd15, region(feather=8.0)), batch=2)
    assert (ours - theirs).abs().max() < 1e-3
    assert record.find().maps[0, :, 0, :, :12].sum() / record.find().maps[0, :, 0].sum() > 0.85


def test_a_mask_of_another_pack_is_kept(sd15):
    calls = []

    def masked(func, q, k, v, heads, *args, **kw):
        if k.shape[1] == 77:
            kw["mask"] = torch.zeros(q.shape[1], 77).index_fill(1, torch.tensor([3, 4]), -torch.inf)
            calls.append(1)
        return func(q, k, v, heads, *args, **kw)

    record = AttentionRecord("all")
    patched = record_attention(confine_part(sd15, region("wing")), record)
    inner = patched.model_options["transformer_options"]["optimized_attention_override"]
    patched.model_options["transformer_options"]["optimized_attention_override"] = lambda func, *args, **kw: masked(
        lambda *a, **k: inner(func, *a, **k), *args, **kw
    )
    sample(patched, steps=1)
    maps = record.find().maps
    assert calls
    assert maps[0, 0, 0].abs().max() == 0
    assert maps[0, 0, 1, :, :12].sum() / maps[0, 0, 1].sum() > 0.9


def test_a_prompt_longer_than_the_other(sd15):
    far = PartSpan("head:a", "head", (100,))
    positive = [conditioning(sd15, 154, spans=(far,))]
    patched = confine_part(sd15, region())
    assert share_inside(patched, positive=positive, steps=1) > 0.9
    negative = [conditioning(sd15, 154, seed=2)]
    assert share_inside(patched, negative=negative, steps=1) > 0.9


def test_a_prompt_with_an_area_sees_its_piece_of_the_mask(sd15):
    plain, piece = conditioning(sd15, seed=5), conditioning(sd15, spans=(HEAD,), area=(16, 12, 0, 12), strength=1.0)
    record = AttentionRecord("full")
    mask = torch.zeros(1, 16, 24)
    mask[..., 12:18] = 1
    sample(record_attention(confine_part(sd15, region(mask=mask)), record), positive=[plain, piece], steps=1)
    maps = record.find().maps[0, 0, 0]
    assert maps[:, 12:18].sum() / maps.sum() > 0.9


def test_the_kind_may_be_named_too(sd15):
    other = PartSpan("head:z", "head", (9,))
    positive = [conditioning(sd15, spans=(HEAD, other))]
    patched = confine_part(sd15, region("Head:A"))
    assert share_inside(patched, part=0, positive=positive) > 0.9
    assert share_inside(patched, part=1, positive=positive) < 0.7


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"part": "  "}, "part is '  '; type the name"),
        ({"mask": torch.zeros(1, 8, 8)}, "the mask of 'head' is empty"),
        ({"mask": torch.stack((torch.ones(8, 8), torch.zeros(8, 8)))}, "the mask number 2 of 2 of 'head' is empty"),
        ({"mask": torch.full((1, 8, 8), float("nan"))}, "contains NaN or infinity"),
        ({"mask": torch.ones(1, 3, 8, 8)}, r"has shape \(1, 3, 8, 8\); a MASK is"),
        ({"mask": torch.ones(0, 8, 8)}, r"has shape \(0, 8, 8\); a MASK is"),
        ({"strength": 1.5}, "strength is 1.5; it must be between 0 and 1"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"start": 0.6, "end": 0.4}, "start_percent 0.6 is not before end_percent 0.4"),
        ({"end": -0.5}, "end_percent is -0.5"),
        ({"feather": -1.0}, "feather is -1; it must be 0 pixels or more"),
    ],
)
def test_values_out_of_range_are_told(changes, message):
    with pytest.raises(BestiaryError, match=f"Part Regions: .*{message}"):
        region(**changes)


def test_masks_are_clipped_and_may_lack_the_batch():
    made = region(mask=torch.tensor([[-0.5, 2.0]]))
    assert made.mask.tolist() == [[[0.0, 1.0]]]


@pytest.mark.parametrize(
    ("part", "spans", "images", "message"),
    [
        (
            "tail",
            [HEAD, WING],
            1,
            "no prompt of this sampler contains the part 'tail'; choose one of 'head', 'head:a', 'wing'",
        ),
        ("hed", [HEAD, WING], 1, "contains the part 'hed'; choose one of 'head', "),
        ("head", [], 1, "they contain no part tokens at all; write them with Part Prompt"),
        ("head", [HEAD], 3, "2 masks of 'head' for 3 pictures; give one mask"),
    ],
)
def test_regions_that_cannot_be_honoured_are_told(part, spans, images, message):
    masks = torch.cat((left_half(), left_half())) if images == 3 else left_half()
    with pytest.raises(BestiaryError, match=message):
        check_regions([region(part, masks)], spans, images)


def test_a_part_that_no_prompt_holds_stops_the_sampler_and_leaves_nothing(sd15):
    patched = confine_part(sd15, region("tail"))
    before = str(patched.model_options)
    with pytest.raises(BestiaryError, match="contains the part 'tail'"):
        sample(patched)
    assert str(patched.model_options) == before
    # an idle region says so as well
    with pytest.raises(BestiaryError, match="contains the part 'tail'"):
        sample(confine_part(sd15, region("tail", strength=0.0)))
    assert sample(sd15).isfinite().all()


def test_clones_share_the_region_and_not_the_list(sd15):
    patched = confine_part(sd15, region())
    more = confine_part(patched, region("wing"))
    assert len(patched.model_options["transformer_options"]["bestiary_regions"]) == 1
    assert len(more.model_options["transformer_options"]["bestiary_regions"]) == 2
    first = patched.model_options["transformer_options"]["bestiary_regions"][0]
    assert more.clone().model_options["transformer_options"]["bestiary_regions"][0] is first
