"""Spectra as files: back as they were, plain embeddings to others, broken ones refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.concept_file import SPECTRUM_KIND, read_header, write_concept_file
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.spectrum_file import load_spectrum, save_spectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from safetensors.torch import load_file

Make = Callable[..., PromptSpectrum]


@pytest.mark.parametrize("backbone", ["sd15", "sd2", "sdxl", "bestiary-demo"])
def test_a_spectrum_comes_back_bit_for_bit(make_spectrum: Make, tmp_path: Path, backbone: str) -> None:
    spectrum = make_spectrum(
        0.3, backbone=backbone, initial_words="bird", provenance={"steps": 5}, presets={"pose": ((0.0, 0.25),)}
    )
    spectrum = replace(spectrum, words={3: "a dög"}, counts=(1,) * 9 + (0,))
    save_spectrum(spectrum, tmp_path / "s.safetensors")
    again = load_spectrum(tmp_path / "s.safetensors")
    for name, tensor in spectrum.embeddings.items():
        assert torch.equal(again.embeddings[name], tensor)
        assert torch.equal(again.neutral[name], spectrum.neutral[name])
    assert (again.backbone, again.bounds, again.counts) == (backbone, spectrum.bounds, spectrum.counts)
    assert (again.words, again.initial_words, again.presets) == ({3: "a dög"}, "bird", {"pose": ((0.0, 0.25),)})
    assert again.provenance == {"steps": 5}


def test_layers_and_bypass_come_back(make_spectrum: Make, tmp_path: Path) -> None:
    spectrum = make_spectrum(
        stages=3, layers=4, backbone="bestiary-demo", bounds=StageBounds.from_fractions([0.1, 0.4])
    )
    spectrum = replace(spectrum, bypass={"clip_l": spectrum.embeddings["clip_l"] * 2})
    save_spectrum(spectrum, tmp_path / "s.safetensors")
    again = load_spectrum(tmp_path / "s.safetensors")
    assert again.layers == 4 and again.bounds.edges == (1000, 900, 600, 0)
    assert torch.equal(again.bypass_matrix(), spectrum.bypass_matrix())


def test_the_file_is_a_plain_embedding_to_others(make_spectrum: Make, tmp_path: Path) -> None:
    spectrum = make_spectrum(vectors=2, backbone="sdxl")
    save_spectrum(spectrum, tmp_path / "s.safetensors", "fp32")
    content = load_file(tmp_path / "s.safetensors")
    # ComfyUI picks the tensor named like the text encoder, (V, W)
    assert content["clip_l"].shape == (2, 768) and content["clip_g"].shape == (2, 1280)
    assert torch.allclose(content["clip_g"], spectrum.mean_embedding()["clip_g"])
    # loaders that take whatever comes first get the same
    assert next(iter(read_header(tmp_path / "s.safetensors").entries)) == "clip_g"
    assert read_header(tmp_path / "s.safetensors").kind == SPECTRUM_KIND


def test_a_concept_of_ten_stages_stays_below_100_kb(make_spectrum: Make, tmp_path: Path) -> None:
    for vectors in (1, 2, 3, 4):
        path = tmp_path / f"{vectors}.safetensors"
        save_spectrum(make_spectrum(vectors=vectors), path)
        assert path.stat().st_size <= 100_000
    # half precision only where it is needed
    assert read_header(tmp_path / "1.safetensors").entries["prospect.clip_l"].dtype == "F32"
    assert read_header(tmp_path / "4.safetensors").entries["prospect.clip_l"].dtype == "F16"


def test_values_beyond_half_precision_are_refused(make_spectrum: Make, tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match="clip_l contains values outside the range of half precision"):
        save_spectrum(make_spectrum(1e6), tmp_path / "s.safetensors", "fp16")
    assert not list(tmp_path.iterdir())


def _write(path: Path, **changes: object) -> None:
    tensors = {"clip_l": torch.zeros(1, 768), "prospect.clip_l": torch.zeros(10, 1, 768)}
    metadata = {"kind": SPECTRUM_KIND, "backbone": "sd15", "edges": list(range(1000, -1, -100))}
    tensors |= changes.pop("tensors", {})
    write_concept_file(path, {n: t for n, t in tensors.items() if t is not None}, metadata | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensors": {"prospect.clip_l": None}}, "it lacks prospect.clip_l"),
        ({"edges": [1000, 0]}, r"expected floats \(1, V, W\)"),
        ({"edges": [0, *range(10)]}, r"stage edges \(0, 0, 1.* must decrease"),
        ({"edges": "x"}, "edges is .x., expected a list of 2 to 251 entries"),
        ({"edges": None}, "edges is null, expected a list"),
        ({"words": {"a": "b"}}, "a name in words is .a., expected a number of 0 to 9"),
        ({"words": {"12": "b"}}, "a name in words is .12., expected a number of 0 to 9"),
        ({"presets": {"layout": 3}}, "the preset .layout. is 3, expected a list"),
        ({"shift": 0}, "the shift is 0, expected a number of 1e-06 to 1e.06"),
        ({"shift": "3"}, "the shift is .3., expected a number"),
        ({"backbone": "sd9"}, "unknown backbone 'sd9'"),
        ({"kind": "part-dictionary"}, "is a part-dictionary file, but a prompt-spectrum file is required"),
        ({"tensors": {"prospect.clip_l": torch.full((10, 1, 768), torch.nan)}}, "not finite"),
    ],
)  # fmt: skip
def test_files_that_contradict_themselves(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = tmp_path / "broken.safetensors"
    _write(path, **changes)
    with pytest.raises(BestiaryError, match=message) as raised:
        load_spectrum(path)
    assert str(path) in str(raised.value)


def test_a_cut_file_and_a_missing_one(make_spectrum: Make, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    save_spectrum(make_spectrum(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BestiaryError, match="s.safetensors has a broken header"):
        load_spectrum(path)
    with pytest.raises(BestiaryError, match="could not read"):
        load_spectrum(tmp_path / "none.safetensors")


def test_the_shift_comes_back_and_is_left_out_where_there_is_none(make_spectrum: Make, tmp_path: Path) -> None:
    save_spectrum(make_spectrum(shift=3.16), tmp_path / "flow.safetensors")
    save_spectrum(make_spectrum(), tmp_path / "plain.safetensors")
    assert load_spectrum(tmp_path / "flow.safetensors").shift == 3.16
    assert load_spectrum(tmp_path / "plain.safetensors").shift is None
    assert (
        b"shift" in (tmp_path / "flow.safetensors").read_bytes()
        and b"shift" not in (tmp_path / "plain.safetensors").read_bytes()
    )
    with pytest.raises(BestiaryError, match="shift -1 of a spectrum: a flow model's shift is a finite number above 0"):
        make_spectrum(shift=-1.0)
