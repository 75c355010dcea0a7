"""The loss of a thing and of its class, on a denoiser whose answers can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bestiary.concepts.denoiser.backbone import Backbone, TextEncoderSpec
from bestiary.concepts.denoiser.denoiser import Conditioning, EncoderLayout, NetworkOutput, PromptLayout
from bestiary.concepts.denoiser.image_side import drawn_latents
from bestiary.concepts.denoiser.process import DiscreteProcess
from bestiary.trainer.learning.dreambooth.dreambooth_objective import (
    CLASS,
    INSTANCE,
    DreamBoothBatch,
    DreamBoothObjective,
)
from torch import Tensor, nn

TOLD = (3.0, 1.0, 0.0)
"""What the prompts of the thing and of the class, and the empty one, say."""


class _Denoiser:
    """Predicts what it is told times one learned number, everywhere."""

    def __init__(self) -> None:
        self.process = DiscreteProcess(torch.linspace(0.99, 0.01, 100), "epsilon")
        self.backbone = Backbone("sd15", (TextEncoderSpec("clip_l", 1, "final"),), 16, 1, 8)
        self.text = self.images = self.network = self
        self.factor = nn.Parameter(torch.tensor(1.0))

    def from_cache(self, moments: Tensor, noise: Tensor) -> Tensor:
        return drawn_latents(moments, noise)

    def encode(self, prompts: list[PromptLayout], vectors: dict[str, Tensor] | None) -> Conditioning:
        return Conditioning.of(torch.stack([prompt["clip_l"].weights for prompt in prompts]))  # (U, 1, 1)

    def predict(self, latents: Tensor, times: Tensor, text: Conditioning) -> NetworkOutput:
        told = text.context.mean((1, 2)).view(-1, 1, 1, 1)
        return NetworkOutput((self.factor * told).expand_as(latents))


def _batch(**changes: object) -> DreamBoothBatch:
    rng = torch.Generator().manual_seed(0)
    ids = torch.zeros(1, 1).long()
    prompts = tuple({"clip_l": EncoderLayout(ids, torch.zeros(0).long(), torch.full((1, 1), told))} for told in TOLD)
    moments, noise = (torch.randn(4, 2, 1, 4, 4, generator=rng) for _ in range(2))
    return replace(
        DreamBoothBatch(
            names=("a", "b", "c", "d"), moments=moments, noise=noise, times=torch.tensor([0.2, 0.5, 0.7, 0.9]),
            texts=(INSTANCE, INSTANCE, CLASS, CLASS), prompts=prompts, of_class=torch.tensor([False, False, True, True]),
        ),
        **changes,
    )  # fmt: skip


@pytest.fixture
def objective() -> DreamBoothObjective:
    denoiser = _Denoiser()
    return DreamBoothObjective(denoiser, {"factor": denoiser.factor}, prior_weight=0.3)


def test_the_loss_is_the_things_mean_and_the_weighed_mean_of_the_class(objective: DreamBoothObjective) -> None:
    batch = _batch()
    noise = batch.noise[:, 1]
    instance, prior = (TOLD[INSTANCE] - noise[:2]).square().mean(), (TOLD[CLASS] - noise[2:]).square().mean()
    report = objective(batch)
    assert torch.allclose(report.curves["instance_loss"], instance) and torch.allclose(
        report.curves["prior_loss"], prior
    )
    assert torch.equal(report.total, report.curves["instance_loss"] + 0.3 * report.curves["prior_loss"])


def test_what_lies_outside_a_mask_changes_no_gradient(objective: DreamBoothObjective) -> None:
    masks = torch.ones(4, 1, 4, 4)
    masks[:2, :, :, 2:] = 0
    batch, other = _batch(masks=masks), _batch(masks=masks)
    other.noise[:2, :, :, :, 2:] += 5
    other.moments[:2, :, :, :, 2:] += 5
    grads = [torch.autograd.grad(objective(some).total, objective.adapters[0])[0] for some in (batch, other)]
    assert grads[0] != 0 and torch.equal(*grads)
    # the class has no masks, and inside of one all counts
    other.noise[2:, :, :, :, 2:] += 5
    assert not torch.equal(torch.autograd.grad(objective(other).total, objective.adapters[0])[0], grads[0])


def test_rows_are_weighed_by_their_noise_where_asked(objective: DreamBoothObjective) -> None:
    batch = _batch()
    losses = (torch.tensor([3.0, 3.0, 1.0, 1.0]).view(4, 1, 1, 1) - batch.noise[:, 1]).square().mean((1, 2, 3))  # (4,)
    snr = objective.denoiser.process.snr(batch.times)
    weighed = losses * snr.clamp(max=0.5) / snr
    objective.min_snr = 0.5
    assert torch.allclose(objective(batch).total, weighed[:2].mean() + 0.3 * weighed[2:].mean())


def test_a_batch_without_class_has_the_things_loss_alone(objective: DreamBoothObjective) -> None:
    report = objective(_batch(of_class=torch.zeros(4, dtype=torch.bool)))
    assert set(report.curves) == {"instance_loss", "loss"} and torch.equal(report.total, report.curves["instance_loss"])
