"""Staged sampling: equal to an explicit loop over timesteps, to the plain prompt where stages are equal, at the same cost."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import AttentionRequest, Conditioning, PromptPiece
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.concepts.spectrum.staged_conditioning import StagedConditioning, encode_staged
from bestiary.concepts.spectrum.staged_prompt import PromptSources, resolve_staged_prompt
from bestiary.trainer.model.sampling import SAMPLERS, build_sampler, draw_noise, sample_images

SIZE = 64


def _spectrum(denoiser: object, stages: int = 10, seed: int = 0) -> PromptSpectrum:
    torch.manual_seed(seed)
    matrix = torch.randn(stages, 1, denoiser.backbone.vector_width)
    return PromptSpectrum.from_matrix(denoiser.backbone, matrix, StageBounds.equal(stages))


def _staged(denoiser: object, text: str = "a red <x>", **spectra: PromptSpectrum) -> StagedConditioning:
    spectra = spectra or {"x": _spectrum(denoiser)}
    return encode_staged(denoiser, [resolve_staged_prompt(text, PromptSources(spectra))])


def _explicit_loop(
    denoiser: object, spectrum: PromptSpectrum, sampler: str, steps: int, guidance: float
) -> torch.Tensor:
    """Latents of a loop that encodes and chooses the published stage k(t) = int(t S / 1000) at every timestep by itself."""
    tokens = denoiser.text.tokenize([PromptPiece("a red "), PromptPiece(None)])
    batch = denoiser.text.encode([tokens] * spectrum.stages, denoiser.backbone.split_vector(spectrum.matrix()))
    reversed_list = batch.context.flip(0)  # in the order of the published lists
    plain = denoiser.empty_conditioning()
    scheduler = build_sampler(sampler, denoiser.scheduler_config)
    scheduler.set_timesteps(steps)
    latents = draw_noise(denoiser, [3], (SIZE, SIZE)) * float(scheduler.init_noise_sigma)
    for timestep in scheduler.timesteps:
        k = int(int(timestep.round()) * spectrum.stages / 1000)
        both = Conditioning.of(torch.cat([reversed_list[k : k + 1], plain.context]))
        scaled = scheduler.scale_model_input(latents, timestep)
        out = denoiser.network.predict(
            torch.cat([scaled, scaled]), ((timestep.double() + 1) / 1000).expand(2), both
        ).prediction
        positive, negative = out.chunk(2)
        guided = negative + guidance * (positive - negative)
        latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("sampler", SAMPLERS)
@torch.no_grad()
def test_equals_an_explicit_loop_bit_for_bit(tiny_denoiser: Callable, sampler: str) -> None:
    denoiser = tiny_denoiser("sd15")
    spectrum = _spectrum(denoiser)
    theirs = denoiser.images.decode(_explicit_loop(denoiser, spectrum, sampler, 6, 2.0))
    staged = _staged(denoiser, x=spectrum)
    ours = sample_images(denoiser, staged, None, seeds=[3], steps=6, guidance=2.0, size=SIZE, sampler=sampler).images
    assert (ours - theirs).abs().max() == 0


@pytest.mark.parametrize("backbone", ["sd15", "sdxl", "bestiary-demo"])
def test_ten_equal_stages_are_the_plain_prompt(tiny_denoiser: Callable, backbone: str) -> None:
    denoiser = tiny_denoiser(backbone)
    spectrum = _spectrum(denoiser, 1)
    ten = PromptSpectrum.from_matrix(denoiser.backbone, spectrum.matrix().repeat(10, 1, 1), StageBounds.equal(10))
    tokens = denoiser.text.tokenize([PromptPiece("a red "), PromptPiece(None)])
    plain = denoiser.text.encode([tokens], denoiser.backbone.split_vector(spectrum.matrix()))
    choice = {"seeds": [1, 2], "steps": 4, "guidance": 2.0, "size": SIZE}
    theirs = sample_images(denoiser, plain, None, **choice).images
    assert torch.equal(sample_images(denoiser, _staged(denoiser, x=ten), None, **choice).images, theirs)


class _Counted:
    """A denoiser that notes the rows of every evaluation and of every encoding."""

    def __init__(self, denoiser: object) -> None:
        self._denoiser = denoiser
        self.text = SimpleNamespace(tokenize=denoiser.text.tokenize, encode=self._encode)
        self.network = SimpleNamespace(predict=self._predict)
        self.rows: list[int] = []
        self.encoded: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._denoiser, name)

    def _predict(self, latents: torch.Tensor, *others: object, **named: object) -> object:
        self.rows.append(len(latents))
        return self._denoiser.network.predict(latents, *others, **named)

    def _encode(self, prompts: list, vectors: dict | None) -> Conditioning:
        self.encoded.append(len(prompts))
        return self._denoiser.text.encode(prompts, vectors)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_costs_what_one_prompt_costs(tiny_denoiser: Callable, sampler: str, guidance: float) -> None:
    denoiser = _Counted(tiny_denoiser("sd15"))
    choice = {"seeds": [0], "steps": 3, "guidance": guidance, "size": SIZE, "sampler": sampler}
    tokens = denoiser.text.tokenize([PromptPiece("a red bird")])
    sample_images(denoiser, denoiser.text.encode([tokens], None), None, **choice)
    plain, denoiser.rows, denoiser.encoded = denoiser.rows, [], []
    staged = _staged(denoiser)
    assert denoiser.encoded == [10]  # one batch
    sample_images(denoiser, staged, None, **choice)
    assert denoiser.rows == plain
    assert set(plain) == {1 if guidance == 1 else 2}


def test_every_stage_is_told_at_its_own_timesteps_only(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    spectrum = _spectrum(denoiser)
    changed = replace(spectrum, embeddings={"clip_l": spectrum.embeddings["clip_l"].clone()})
    changed.embeddings["clip_l"][9] += 5
    told: list[dict[int, torch.Tensor]] = []
    for one in (spectrum, changed):
        staged = _staged(denoiser, x=one)
        told.append({t: staged.at(torch.tensor(t)).context for t in range(981, 0, -20)})
    differing = [t for t in told[0] if not torch.equal(told[0][t], told[1][t])]
    assert differing == [81, 61, 41, 21, 1]  # the last five of fifty steps


def test_a_batch_of_four_equals_four_pictures(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    staged = _staged(denoiser)
    choice = {"steps": 3, "guidance": 2.0, "size": SIZE}
    together = sample_images(denoiser, staged, None, seeds=[0, 1, 2, 3], **choice).images
    alone = [sample_images(denoiser, staged, None, seeds=[seed], **choice).images for seed in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-4, rtol=0)


def test_pictures_of_one_batch_may_have_prompts_of_their_own(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    sources = PromptSources({"x": _spectrum(denoiser), "y": _spectrum(denoiser, 4, seed=1)})
    prompts = [resolve_staged_prompt(text, sources) for text in ("a <x>", "a <y>", "a bird")]
    choice = {"steps": 3, "guidance": 2.0, "size": SIZE}
    together = sample_images(denoiser, encode_staged(denoiser, prompts), None, seeds=[5, 6, 7], **choice).images
    for row, prompt in enumerate(prompts):
        alone = sample_images(denoiser, encode_staged(denoiser, [prompt]), None, seeds=[5 + row], **choice).images
        torch.testing.assert_close(together[row], alone[0], atol=2e-4, rtol=0)


def test_negatives_may_be_staged_too(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    negative = _staged(denoiser, "[a head:of the:0.5]", x=_spectrum(denoiser))
    choice = {"seeds": [0], "steps": 4, "guidance": 3.0, "size": SIZE}
    staged = sample_images(denoiser, _staged(denoiser), negative, **choice).images
    plain = sample_images(denoiser, _staged(denoiser), None, **choice).images
    assert not torch.equal(staged, plain)
    # a negative that says nothing is the empty one
    empty = sample_images(denoiser, _staged(denoiser), _staged(denoiser, "", x=_spectrum(denoiser)), **choice).images
    assert torch.equal(empty, plain)


def test_faults_are_told(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    staged = _staged(denoiser)
    with pytest.raises(BestiaryError, match="attention maps are made of prompts that say the same at every stage"):
        sample_images(denoiser, staged, None, seeds=[0], attention=AttentionRequest(torch.zeros(1, 1, 1).long()))
    two = replace(staged, rows=staged.rows.expand(2, -1))
    with pytest.raises(BestiaryError, match="2 positive prompts for 3 seeds"):
        sample_images(denoiser, two, None, seeds=[0, 1, 2], size=SIZE)
