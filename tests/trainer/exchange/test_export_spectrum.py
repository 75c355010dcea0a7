"""Spectra as plain embeddings: loaded as the three programs load them, and equal to what was learned."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bestiary.concepts.files.concept_file import read_tensors
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.trainer.exchange.export_parts import embedding_for_a1111, embedding_for_comfyui
from bestiary.trainer.exchange.export_spectrum import export_spectrum
from bestiary.trainer.exchange.import_spectrum import import_textual_inversion


def _spectrum(backbone: str = "sd15", stages: int = 3, vectors: int = 2, **widths: int) -> PromptSpectrum:
    torch.manual_seed(0)
    widths = widths or {"clip_l": 768}
    tensors = {name: torch.randn(stages, vectors, width) for name, width in widths.items()}
    return PromptSpectrum(backbone, tensors, StageBounds.equal(stages))


@pytest.mark.parametrize(("backbone", "widths"), [("sd15", {"clip_l": 768}), ("sdxl", {"clip_l": 768, "clip_g": 1280})])
def test_mean_and_stages_come_back_in_every_program(tmp_path: Path, backbone: str, widths: dict[str, int]) -> None:
    spectrum = _spectrum(backbone, **widths)
    written = export_spectrum(spectrum, tmp_path, "My Corgi")
    names = [path.name for path in written]
    assert names == ["my-corgi.safetensors", *(f"my-corgi-stage-0{s}.safetensors" for s in (1, 2, 3)), "README.txt"]
    for take in (embedding_for_comfyui, embedding_for_a1111):
        for encoder in widths:
            assert torch.equal(take(read_tensors(written[0]), encoder), spectrum.mean_embedding()[encoder])
            assert torch.equal(take(read_tensors(written[2]), encoder), spectrum.embeddings[encoder][1])


def test_diffusers_loads_the_mean(tmp_path: Path, tiny_folder: Callable) -> None:
    from diffusers import StableDiffusionPipeline

    spectrum = _spectrum(clip_l=32)
    path = export_spectrum(spectrum, tmp_path, "corgi")[0]
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder("sd15"), safety_checker=None)
    pipeline.load_textual_inversion(str(path), token="<corgi>")
    table = pipeline.text_encoder.get_input_embeddings().weight
    ids = pipeline.tokenizer.convert_tokens_to_ids(["<corgi>", "<corgi>_1"])
    assert torch.equal(table[ids], spectrum.mean_embedding()["clip_l"])


def test_import_gives_the_same_vectors_back(tmp_path: Path) -> None:
    spectrum = _spectrum(stages=1)
    written = export_spectrum(spectrum, tmp_path, "corgi")
    assert len(written) == 2  # one stage is its own mean
    assert torch.equal(import_textual_inversion(written[0]).matrix(), spectrum.matrix())


def test_silent_stages_and_words_have_no_file(tmp_path: Path) -> None:
    spectrum = replace(_spectrum(), counts=(2, 0, 1), words={})
    names = [path.stem for path in export_spectrum(spectrum, tmp_path, "x")]
    assert names == ["x", "x-stage-01", "x-stage-03", "README"]
    assert read_tensors(tmp_path / "embeddings" / "x-stage-03.safetensors")["emb_params"].shape == (1, 768)


def test_layers_are_averaged(tmp_path: Path) -> None:
    layered = PromptSpectrum("sd15", {"clip_l": torch.randn(2, 16, 1, 768)}, StageBounds.equal(2))
    written = export_spectrum(layered, tmp_path, "é")
    assert written[0].name == "é.safetensors"
    assert torch.allclose(read_tensors(written[1])["emb_params"], layered.embeddings["clip_l"][0].mean(0))


def test_the_guide_says_how_and_where(tmp_path: Path) -> None:
    guide = export_spectrum(_spectrum(), tmp_path, "corgi")[-1].read_text()
    assert "embedding:corgi" in guide and "Stages begin at these shares of the way: 0, 0.333, 0.666" in guide


@pytest.mark.parametrize(
    ("name", "file"),
    [("corgi.v2", "corgi.v2"), ("Blue Jay_3", "blue-jay-3"), ("\u9ce5", "\u9ce5"), ("con", "con-spectrum")],
)
def test_exports_are_called_as_prompts_call_them(name: str, file: str, tmp_path: Path) -> None:
    assert export_spectrum(_spectrum(), tmp_path, name)[0].name == f"{file}.safetensors"
