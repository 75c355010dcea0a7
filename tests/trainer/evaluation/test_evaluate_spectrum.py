"""Judging spectra: equal stages are their own mean, the same seed gives the same figures, odd files are refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.spectrum_file import save_spectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.trainer.evaluation.evaluate_spectrum import EvaluateSpectrumSettings, evaluate_spectrum
from PIL import Image


@pytest.fixture
def evaluate(tiny_folder: Callable, tmp_path: Path) -> Callable[..., dict]:
    """`evaluate(spectrum, **settings)` -> the record that was written."""
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64)).save(tmp_path / "a.png")

    def run(spectrum: PromptSpectrum, **settings: object) -> dict:
        save_spectrum(spectrum, tmp_path / "x.safetensors", "fp32")
        values = {
            "spectrum": tmp_path / "x.safetensors",
            "images": tmp_path / "a.png",
            "out": tmp_path / "out",
            "count": 2,
        }
        values |= {"base": str(tiny_folder("bestiary-demo")), "device": "cpu", "dtype": "fp32"}
        page = evaluate_spectrum(EvaluateSpectrumSettings(**{**values, **settings}))
        assert page == tmp_path / "out" / "index.html" and "By stage" in page.read_text()
        return json.loads((tmp_path / "out" / "evaluation.json").read_text())

    return run


def _spectrum(matrix: torch.Tensor) -> PromptSpectrum:
    bounds = StageBounds.equal(len(matrix))
    return PromptSpectrum("bestiary-demo", {"clip_l": matrix}, bounds, neutral={"clip_l": torch.ones(1, 32)})


def test_equal_stages_are_their_mean_and_their_shuffle(evaluate: Callable) -> None:
    torch.manual_seed(0)
    record = evaluate(_spectrum(torch.randn(1, 1, 32).expand(3, 1, 32).contiguous()))
    losses = record["noise_loss"]
    assert losses["spectrum"] == pytest.approx(losses["mean"], abs=1e-4)
    assert losses["spectrum"] == losses["shuffled"] != losses["words"]
    assert record["mean"]["spectrum"] == pytest.approx(sum(losses["spectrum"]) / 3)


def test_the_same_seed_gives_the_same_figures(evaluate: Callable) -> None:
    torch.manual_seed(0)
    spectrum = _spectrum(torch.randn(2, 1, 32))
    first, again, other = evaluate(spectrum), evaluate(spectrum), evaluate(spectrum, seed=5)
    assert first == again and first["noise_loss"] != other["noise_loss"]
    assert first["pictures"] == ["a.png"] and first["seed"] == 0


def test_words_that_this_model_does_not_know_do_no_harm(evaluate: Callable) -> None:
    """They are told for people; nothing starts from them here."""
    matrix = torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(0))
    learned = PromptSpectrum("bestiary-demo", {"clip_l": matrix}, StageBounds.equal(1), initial_words="zebra")
    assert set(evaluate(learned, base="demo", count=1, size=64)["noise_loss"]) == {"spectrum", "mean", "shuffled"}


def test_spectra_that_were_changed_are_refused(evaluate: Callable) -> None:
    with pytest.raises(BestiaryError, match="has vectors per layer, words or silent stages"):
        evaluate(replace(_spectrum(torch.randn(2, 1, 32)), words={0: "bird"}))
    with pytest.raises(BestiaryError, match="no picture and no folder"):
        evaluate(_spectrum(torch.randn(2, 1, 32)), images=Path("nowhere.png"))


def test_with_a_clip_model_pictures_are_judged_too(evaluate: Callable, tiny_clip: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    spectrum, drawn = _spectrum(torch.randn(2, 1, 32)), {"pictures": 2, "steps": 2, "size": 64, "clip": str(tiny_clip)}
    record = evaluate(spectrum, prompts=("a photo of a <x>", "a red <x>"), **drawn)
    clip = record["clip"]
    assert clip["seeds"] == [0, 1] and clip["steps"] == 2 and clip["model"] == str(tiny_clip)
    assert [one["text"] for one in clip["prompts"]] == ["a photo of a", "a red"]
    assert len(clip["clip_i_stages"]) == 2 and -1 <= clip["clip_t"] <= 1 and clip["clip_i_given"] is None
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Likeness" in page and "stage 2 alone" in page and page.count("data:image") == 4
    assert evaluate(spectrum, prompts=("a photo of a <x>", "a red <x>"), **drawn) == record
    assert "clip" not in evaluate(spectrum)


def test_faults_of_the_judging_cost_nothing(evaluate: Callable, tiny_clip: Path, tmp_path: Path) -> None:
    spectrum = _spectrum(torch.randn(2, 1, 32))
    with pytest.raises(ValueError, match="prompts are judged by CLIP: give --clip a model too"):
        evaluate(spectrum, prompts=("a <x>",))
    with pytest.raises(BestiaryError, match="the prompt 'a bird' does not name the spectrum: write <x> where"):
        evaluate(spectrum, prompts=("a bird",), clip=str(tiny_clip))
    with pytest.raises(BestiaryError, match="no CLIP model 'nowhere'"):
        evaluate(spectrum, clip="nowhere")
    assert not (tmp_path / "out").exists()
