"""DDIM: exact for a model that knows the picture, guided as asked, each picture from its own seed."""

from types import SimpleNamespace

import pytest
import torch
from bestiary.concepts.denoiser.ddim import sample_ddim
from bestiary.concepts.denoiser.denoiser import Conditioning, NetworkOutput
from bestiary.concepts.denoiser.process import DiscreteProcess
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.concepts.spectrum.staged_conditioning import StagedConditioning
from torch import Tensor

ALPHAS = torch.linspace(0.999, 0.01, 100)
TARGET = torch.linspace(-1, 1, 8 * 4 * 4).view(1, 8, 4, 4)


class KnowingDenoiser:
    """Always predicts what leads to the target times the context's value."""

    device = torch.device("cpu")
    images = SimpleNamespace(shape=lambda size: (8, size[0] // 8, size[1] // 8), decode=lambda latents: latents)

    def __init__(self, prediction: str) -> None:
        self.process, self.network = DiscreteProcess(ALPHAS, prediction), self

    def predict(self, latents: Tensor, times: Tensor, text: Conditioning) -> NetworkOutput:
        clean = TARGET * text.context[:, :1, :1, None]
        alpha = ALPHAS[self.process.timesteps(times).long()].view(-1, 1, 1, 1)
        noise = (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        if self.process.prediction == "v_prediction":
            noise = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        return NetworkOutput(noise, {}, {})


def _text(*values: float) -> Conditioning:
    return Conditioning.of(torch.tensor(values).view(-1, 1, 1))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_a_model_that_knows_the_picture_gives_it(prediction: str, steps: int) -> None:
    made = sample_ddim(
        KnowingDenoiser(prediction), _text(1.0, 2.0), _text(0.0), seeds=[3, 4], steps=steps, guidance=1, size=32
    )
    torch.testing.assert_close(made, torch.cat([TARGET, 2 * TARGET]), atol=1e-3, rtol=1e-3)


def test_guidance_leads_away_from_the_negative_prompt() -> None:
    made = sample_ddim(KnowingDenoiser("epsilon"), _text(1.0), _text(0.5), seeds=[3], steps=5, guidance=3, size=32)
    torch.testing.assert_close(made, 2 * TARGET, atol=1e-3, rtol=1e-3)  # 0.5 + 3 * (1 - 0.5)


def test_staged_prompts_are_told_stage_by_stage() -> None:
    """Two pictures: one hears 1 and then 3, the other 2 all the way; the last stage decides what a knowing model gives."""
    told = []

    class Listening(KnowingDenoiser):
        def predict(self, latents: Tensor, times: Tensor, text: Conditioning) -> NetworkOutput:
            told.append((int(self.process.timesteps(times)[0]), text.context.flatten().tolist()))
            return super().predict(latents, times, text)

    staged = StagedConditioning(
        _text(1.0, 2.0, 3.0), torch.tensor([[0, 2], [1, 1]]), StageBounds.from_fractions([0.5], 100)
    )
    options = {"seeds": [3, 4], "steps": 4, "guidance": 1, "size": 32}
    made = sample_ddim(Listening("epsilon"), staged.at, _text(0.0), **options)
    assert told == [(99, [1.0, 2.0]), (74, [1.0, 2.0]), (49, [3.0, 2.0]), (24, [3.0, 2.0])]
    torch.testing.assert_close(made, torch.cat([3 * TARGET, 2 * TARGET]), atol=1e-3, rtol=1e-3)
    same = StagedConditioning(_text(2.0), torch.zeros(2, 3, dtype=torch.long), StageBounds.equal(3, 100))
    plain = sample_ddim(KnowingDenoiser("epsilon"), _text(2.0, 2.0), _text(0.0), **options)
    assert torch.equal(sample_ddim(KnowingDenoiser("epsilon"), same.at, _text(0.0), **options), plain)


def test_a_picture_has_its_own_noise_and_every_step_is_told() -> None:
    told = []
    denoiser = SimpleNamespace(
        device=torch.device("cpu"),
        process=DiscreteProcess(ALPHAS, "epsilon"),
        images=KnowingDenoiser.images,
        network=SimpleNamespace(predict=lambda latents, times, text: NetworkOutput(torch.zeros_like(latents), {}, {})),
    )
    options = {"steps": 3, "guidance": 1, "size": 32}
    both = sample_ddim(
        denoiser, _text(1.0, 1.0), _text(0.0), seeds=[3, 4], on_step=lambda *s: told.append(s), **options
    )
    alone = sample_ddim(denoiser, _text(1.0), _text(0.0), seeds=[4], **options)
    assert torch.equal(both[1:], alone) and not torch.equal(both[0], both[1])
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_times_are_even_and_end_at_zero() -> None:
    process = DiscreteProcess(torch.linspace(0.999, 0.01, 1000), "epsilon")
    assert process.sampling_times(4) == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert len(set(process.sampling_times(1000))) == 1001
    with pytest.raises(BestiaryError, match="0 sampling steps: choose 1 to 1000"):
        process.sampling_times(0)
