"""Encoding staged prompts: one batch of distinct contents, and the right row at every timestep."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from bestiary.concepts.denoiser.backbone import Backbone, get_backbone
from bestiary.concepts.denoiser.denoiser import Conditioning, EncoderLayout, PromptLayout, PromptPiece
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.staged_conditioning import encode_staged
from bestiary.concepts.spectrum.staged_prompt import PromptSources, StagedPrompt, resolve_staged_prompt

Make = Callable[..., PromptSpectrum]


@dataclass
class CountingDenoiser:
    """Encodes a prompt as the sum of its vectors and notes the size of every batch."""

    backbone: Backbone = field(default_factory=lambda: get_backbone("sd15"))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batches: list[int] = field(default_factory=list)

    @property
    def text(self) -> "CountingDenoiser":
        """Its own text side."""
        return self

    def tokenize(self, pieces: Sequence[PromptPiece], chunks: int | None = None) -> PromptLayout:
        """Places only."""
        count = sum(piece.text is None for piece in pieces)
        return {"clip_l": EncoderLayout(torch.zeros(1, 77).long(), torch.arange(count), torch.ones(1, 77))}

    def encode(self, prompts: Sequence[PromptLayout], vectors: dict[str, torch.Tensor] | None) -> Conditioning:
        """`(B, 1, D)`."""
        self.batches.append(len(prompts))
        rows = torch.zeros(len(prompts), 1, 768) if vectors is None else vectors["clip_l"].sum(1, keepdim=True)
        return Conditioning.of(rows, pooled=rows[:, 0, :4])


def _staged(text: str, **spectra: PromptSpectrum) -> StagedPrompt:
    return resolve_staged_prompt(text, PromptSources(spectra))


def test_ten_stages_are_one_batch_of_ten(make_spectrum: Make) -> None:
    denoiser, corgi = CountingDenoiser(), make_spectrum()
    staged = encode_staged(denoiser, [_staged("a <corgi>", corgi=corgi)])
    assert denoiser.batches == [10] and len(staged) == 1
    for timestep in range(1000):
        stage = 9 - int(timestep * 10 / 1000)
        text = staged.at((timestep + 1) / 1000)
        assert torch.equal(text.context[:, 0], corgi.matrix()[stage]) and text.pooled.shape == (1, 4)


def test_what_pictures_share_is_encoded_once(make_spectrum: Make) -> None:
    denoiser, a = CountingDenoiser(), make_spectrum()
    b = replace(a, embeddings={"clip_l": a.embeddings["clip_l"].clone()})
    b.embeddings["clip_l"][4] += 1
    staged = encode_staged(denoiser, [_staged("a <x>", x=a), _staged("a <x>", x=b), _staged("a dog")])
    assert denoiser.batches == [12] and staged.rows.shape == (3, 10)
    assert (staged.rows[0] != staged.rows[1]).nonzero().flatten().tolist() == [4]
    assert staged.rows[2].unique().numel() == 1
    assert torch.equal(staged.pictures(slice(1, 2)).at(0.561).context[0], b.matrix()[4])


def test_equal_stages_cost_one_encode(make_spectrum: Make) -> None:
    denoiser = CountingDenoiser()
    same = replace(make_spectrum(), embeddings={"clip_l": torch.ones(10, 1, 768)})
    encode_staged(denoiser, [_staged("a <x>", x=same)])
    assert denoiser.batches == [1]


def test_changing_one_stage_encodes_one_more(make_spectrum: Make) -> None:
    prompt = _staged("a <x>", x=make_spectrum())
    changed = resolve_staged_prompt("a <x>", PromptSources({"x": make_spectrum()}), overrides={6: "a dog"})
    known = {stage.key for stage in prompt.stages}
    assert sum(stage.key not in known for stage in changed.stages) == 1


def test_layers_need_the_patched_model(make_spectrum: Make) -> None:
    with pytest.raises(
        BestiaryError, match="vectors per cross-attention layer .* which only the ComfyUI nodes can apply"
    ):
        encode_staged(CountingDenoiser(), [_staged("a <x>", x=make_spectrum(layers=16))])
