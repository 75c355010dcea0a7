"""The noise loss through the vectors of sampled stages, on a denoiser whose answers can be worked out by hand."""

from dataclasses import replace

import pytest
import torch
from bestiary.concepts.denoiser.backbone import Backbone, TextEncoderSpec
from bestiary.concepts.denoiser.denoiser import Conditioning, EncoderLayout, NetworkOutput, PromptLayout, PromptPiece
from bestiary.concepts.denoiser.image_side import drawn_latents
from bestiary.concepts.denoiser.process import DiscreteProcess
from bestiary.concepts.spectrum.stage_table import StageTable
from bestiary.trainer.learning.spectrum.spectrum_objective import (
    SpectrumBatch,
    SpectrumObjective,
    curve_labels,
    pieces_of,
)
from torch import Tensor

STAGES, WIDTH = 4, 3


class _Denoiser:
    """Predicts the mean of what it is told, everywhere; its text encoder passes vectors on and counts prompts."""

    def __init__(self) -> None:
        self.process = DiscreteProcess(torch.linspace(0.99, 0.01, 100), "epsilon")
        self.backbone = Backbone("sd15", (TextEncoderSpec("clip_l", WIDTH, "final"),), 16, 1, 8)
        self.text = self.images = self.network = self
        self.encoded: list[int] = []
        self.told: Conditioning | None = None

    def from_cache(self, moments: Tensor, noise: Tensor) -> Tensor:
        return drawn_latents(moments, noise) * 2

    def encode(self, prompts: list[PromptLayout], vectors: dict[str, Tensor]) -> Conditioning:
        self.encoded.append(len(prompts))
        weights = torch.stack([prompt["clip_l"].weights.mean() for prompt in prompts])  # (U,)
        return Conditioning.of(vectors["clip_l"] * weights.view(-1, 1, 1))

    def predict(self, latents: Tensor, times: Tensor, text: Conditioning) -> NetworkOutput:
        self.told = text
        self.seen = latents
        return NetworkOutput(text.context.mean((1, 2)).view(-1, 1, 1, 1).expand_as(latents), {}, {})


def _batch(stages: tuple[int, ...], templates: tuple[int, ...] | None = None, **changes: object) -> SpectrumBatch:
    count = len(stages)
    rng = torch.Generator().manual_seed(0)
    templates = templates or (0,) * count
    ids = torch.zeros(1, 1).long()
    prompts = [{"clip_l": EncoderLayout(ids, torch.zeros(1).long(), torch.full((1, 1), 1.0 + n))} for n in templates]
    moments = torch.randn(count, 2, 1, 2, 2, generator=rng)
    noise = torch.randn(count, 2, 1, 2, 2, generator=rng)
    values = {"names": tuple("abcdef")[:count], "moments": moments, "noise": noise, "stages": stages}
    values |= {"times": torch.tensor([1 - 0.25 * stage for stage in stages]), "templates": templates}
    return replace(SpectrumBatch(prompts=tuple(prompts), **values), **changes)


@pytest.fixture
def objective() -> SpectrumObjective:
    """Four stages whose vectors are 1, 2, 3 and 4."""
    table = StageTable(torch.ones(1, WIDTH), STAGES, norm="free")
    with torch.no_grad():
        for stage, row in enumerate(table.rows):
            row.fill_(stage + 1)
    return SpectrumObjective(_Denoiser(), table, stages=STAGES)


def test_the_loss_is_the_error_of_the_noise(objective: SpectrumObjective) -> None:
    batch = _batch((2, 0, 2))
    report = objective(batch)
    told = torch.tensor([3.0, 1.0, 3.0]).view(3, 1, 1, 1)
    theirs = (told - batch.noise[:, 1]).square().mean((1, 2, 3))  # (3,)
    assert torch.allclose(report.total, theirs.mean())
    by_stage = report.curves["stage_loss"]
    assert by_stage.shape == (3, STAGES) and torch.allclose(by_stage.nanmean(0)[0], theirs[1])
    assert torch.allclose(by_stage.nanmean(0)[2], theirs[[0, 2]].mean()) and by_stage.nanmean(0)[[1, 3]].isnan().all()
    assert not by_stage.requires_grad and not report.curves["loss"].requires_grad


def test_latents_are_drawn_scaled_and_noised(objective: SpectrumObjective) -> None:
    batch = _batch((1, 3))
    objective(batch)
    mean, log_variance = batch.moments.unbind(1)
    clean = 2 * (mean + (0.5 * log_variance).exp() * batch.noise[:, 0])
    theirs = objective.denoiser.process.noised(clean, batch.noise[:, 1], batch.times)
    assert torch.allclose(objective.denoiser.seen, theirs)


def test_each_sentence_and_stage_is_encoded_once(objective: SpectrumObjective) -> None:
    batch = _batch((0, 0, 1, 0), (0, 1, 0, 0))
    objective(batch)
    assert objective.denoiser.encoded == [3]
    # pictures hear their own sentence and stage
    assert objective.denoiser.told.context[:, 0, 0].tolist() == [1.0, 2.0, 2.0, 1.0]


def test_gradients_reach_the_stages_of_the_batch_alone(objective: SpectrumObjective) -> None:
    objective(_batch((3, 1))).total.backward()
    grads = [row.grad is not None and bool(row.grad.abs().sum() > 0) for row in objective.table.rows]
    assert grads == [False, True, False, True]
    assert {name for name, _ in objective.named_parameters()} == {f"table.rows.{n}" for n in range(STAGES)}


def test_a_mask_picks_what_is_learned_from(objective: SpectrumObjective) -> None:
    batch = _batch((2, 0))
    white = objective(replace(batch, masks=torch.ones(2, 1, 2, 2))).total
    assert torch.allclose(white, objective(batch).total)
    half = torch.zeros(2, 1, 2, 2)
    half[..., 0] = 1
    told = torch.tensor([3.0, 1.0]).view(2, 1, 1, 1)
    theirs = (told - batch.noise[:, 1])[..., 0].square().mean()
    assert torch.allclose(objective(replace(batch, masks=half)).total, theirs)


def test_noise_levels_are_weighed_where_asked(objective: SpectrumObjective) -> None:
    batch = _batch((0, 3))
    plain = objective(batch).curves["stage_loss"].nansum(1)
    objective.min_snr = 0.5
    snr = objective.denoiser.process.snr(batch.times)
    theirs = (plain * snr.clamp(max=0.5) / snr).mean()
    assert torch.allclose(objective(batch).total, theirs)


def test_sizes_are_told(objective: SpectrumObjective) -> None:
    sizes = torch.arange(12.0).view(2, 6)
    objective(_batch((0, 1), sizes=sizes))
    assert objective.denoiser.told.sizes is sizes


def test_a_batch_moves_with_all_its_tensors() -> None:
    moved = _batch((0, 1), masks=torch.ones(2, 1, 2, 2)).to(torch.device("meta"))
    tensors = [moved.moments, moved.noise, moved.times, moved.masks]
    assert all(tensor.device.type == "meta" for tensor in tensors) and moved.sizes is None
    assert moved.stages == (0, 1)


def test_a_sentence_has_a_place_for_every_vector() -> None:
    vector, second = PromptPiece(None), PromptPiece(None, joined=True)
    assert pieces_of("a {} dog", 2) == [PromptPiece("a "), vector, second, PromptPiece(" dog")]
    assert pieces_of("{}", 1) == [vector]
    assert curve_labels(2) == {"stage_loss": ("stage 1", "stage 2")}
