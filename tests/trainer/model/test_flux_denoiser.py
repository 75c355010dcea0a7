"""Flux.1 against diffusers' own model: predictions, columns against the softmax, features, gradients with and without recomputation."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from bestiary.concepts.denoiser.backbone import Backbone
from bestiary.concepts.denoiser.denoiser import AttentionRequest, Conditioning
from bestiary.concepts.denoiser.low_rank import LoraSpec
from bestiary.concepts.denoiser.process import FlowProcess
from bestiary.concepts.denoiser.transformer_backbones import FLUX
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.model.flux_denoiser import FluxDenoiser
from bestiary.trainer.model.transformer_network import TransformerParts
from torch import Tensor, nn

TEXT, WIDTH, SIZE, GRID, HEADS, HEAD = 9, 24, (4, 6), (2, 3), 2, 16
COLUMNS = torch.tensor([[[1], [4], [-1]], [[2], [-1], [8]]])
BLOCKS = ("transformer_blocks.1.attn", "single_transformer_blocks.0.attn")
FEATURES = ("transformer_blocks.0", "single_transformer_blocks.1")


def record() -> Backbone:
    widths = {"clip_l": 12, "t5xxl": WIDTH}
    encoders = tuple(replace(spec, width=widths[spec.name]) for spec in FLUX.text_encoders)
    return replace(FLUX, text_encoders=encoders, latent_channels=4, image_size=64)


@pytest.fixture(scope="module")
def transformers() -> dict[bool, nn.Module]:
    """The real class with random weights, with guidance and without."""
    from diffusers import FluxTransformer2DModel

    made = {}
    for guidance in (True, False):
        torch.manual_seed(0)
        model = FluxTransformer2DModel(
            in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=HEAD, num_attention_heads=HEADS,
            joint_attention_dim=WIDTH, pooled_projection_dim=12, guidance_embeds=guidance, axes_dims_rope=(4, 6, 6),
        )  # fmt: skip
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
        made[guidance] = model.eval()
    return made


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, times, context that wants a gradient, pooled text."""
    rng = torch.Generator().manual_seed(1)
    latents, context = torch.randn(2, 4, *SIZE, generator=rng), torch.randn(2, TEXT, WIDTH, generator=rng)
    return latents, torch.tensor([0.3, 1.0]), context.requires_grad_(), torch.randn(2, 12, generator=rng)


class Softmax:
    """diffusers' own processor, which notes the text share of the explicit softmax beside what it gives."""

    def __init__(self) -> None:
        from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

        self.plain, self.share = FluxAttnProcessor(), None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):  # noqa: ANN001, ANN204
        from diffusers.models.embeddings import apply_rotary_emb

        def heads(x: Tensor, norm: nn.Module) -> Tensor:
            return norm(x.unflatten(-1, (HEADS, -1)).transpose(1, 2))

        q, k = heads(attn.to_q(hidden_states), attn.norm_q), heads(attn.to_k(hidden_states), attn.norm_k)
        if encoder_hidden_states is not None:
            q = torch.cat([heads(attn.add_q_proj(encoder_hidden_states), attn.norm_added_q), q], dim=2)
            k = torch.cat([heads(attn.add_k_proj(encoder_hidden_states), attn.norm_added_k), k], dim=2)
        q, k = apply_rotary_emb(q, image_rotary_emb), apply_rotary_emb(k, image_rotary_emb)
        scores = q[:, :, TEXT:] @ k.transpose(-1, -2) * HEAD**-0.5
        on_text = scores.softmax(-1)[..., :TEXT]  # (B, H, N, L)
        self.share = (on_text / on_text.sum(-1, keepdim=True)).mean(1)
        return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)


def theirs(model: nn.Module, context: Tensor, guidance: Tensor | None) -> tuple[Tensor, dict, dict]:
    """Prediction, columns `(B, P, h, w)` and image tokens of the read blocks, as diffusers' pipeline calls the model."""
    from diffusers import FluxPipeline

    latents, times, _, pooled = inputs()
    notes, seen = {name: Softmax() for name in BLOCKS}, {}
    for name, own in notes.items():
        model.get_submodule(name).set_processor(own)
    for name in FEATURES:
        model.get_submodule(name).register_forward_hook(
            lambda _module, _given, output, name=name: seen.update({name: output[1]})
        )
    # rounded as ours is: a thousand times sigma goes through a sine
    sigma = FlowProcess.exponential(1.15).sigma(times)
    packed = FluxPipeline._pack_latents(latents, 2, 4, *SIZE)
    places = FluxPipeline._prepare_latent_image_ids(2, *GRID, torch.device("cpu"), torch.float32)
    velocity = model(
        packed, context, pooled, sigma, places, torch.zeros(TEXT, 3), guidance, return_dict=False
    )[0]  # fmt: skip
    prediction = FluxPipeline._unpack_latents(velocity, SIZE[0] * 8, SIZE[1] * 8, 8)
    columns = {}
    for name, own in notes.items():
        padded = nn.functional.pad(own.share, (0, 1))  # place -1 is the empty one
        rows = [padded[row][:, COLUMNS[row]].sum(-1) for row in range(2)]
        columns[name] = torch.stack(rows).transpose(1, 2).unflatten(2, GRID)
    return prediction, columns, seen


def denoiser(transformers: dict[bool, nn.Module], guidance: bool) -> FluxDenoiser:
    return FluxDenoiser(record(), TransformerParts(copy.deepcopy(transformers[guidance])))


@pytest.mark.parametrize(("guided", "given"), [(True, None), (True, 3.5), (False, None)])
@pytest.mark.parametrize("method", ["lse", "one_hot"])
def test_predictions_columns_and_features_are_those_of_diffusers(
    transformers: dict, guided: bool, given: float | None, method: str
) -> None:
    ours = denoiser(transformers, guided)
    latents, times, context, pooled = inputs()
    text = Conditioning.of(context, COLUMNS, pooled=pooled, guidance=None if given is None else torch.full((2,), given))
    plain = ours.network.predict(latents, times, text)
    output = ours.network.predict(latents, times, text, AttentionRequest(COLUMNS, BLOCKS, method), FEATURES)
    # in training a distilled model is told 1
    told = torch.full((2,), 1.0 if given is None else given) if guided else None
    prediction, columns, tokens = theirs(copy.deepcopy(transformers[guided]), context, told)
    torch.testing.assert_close(plain.prediction, prediction, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.prediction, prediction, atol=1e-5, rtol=1e-5)
    if method == "lse":
        assert torch.equal(output.prediction, plain.prediction)
    assert set(output.attention) == set(BLOCKS)
    for name in BLOCKS:
        torch.testing.assert_close(output.attention[name], columns[name], atol=1e-6, rtol=1e-5)
    for name in FEATURES:
        flat = output.features[name].flatten(2).transpose(1, 2)
        torch.testing.assert_close(flat, tokens[name], atol=1e-4, rtol=1e-5)


def loss(prediction: Tensor, columns: dict[str, Tensor]) -> Tensor:
    return prediction.square().mean() + 5 * sum(own.square().sum() for own in columns.values())


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_tokens_and_adapters_are_those_of_diffusers(
    transformers: dict, recompute: bool, check_gradients: Callable
) -> None:
    ours = denoiser(transformers, True)
    torch.manual_seed(2)
    ours.network.adapters.add(LoraSpec(rank=2, alpha=3.0))
    updates = ours.network.adapters.trained()
    for update in updates.values():
        nn.init.normal_(update.up, std=0.1)
    ours.network.set_gradient_checkpointing(recompute)
    latents, times, context, pooled = inputs()
    request = AttentionRequest(COLUMNS, BLOCKS, "one_hot")
    output = ours.network.predict(latents, times, Conditioning.of(context, pooled=pooled), request)
    loss(output.prediction, output.attention).backward()
    # the same adapters, multiplied into a copy's weights
    merged = copy.deepcopy(transformers[True]).requires_grad_(True)
    for name, update in updates.items():
        merged.get_submodule(name).weight.data += update.scale * (update.up @ update.down).detach()
    other = inputs()[2]
    prediction, columns, _ = theirs(merged, other, torch.ones(2))
    loss(prediction, columns).backward()
    check_gradients(context, updates, other, merged)


def test_blocks_grids_and_adapters(transformers: dict) -> None:
    ours = denoiser(transformers, False)
    names = [f"{kind}.{n}" for kind in ("transformer_blocks", "single_transformer_blocks") for n in range(2)]
    assert ours.network.attention_grids((8, 12)) == {f"{name}.attn": (4, 6) for name in names}
    assert ours.network.method_layers() == ("transformer_blocks.1.attn",)
    assert ours.feature_factors() == dict.fromkeys(names, 2)
    assert ours.process.shift == pytest.approx(3.158, abs=1e-3) and ours.process.draw == "logit_normal"
    ours.network.adapters.add(LoraSpec(rank=1))
    # eight in two streams; queries, keys and values in one
    assert len(ours.network.adapters.trained()) == 2 * 8 + 2 * 3


def test_what_does_not_fit_is_named(transformers: dict) -> None:
    network = denoiser(transformers, False).network
    latents, times, context, pooled = inputs()
    with pytest.raises(BestiaryError, match="latents of 4 x 5 .* multiples of 16 pixels"):
        network.predict(latents[..., :5], times, Conditioning.of(context, pooled=pooled))
    with pytest.raises(BestiaryError, match="flux needs the pooled text vector"):
        network.predict(latents, times, Conditioning.of(context))
