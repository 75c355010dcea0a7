"""LoRA namings: every spelling of one set of adapters becomes the same kohya file, and back."""

import pytest
import torch
from bestiary.concepts.denoiser.lora_names import (
    check_family,
    from_kohya,
    kohya_name,
    lora_layers,
    module_path,
    resolve_lora,
    to_kohya,
    with_told_alphas,
)
from bestiary.concepts.errors import BestiaryError
from torch import Tensor

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
PATHS = [f"{BLOCK}.{attn}.{proj}" for attn in ("attn1", "attn2") for proj in ("to_q", "to_k", "to_v", "to_out.0")]
PATHS.append("mid_block.attentions.0.transformer_blocks.0.attn2.to_q")

SPELLINGS = {
    "kohya": ("lora_unet_{flat}", ".lora_down.weight", ".lora_up.weight"),
    "partcraft": ("{parent}.processor.{proj}", "_lora.down.weight", "_lora.up.weight"),
    "partcraft-sdxl": ("unet.{parent}.processor.{proj}", "_lora.down.weight", "_lora.up.weight"),
    "diffusers": ("unet.{path}", ".lora.down.weight", ".lora.up.weight"),
    "lora_layer": ("{path}", ".lora_layer.down.weight", ".lora_layer.up.weight"),
    "peft": ("unet.{path}", ".lora_A.weight", ".lora_B.weight"),
    "peft-plain": ("{path}", ".lora_A.weight", ".lora_B.weight"),
    "diffengine": ("base_model.model.{path}", ".lora_A.weight", ".lora_B.weight"),
}


def spelled(naming: str, alpha: float | None = None) -> dict[str, Tensor]:
    """Adapters of all PATHS, written by hand in one naming."""
    stem, down, up = SPELLINGS[naming]
    tensors = {}
    for number, path in enumerate(PATHS):
        parent, _, proj = path.removesuffix(".0").rpartition(".")
        name = stem.format(path=path, flat=path.replace(".", "_"), parent=parent, proj=proj)
        generator = torch.Generator().manual_seed(number)
        tensors[name + down] = torch.randn(4, 6, generator=generator)
        tensors[name + up] = torch.randn(6, 4, generator=generator)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("naming", SPELLINGS)
def test_every_naming_becomes_kohya_and_back(naming: str) -> None:
    assert_equal(to_kohya(spelled(naming)), spelled("kohya"))
    assert_equal(from_kohya(spelled("kohya"), naming), spelled(naming))


@pytest.mark.parametrize("naming", [name for name in SPELLINGS if name != "kohya"])
def test_alphas_are_folded_into_up_where_the_naming_has_none(naming: str) -> None:
    folded = lora_layers(from_kohya(spelled("kohya", alpha=2.0), naming))
    for module, theirs in lora_layers(spelled("kohya", alpha=2.0)).items():
        ours = folded[module]
        assert (ours.scale, theirs.scale) == (1.0, 0.5)
        assert torch.allclose(ours.up @ ours.down, theirs.scale * (theirs.up @ theirs.down))


def test_alphas_stay_are_added_and_default_to_scale_one() -> None:
    assert {layer.scale for layer in lora_layers(spelled("peft")).values()} == {1.0}
    assert {layer.alpha for layer in lora_layers(to_kohya(spelled("peft"), alpha=8.0)).values()} == {8.0}
    assert {layer.alpha for layer in lora_layers(to_kohya(spelled("kohya", 2.0), alpha=8.0)).values()} == {2.0}


def test_peft_adapter_names_and_other_wrappers_are_stripped() -> None:
    for key in (
        f"unet.{BLOCK}.attn1.to_q.lora_A.default.weight",
        f"base_model.model.unet.{BLOCK}.attn1.to_q.lora_A.default_0.weight",
        f"diffusion_model.{BLOCK}.attn1.to_q.lora_down.weight",
    ):
        assert kohya_name(key) == f"lora_unet_{BLOCK.replace('.', '_')}_attn1_to_q.lora_down.weight"


def test_keys_that_are_no_adapter_pass() -> None:
    extra = {"note": torch.zeros(1)}
    assert "note" in to_kohya({**spelled("peft"), **extra})


@pytest.mark.parametrize(
    ("module", "path"),
    [
        ("lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj", "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj"),
        ("lora_unet_down_blocks_0_resnets_1_time_emb_proj", "down_blocks.0.resnets.1.time_emb_proj"),
        ("lora_unet_down_blocks_0_downsamplers_0_conv", "down_blocks.0.downsamplers.0.conv"),
        ("lora_unet_mid_block_resnets_0_conv_shortcut", "mid_block.resnets.0.conv_shortcut"),
        ("lora_unet_time_embedding_linear_1", "time_embedding.linear_1"),
        ("lora_unet_conv_in", "conv_in"),
        ("lora_te_text_model_encoder_layers_11_self_attn_q_proj", "text_encoder.text_model.encoder.layers.11.self_attn.q_proj"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"),
    ],
)  # fmt: skip
def test_underscores_become_paths(module: str, path: str) -> None:
    assert module_path(module) == path


def test_text_encoder_adapters_keep_their_encoder() -> None:
    key = "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight"
    assert kohya_name(key) == "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight"
    back = from_kohya({"lora_te_text_model_x.lora_down.weight": torch.zeros(1, 2), "lora_te_text_model_x.lora_up.weight": torch.zeros(2, 1)}, "peft")  # fmt: skip
    assert sorted(back) == ["text_encoder.text_model.x.lora_A.weight", "text_encoder.text_model.x.lora_B.weight"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
            "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        ),
        ("input_blocks_8_1_proj_in", "down_blocks_2_attentions_1_proj_in"),
        ("middle_block_1_transformer_blocks_9_attn2_to_k", "mid_block_attentions_0_transformer_blocks_9_attn2_to_k"),
        ("output_blocks_5_1_proj_out", "up_blocks_1_attentions_2_proj_out"),
        ("input_blocks_1_0_in_layers_2", "down_blocks_0_resnets_0_conv1"),
        ("output_blocks_3_0_skip_connection", "up_blocks_1_resnets_0_conv_shortcut"),
        ("middle_block_2_emb_layers_1", "mid_block_resnets_1_time_emb_proj"),
        ("input_blocks_3_0_op", "down_blocks_0_downsamplers_0_conv"),
        ("output_blocks_2_2_conv", "up_blocks_0_upsamplers_0_conv"),
        ("input_blocks_0_0", "input_blocks_0_0"),
    ],
)
def test_block_numbers_of_original_checkpoints(old: str, new: str) -> None:
    assert kohya_name(f"lora_unet_{old}.lora_up.weight") == f"lora_unet_{new}.lora_up.weight"


def test_adapters_find_their_modules() -> None:
    others = ["conv_in", f"{BLOCK}.attn1", f"{BLOCK}.norm1"]
    for naming in SPELLINGS:
        reached = resolve_lora(spelled(naming), PATHS[:5] + others)
        assert sorted(reached) == sorted(PATHS[:5])
        assert torch.equal(reached[PATHS[2]].down, torch.randn(4, 6, generator=torch.Generator().manual_seed(2)))


def test_names_of_a_real_unet_survive_the_way_back() -> None:
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=8, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    paths = [name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    assert len(paths) > 40
    for path in paths:
        assert module_path("lora_unet_" + path.replace(".", "_")) == path


def test_nothing_recognised_shows_a_key_and_what_is_expected() -> None:
    with pytest.raises(
        BestiaryError, match="no LoRA layer among 1 tensors .the first is 'emb_params'.: expected .*lora_A"
    ):
        to_kohya({"emb_params": torch.zeros(1)})
    with pytest.raises(BestiaryError, match="no LoRA layer among 0 tensors .the first is nothing."):
        lora_layers({})
    with pytest.raises(
        BestiaryError, match="none of the 9 LoRA layers .* has 'unet.down_blocks.1.*model has .*'lora_unet_x_to_q'"
    ):
        resolve_lora(spelled("peft"), ["y", "x.to_q"])


def test_incomplete_files_and_unknown_namings_are_named() -> None:
    with pytest.raises(BestiaryError, match="has lora_unet_a.lora_down.weight but no lora_unet_a.lora_up.weight"):
        lora_layers({"lora_unet_a.lora_down.weight": torch.zeros(1, 1)})
    with pytest.raises(BestiaryError, match="unknown LoRA naming 'loha': choose one of kohya, partcraft"):
        from_kohya(spelled("kohya"), "loha")


# --- forms besides plain pairs ---


PAIR = {"lora_unet_a_to_q.lora_down.weight": torch.ones(4, 8), "lora_unet_a_to_q.lora_up.weight": torch.ones(8, 4)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora_unet_a_to_q.dora_scale", "DoRA"),
        ("unet.a.to_q.lora_magnitude_vector", "DoRA"),
        ("base_model.model.a.to_q.lora_magnitude_vector.default.weight", "DoRA"),
        ("lora_unet_a_to_q.hada_w1_a", "LoHa"),
        ("lora_unet_a_to_q.lokr_w2", "LoKr"),
        ("lora_unet_a_to_q.oft_blocks", "OFT"),
        ("lora_unet_a_norm.w_norm", "trained norms"),
        ("lora_unet_a_norm.b_norm", "trained norms"),
        ("lora_unet_a_conv.diff", "whole differences of weights"),
        ("lora_unet_a_conv.diff_b", "whole differences of weights"),
        ("unet.a.to_q.lora_B.bias", "trained biases"),
    ],
)
def test_other_forms_are_refused_by_name(name: str, message: str) -> None:
    with pytest.raises(
        BestiaryError, match=rf"the LoRA holds {message}.*, such as '{name}', which part dictionaries cannot"
    ):
        to_kohya({**PAIR, name: torch.ones(8)})


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight", "lora_transformer_joint_blocks_0_x.lora_down.weight",
    ],
)  # fmt: skip
def test_other_families_are_refused_by_name(name: str) -> None:
    with pytest.raises(BestiaryError, match=f"is for a transformer model such as Flux or SD3 .'{name}'"):
        to_kohya({**PAIR, name: torch.ones(4, 8)})


@pytest.mark.parametrize(
    "name", [f"unet.{BLOCK}.attn1.to_q.lora_A.weight", f"{BLOCK}.attn2.processor.to_q_lora.down.weight"]
)
def test_layers_of_unets_are_not_taken_for_others(name: str) -> None:
    up = name.replace("lora_A", "lora_B").replace("down.weight", "up.weight")
    assert len(to_kohya({name: torch.ones(4, 8), up: torch.ones(8, 4)})) == 2


def test_a_lora_of_another_family_of_unets() -> None:
    name = "lora_unet_x_attn2_to_k.lora_down.weight"
    check_family({name: torch.zeros(4, 768)}, 768)
    with pytest.raises(
        BestiaryError, match="reads text vectors of width 2048, this model has 768: it was trained for another"
    ):
        check_family({name: torch.zeros(4, 2048)}, 768)


def test_a_middle_matrix_is_folded_exactly() -> None:
    down, mid, up = torch.randn(4, 6, 1, 1), torch.randn(5, 4, 3, 3), torch.randn(7, 5, 1, 1)
    stem = "lora_unet_a_conv1"
    named = to_kohya({f"{stem}.lora_down.weight": down, f"{stem}.lora_mid.weight": mid, f"{stem}.lora_up.weight": up})
    assert f"{stem}.lora_mid.weight" not in named
    picture = torch.randn(1, 6, 9, 9)
    theirs = torch.conv2d(torch.conv2d(torch.conv2d(picture, down), mid, padding=1), up)
    ours = torch.conv2d(torch.conv2d(picture, named[f"{stem}.lora_down.weight"], padding=1), up)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert lora_layers(named)[stem].down.shape == (5, 6, 3, 3)
    with pytest.raises(BestiaryError, match="a middle matrix .* that does not fit"):
        to_kohya(
            {f"{stem}.lora_down.weight": down, f"{stem}.lora_mid.weight": mid[:, :2], f"{stem}.lora_up.weight": up}
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_unet_a_to_q.lora_up.weight": None}, "has lora_unet_a_to_q.lora_down.weight but no .*: the file is incomplete"),
        ({"lora_unet_a_to_q.lora_down.weight": None, **{f"lora_unet_b.{n}": t for n, t in (
            ("lora_down.weight", torch.ones(4, 8)), ("lora_up.weight", torch.ones(8, 4)))}}, "lora_up.weight but no"),
        ({"lora_unet_a_to_q.lora_up.weight": torch.ones(8, 3)}, r"is \(8, 3\) times \(4, 8\): its ranks differ"),
        ({"lora_unet_a_to_q.alpha": torch.ones(2)}, r"alpha has shape \(2,\), expected one finite number"),
        ({"lora_unet_a_to_q.alpha": torch.tensor(float("nan"))}, "expected one finite number"),
    ],
)  # fmt: skip
def test_pairs_that_are_none(change: dict[str, torch.Tensor | None], message: str) -> None:
    tensors = {name: tensor for name, tensor in {**PAIR, **change}.items() if tensor is not None}
    with pytest.raises(BestiaryError, match=message):
        to_kohya(tensors)


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        ({}, 1.0),
        ({"lora_adapter_metadata": '{"unet.lora_alpha": 16, "unet.r": 4}'}, 4.0),
        ({"lora_adapter_metadata": '{"unet.lora_alpha": 16, "unet.r": 4, "unet.use_rslora": true}'}, 8.0),
        ({"lora_adapter_metadata": '{"lora_alpha": 2, "r": 4}'}, 0.5),
        ({"lora_adapter_metadata": '{"text_encoder.lora_alpha": 16}'}, 1.0),
        ({"lora_adapter_metadata": '{"unet.lora_alpha": 16, "unet.alpha_pattern": {"to_q": 8}}'}, 2.0),
        ({"lora_adapter_metadata": '{"unet.lora_alpha": "much"}'}, 1.0),
        ({"ss_network_alpha": "2", "ss_network_dim": "4"}, 0.5),
        ({"ss_network_alpha": "None"}, 1.0),
    ],
)
def test_scales_that_only_the_header_tells(metadata: dict[str, str], scale: float) -> None:
    pair = {
        f"unet.{BLOCK}.attn1.to_q.lora_A.weight": torch.ones(4, 8),
        f"unet.{BLOCK}.attn1.to_q.lora_B.weight": torch.ones(8, 4),
    }
    (layer,) = lora_layers(with_told_alphas(pair, metadata)).values()
    assert layer.scale == pytest.approx(scale)
    # a layer's own alpha counts before the header's
    own = {**pair, f"unet.{BLOCK}.attn1.to_q.alpha": torch.tensor(12.0)}
    (layer,) = lora_layers(with_told_alphas(own, metadata)).values()
    assert layer.scale == 3


def test_a_header_that_is_broken() -> None:
    with pytest.raises(
        BestiaryError, match="the LoRA's header has a broken lora_adapter_metadata: it is not valid JSON"
    ):
        with_told_alphas(PAIR, {"lora_adapter_metadata": "{"})
