"""The objective on tiny models: gradients where they belong, batches that add up, absent parts that count nothing."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import PromptLayout, PromptPiece
from bestiary.concepts.denoiser.low_rank import LoraSpec
from bestiary.concepts.denoiser.process import min_snr_weights
from bestiary.concepts.part_dictionary.token_projector import TokenProjector
from bestiary.trainer.learning.parts.part_objective import AttentionLoss, PartBatch, PartObjective
from torch import Tensor

PARTS, KINDS = 3, 4


@pytest.fixture
def make(tiny_denoiser: Callable[..., object]) -> Callable[..., PartObjective]:
    def build(backbone: str = "bestiary-demo", **options: object) -> PartObjective:
        denoiser = tiny_denoiser(backbone)
        torch.manual_seed(0)
        adapters = denoiser.network.adapters.add(LoraSpec(rank=2, alpha=2))
        for parameter in adapters.values():
            torch.nn.init.normal_(parameter, std=0.1)
        projector = TokenProjector(PARTS, KINDS, denoiser.backbone.vector_width)
        options = {"attention": AttentionLoss(0.5), **options}
        return PartObjective(denoiser, projector, adapters, **options)

    return build


def batch_of(objective: PartObjective, size: int = 4, cells: int = 8) -> PartBatch:
    """Three parts in every picture but part 2 in picture 0; masks are thirds of the grid."""
    denoiser, rng = objective.denoiser, torch.Generator().manual_seed(1)
    channels = denoiser.backbone.latent_channels
    grid = cells * denoiser.backbone.latent_factor // denoiser.backbone.attention_divisor
    tokens = denoiser.text.tokenize([PromptPiece("a red"), *[PromptPiece(None)] * PARTS], chunks=1)
    codes = torch.arange(size).unsqueeze(1).expand(-1, PARTS) % KINDS
    codes = codes.clone()
    codes[0, 2] = -1
    bands = torch.arange(grid) * PARTS // grid
    masks = (bands[None, :, None] == torch.arange(PARTS)[:, None, None]).expand(size, -1, -1, grid)
    return PartBatch(
        names=tuple(f"{i}.png" for i in range(size)),
        moments=torch.randn(size, 2, channels, cells, cells, generator=rng).half(),
        noise=torch.randn(size, 2, channels, cells, cells, generator=rng),
        times=(torch.tensor([10, 300, 600, 990] * size)[:size] + 1) / 1000,
        codes=codes,
        prompts=tuple(_without_absent(tokens, row) for row in codes),
        masks=masks,
    )


def _without_absent(tokens: PromptLayout, codes: Tensor) -> PromptLayout:
    """The prompt without places for absent parts (codes (M,) below 0)."""
    return {name: replace(own, slots=torch.where(codes < 0, -1, own.slots)) for name, own in tokens.items()}


def rows_of(batch: PartBatch, rows: slice) -> PartBatch:
    tensors = {name: getattr(batch, name)[rows] for name in ("moments", "noise", "times", "codes", "masks")}
    return replace(batch, names=batch.names[rows], prompts=batch.prompts[rows], **tensors)


def gradients(objective: PartObjective, batch: PartBatch) -> list[Tensor]:
    objective.zero_grad()
    objective(batch).total.backward()
    return [parameter.grad.clone() for parameter in objective.parameters()]


@pytest.mark.parametrize("backbone", ["bestiary-demo", "sd15", "sd2", "sdxl"])
def test_gradients_reach_tokens_projector_and_adapters_on_every_backbone(make, backbone: str) -> None:
    objective = make(backbone)
    batch = batch_of(objective, cells=8 if backbone != "sd15" else 16)
    assert all(gradient.abs().sum() > 0 for gradient in gradients(objective, batch))
    assert all(not p.requires_grad or p.grad is None for p in objective.denoiser.unet.parameters() if id(p) not in {
        id(own) for own in objective.parameters()})  # fmt: skip


def test_only_rows_of_the_batch_get_a_gradient(make) -> None:
    objective = make()
    batch = rows_of(batch_of(objective), slice(0, 2))  # kinds 0 and 1; part 2 of picture 0 is absent
    gradients(objective, batch)
    moved = objective.projector.embedding.weight.grad.abs().sum(1).view(PARTS, KINDS + 1) > 0
    assert moved.tolist() == [[True, True, False, False, False]] * 2 + [[False, True, False, False, False]]


def test_halves_of_a_batch_average_to_the_whole(make) -> None:
    objective = make()
    whole = batch_of(objective)
    halves = [gradients(objective, rows_of(whole, rows)) for rows in (slice(0, 2), slice(2, 4))]
    for theirs, *ours in zip(gradients(objective, whole), *halves, strict=True):
        torch.testing.assert_close(sum(ours) / 2, theirs, rtol=1e-4, atol=1e-6)


def test_the_loss_is_its_formula(make) -> None:
    objective = make(attention=AttentionLoss(0.0), min_snr=5.0)
    batch = batch_of(objective)
    report = objective(batch)
    with torch.no_grad():
        output, noised = objective.predict(batch)
        target = noised.process.target(noised.x0, noised.noise, noised.times)
    error = (output.prediction - target).square().mean((1, 2, 3))
    weights = min_snr_weights(objective.denoiser.process.snr(batch.times), 5.0)
    torch.testing.assert_close(report.total.detach(), (error * weights).mean())
    torch.testing.assert_close(report.curves["loss"], report.curves["noise_loss"])
    plain = make(attention=None, min_snr=0.0)
    torch.testing.assert_close(plain(batch).total.detach(), error.mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["bestiary-demo", "sd2"])  # they predict noise and velocity
def test_the_denoiser_sees_a_posterior_draw_with_noise_and_shall_say_what_diffusers_says(
    make, backbone: str, monkeypatch
) -> None:
    from diffusers import DDPMScheduler

    objective = make(backbone, attention=None)
    batch, denoiser, seen = batch_of(objective), objective.denoiser, []
    predict = type(denoiser.network).predict

    def noted(self: object, latents: Tensor, *args: object, **options: object) -> object:
        seen.append(latents)
        return predict(self, latents, *args, **options)

    monkeypatch.setattr(type(denoiser.network), "predict", noted)
    _, noised = objective.predict(batch)
    target = noised.process.target(noised.x0, noised.noise, noised.times)
    timesteps = denoiser.process.timesteps(batch.times).long()
    mean, log_variance = batch.moments.float().unbind(1)
    latents = (mean + (log_variance / 2).exp() * batch.noise[:, 0] - 0) * denoiser.vae.config.scaling_factor
    theirs = DDPMScheduler(trained_betas=(1 - _ratios(denoiser.process.alphas_cumprod)).tolist())
    torch.testing.assert_close(seen[0], theirs.add_noise(latents, batch.noise[:, 1], timesteps), atol=1e-4, rtol=1e-4)
    expected = batch.noise[:, 1]
    if backbone == "sd2":
        expected = theirs.get_velocity(latents, batch.noise[:, 1], timesteps)
    torch.testing.assert_close(target, expected, atol=1e-4, rtol=1e-4)


def _ratios(cumulative: Tensor) -> Tensor:
    """The factors (T,) whose running product is `cumulative`."""
    return cumulative / torch.cat([cumulative.new_ones(1), cumulative[:-1]])


def test_the_attention_loss_adds_its_weight(make) -> None:
    ours, theirs = make(attention=AttentionLoss(2.0)), make(attention=AttentionLoss(0.0))
    report, plain = ours(batch_of(ours)), theirs(batch_of(theirs))
    torch.testing.assert_close(report.total, plain.total + 2 * report.curves["attention_loss"], rtol=1e-4, atol=1e-5)


def test_curves_leave_out_absent_parts(make) -> None:
    objective = make()
    curves = objective(batch_of(objective)).curves
    absent = torch.zeros(4, PARTS, dtype=torch.bool)
    absent[0, 2] = True
    for name in ("attention_iou", "part_attention_loss"):
        assert torch.equal(curves[name].isnan(), absent) and not curves[name].requires_grad
    assert curves["attention_loss"] < 2  # no constant of a hundred per absent part


def test_without_attention_no_map_is_read(make) -> None:
    objective = make(attention=None)
    output, _ = objective.predict(batch_of(objective))
    assert output.attention == {} and "attention_iou" not in objective(batch_of(objective)).curves


@pytest.mark.parametrize(("form", "columns"), [("bce", "lse"), ("bce", "one_hot"), ("softmax", "lse")])
def test_forms_of_the_attention_loss_train(make, form: str, columns: str) -> None:
    objective = make(attention=AttentionLoss(100.0, form, None, columns))
    batch = batch_of(objective)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        report = objective(batch)
        optimizer.zero_grad()
        report.total.backward()
        optimizer.step()
        losses.append(float(report.curves["attention_loss"]))
    assert losses[-1] < losses[0]


def test_not_a_number_comes_through_to_the_loss(make) -> None:
    """So that the loop can name the pictures, where a kernel would abort."""
    objective = make()
    batch = batch_of(objective)
    batch.moments[2, 0, 0, 0, 0] = torch.nan
    assert objective(batch).total.isnan()


def test_chosen_layers_are_read_and_brought_to_one_size(make) -> None:
    objective = make()
    layers = objective.denoiser.attention_factors()
    coarse = tuple(name for name, factor in layers.items() if factor == 2)
    chosen = make(attention=AttentionLoss(1.0, layers=coarse))
    output, _ = chosen.predict(batch_of(chosen))
    assert set(output.attention) == set(coarse)
    assert torch.isfinite(chosen(batch_of(chosen)).total)


@pytest.mark.parametrize("maps", ["text", "joint", "output"])
def test_maps_of_joint_attention_are_those_asked_for(make, maps, monkeypatch) -> None:
    objective = make("sd3", attention=AttentionLoss(1.0, maps=maps), min_snr=0.0)
    asked = []
    monkeypatch.setattr(
        objective.denoiser.network, "predict", lambda x, times, text, request: asked.append(request.form)
    )
    objective.predict(batch_of(objective))
    assert asked == [maps]


def test_region_weight_leaves_out_what_the_caption_does_not_cover(make) -> None:
    objective = make(attention=None, region_weight=1.0, min_snr=0.0)
    batch = batch_of(objective)
    with torch.no_grad():
        output, noised = objective.predict(batch)
    error = (output.prediction - noised.process.target(noised.x0, noised.noise, noised.times)).square()
    covered = batch.masks[0, :2].any(0)  # part 2 of picture 0 is not in its caption
    ours = noised.loss(output.prediction, weights=objective._regions(batch))
    torch.testing.assert_close(ours[0], error[0][:, covered].mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[1:], error[1:].mean((1, 2, 3)))


def test_frozen_weights_are_not_the_objectives(make) -> None:
    objective = make()
    names = [name for name, _ in objective.named_parameters()]
    assert all(name.startswith(("projector.", "adapters.")) for name in names)
    assert set(map(id, objective.named_adapters().values())) == set(map(id, objective.adapters))
