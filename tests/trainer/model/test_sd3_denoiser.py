"""Stable Diffusion 3 against diffusers' own model: predictions, columns against the softmax, features, gradients with and without recomputation."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from bestiary.concepts.denoiser.backbone import Backbone
from bestiary.concepts.denoiser.denoiser import AttentionRequest, Conditioning
from bestiary.concepts.denoiser.low_rank import LoraSpec
from bestiary.concepts.denoiser.process import FlowProcess
from bestiary.concepts.denoiser.transformer_backbones import SD3
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.model.sd3_denoiser import SD3Denoiser
from bestiary.trainer.model.transformer_network import TransformerParts
from torch import Tensor, nn

TEXT, WIDTH, SIZE, HEADS, LAYERS = 9, 48, (4, 6), 2, 3
SHAPES = {
    "plain": {},
    "rms norms": {"qk_norm": "rms_norm"},
    "dual attention": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
}
COLUMNS = torch.tensor([[[1, 6], [4, -1], [-1, -1]], [[2, 8], [-1, -1], [3, 5]]])
BLOCKS = ("transformer_blocks.0.attn", "transformer_blocks.2.attn")


def record() -> Backbone:
    widths = {"clip_l": 16, "clip_g": 32, "t5xxl": WIDTH}
    encoders = tuple(replace(spec, width=widths[spec.name]) for spec in SD3.text_encoders)
    return replace(SD3, text_encoders=encoders, latent_channels=4, image_size=64)


@pytest.fixture(scope="module")
def transformers() -> dict[str, nn.Module]:
    """The real class with random weights, one of each shape."""
    from diffusers import SD3Transformer2DModel

    made = {}
    for name, options in SHAPES.items():
        torch.manual_seed(0)
        model = SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=LAYERS, attention_head_dim=8,
            num_attention_heads=HEADS, joint_attention_dim=WIDTH, caption_projection_dim=16, pooled_projection_dim=12,
            pos_embed_max_size=8, **options,
        )  # fmt: skip
        # norms start at one and gates near zero: every weight shall matter
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        made[name] = model.eval()
    return made


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, times, context that wants a gradient, pooled text."""
    rng = torch.Generator().manual_seed(1)
    latents, context = torch.randn(2, 4, *SIZE, generator=rng), torch.randn(2, TEXT, WIDTH, generator=rng)
    pooled = torch.randn(2, 12, generator=rng)
    return latents, torch.tensor([0.3, 1.0]), context.requires_grad_(), pooled


class Softmax:
    """diffusers' own processor, which notes the text share of the explicit softmax beside what it gives."""

    def __init__(self) -> None:
        from diffusers.models.attention_processor import JointAttnProcessor2_0

        self.plain, self.share = JointAttnProcessor2_0(), None

    def __call__(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor, **options: object):  # noqa: ANN204
        def heads(x: Tensor, norm: nn.Module | None) -> Tensor:
            x = x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            return x if norm is None else norm(x)

        q = heads(attn.to_q(hidden_states), attn.norm_q)
        k = heads(attn.to_k(hidden_states), attn.norm_k)
        text = heads(attn.add_k_proj(encoder_hidden_states), attn.norm_added_k)
        scores = (q @ torch.cat([k, text], dim=2).transpose(-1, -2)) * q.shape[-1] ** -0.5
        on_text = scores.softmax(-1)[..., k.shape[2] :]  # (B, H, N, L)
        self.share = (on_text / on_text.sum(-1, keepdim=True)).mean(1)
        return self.plain(attn, hidden_states, encoder_hidden_states)


def theirs(model: nn.Module, context: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Prediction, columns `(B, P, h, w)` of the read blocks, and the image tokens behind block 1."""
    latents, times, _, pooled = inputs()
    notes, seen = {name: Softmax() for name in BLOCKS}, []
    for name, own in notes.items():
        model.get_submodule(name).set_processor(own)
    handle = model.transformer_blocks[1].register_forward_hook(lambda _module, _given, output: seen.append(output[1]))
    sigma = FlowProcess(3.0).sigma(times)
    prediction = model(latents, context, pooled, sigma * 1000, return_dict=False)[0]
    handle.remove()
    columns = {}
    for name, own in notes.items():
        padded = torch.nn.functional.pad(own.share, (0, 1))  # place -1 is the empty one
        rows = [padded[row][:, COLUMNS[row]].sum(-1) for row in range(2)]  # (N, P) each
        columns[name] = torch.stack(rows).transpose(1, 2).unflatten(2, (SIZE[0] // 2, SIZE[1] // 2))
    return prediction, columns, seen[0]


def denoiser(transformers: dict[str, nn.Module], shape: str) -> SD3Denoiser:
    return SD3Denoiser(record(), TransformerParts(copy.deepcopy(transformers[shape])))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["lse", "one_hot"])
def test_predictions_columns_and_features_are_those_of_diffusers(transformers: dict, shape: str, method: str) -> None:
    ours = denoiser(transformers, shape)
    latents, times, context, pooled = inputs()
    text = Conditioning.of(context, COLUMNS, pooled=pooled)
    plain = ours.network.predict(latents, times, text)
    output = ours.network.predict(
        latents, times, text, AttentionRequest(COLUMNS, BLOCKS, method), ["transformer_blocks.1"]
    )
    prediction, columns, tokens = theirs(copy.deepcopy(transformers[shape]), context)
    assert torch.equal(plain.prediction, prediction) and not plain.attention and not plain.features
    torch.testing.assert_close(output.prediction, prediction, atol=1e-5, rtol=1e-5)
    if method == "lse":
        assert torch.equal(output.prediction, prediction)
    assert set(output.attention) == set(BLOCKS)
    for name in BLOCKS:
        torch.testing.assert_close(output.attention[name], columns[name], atol=1e-6, rtol=1e-5)
    feature = output.features["transformer_blocks.1"]
    assert feature.shape == (2, 16, 2, 3)
    torch.testing.assert_close(feature.flatten(2).transpose(1, 2), tokens, atol=1e-5, rtol=1e-5)


def loss(prediction: Tensor, columns: dict[str, Tensor]) -> Tensor:
    return prediction.square().mean() + 5 * sum(own.square().sum() for own in columns.values())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_tokens_and_adapters_are_those_of_diffusers(
    transformers: dict, shape: str, recompute: bool, check_gradients: Callable
) -> None:
    ours = denoiser(transformers, shape)
    torch.manual_seed(2)
    ours.network.adapters.add(LoraSpec(rank=2, alpha=3.0))
    updates = ours.network.adapters.trained()
    for update in updates.values():
        nn.init.normal_(update.up, std=0.1)
    ours.network.set_gradient_checkpointing(recompute)
    latents, times, context, pooled = inputs()
    request = AttentionRequest(COLUMNS, BLOCKS, "one_hot")
    output = ours.network.predict(latents, times, Conditioning.of(context, pooled=pooled), request)
    kept = {name: maps.clone() for name, maps in output.attention.items()}
    loss(output.prediction, output.attention).backward()
    assert all(torch.equal(output.attention[name], maps) for name, maps in kept.items())

    # the same adapters, multiplied into a copy's weights
    merged = copy.deepcopy(transformers[shape]).requires_grad_(True)
    for name, update in updates.items():
        weight = merged.get_submodule(name).weight
        weight.data += update.scale * (update.up @ update.down).detach()
    other = inputs()[2]
    prediction, columns, _ = theirs(merged, other)
    loss(prediction, columns).backward()
    check_gradients(context, updates, other, merged)


def test_adapters_sit_on_every_attention_projection(transformers: dict) -> None:
    network = denoiser(transformers, "dual attention").network
    network.adapters.add(LoraSpec(rank=1))
    names = set(network.adapters.trained())
    # eight a block, without an output of the text in the last one, and four for each attention of the image alone
    assert len(names) == 8 * LAYERS - 1 + 4 * 2
    assert "transformer_blocks.0.attn.add_q_proj" in names and "transformer_blocks.1.attn2.to_out.0" in names
    assert f"transformer_blocks.{LAYERS - 1}.attn.to_add_out" not in names
    network.adapters.unload()
    network.adapters.add(LoraSpec(rank=1, self_attention=False))
    assert len(network.adapters.trained()) == 4 * LAYERS


def test_blocks_and_their_grids(transformers: dict) -> None:
    ours = denoiser(transformers, "plain")
    assert ours.network.attention_grids((8, 12)) == {f"transformer_blocks.{n}.attn": (4, 6) for n in range(LAYERS)}
    assert ours.network.method_layers() == ("transformer_blocks.1.attn",)
    assert ours.attention_factors() == {f"transformer_blocks.{n}.attn": 2 for n in range(LAYERS)}
    assert ours.feature_factors() == {f"transformer_blocks.{n}": 2 for n in range(LAYERS)}
    assert ours.process.prediction == "flow" and ours.process.shift == 3.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given | {"latents": torch.zeros(2, 4, 5, 6)}, "latents of 5 x 6 .* multiples of 16 pixels"),
        (lambda given: given | {"pooled": None}, "sd3 needs the pooled text vector"),
        (lambda given: given | {"context": torch.zeros(2, TEXT, 32)}, "the text is 32 wide, sd3 reads 48"),
        (
            lambda given: given | {"layers": ("transformer_blocks.7.attn",)},
            "unknown cross-attention layer 'transformer_blocks.7.attn': choose from transformer_blocks.0.attn",
        ),
    ],
    ids=["odd latents", "no pooled text", "other text", "unknown block"],
)
def test_what_does_not_fit_is_named(transformers: dict, change: Callable, message: str) -> None:
    network = denoiser(transformers, "plain").network
    latents, times, context, pooled = inputs()
    given = change({"latents": latents, "context": context, "pooled": pooled, "layers": None})
    text = Conditioning.of(given["context"], pooled=given["pooled"])
    with pytest.raises(BestiaryError, match=message):
        network.predict(given["latents"], times, text, AttentionRequest(COLUMNS, given["layers"]))


def test_another_programs_attention_is_refused(transformers: dict) -> None:
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0

    model = copy.deepcopy(transformers["plain"])
    model.transformer_blocks[1].attn.set_processor(SD3IPAdapterJointAttnProcessor2_0(16, 16, 8, 16))
    with pytest.raises(
        BestiaryError, match=r"transformer_blocks.1.attn was replaced by SD3IPAdapterJointAttnProcessor2_0"
    ):
        SD3Denoiser(record(), TransformerParts(model))
