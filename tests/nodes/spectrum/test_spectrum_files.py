"""Spectra in models/bestiary: listed by what they are, read, described, saved without overwriting."""

from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.concept_file import write_tensors
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.spectrum_file import load_spectrum, save_spectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/bestiary."""
    import folder_paths

    own = tmp_path / "bestiary"
    own.mkdir()
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "bestiary", ([str(own)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("bestiary", None)
    return own


def spectrum(width: int = 32, **fields: object) -> PromptSpectrum:
    rows = torch.randn(10, 1, width, generator=torch.Generator().manual_seed(0))
    return PromptSpectrum("sd15", {"clip_l": rows}, StageBounds.equal(10), **fields)


def test_only_spectra_are_listed_and_checked_names_are_read(folder):
    from bestiary.nodes.spectrum.spectrum_files import check_spectrum_file, read_spectrum, spectrum_names

    save_spectrum(spectrum(), folder / "corgi.safetensors")
    save_spectrum(spectrum(), folder / "dogs" / "old teddy!.safetensors")
    write_tensors(folder / "plain.safetensors", {"clip_l": torch.zeros(1, 32)})
    (folder / "broken.safetensors").write_bytes(b"no such thing")
    assert sorted(spectrum_names()) == ["corgi.safetensors", "dogs/old teddy!.safetensors"]
    assert check_spectrum_file("corgi.safetensors") == folder / "corgi.safetensors"
    named = read_spectrum("dogs/old teddy!.safetensors")
    assert named.name == "old teddy"
    assert torch.equal(named.spectrum.matrix(), spectrum().matrix())
    assert read_spectrum("corgi.safetensors", " my dog ").name == "my dog"


@pytest.mark.parametrize("file", ["../../evil", "plain.safetensors", "corgy.safetensors"])
def test_other_files_are_refused_with_the_choices(folder, file):
    from bestiary.nodes.spectrum.spectrum_files import check_spectrum_file

    save_spectrum(spectrum(), folder / "corgi.safetensors")
    write_tensors(folder / "plain.safetensors", {"clip_l": torch.zeros(1, 32)})
    with pytest.raises(BestiaryError, match=r"no prompt spectrum '.*' in models/bestiary; choose 'corgi.safetensors'"):
        check_spectrum_file(file)


def test_an_empty_folder_says_where_spectra_come_from(folder):
    from bestiary.nodes.spectrum.spectrum_files import check_spectrum_file

    with pytest.raises(BestiaryError, match="none yet: train one with bestiary train spectrum, or import one"):
        check_spectrum_file("corgi.safetensors")


def test_a_name_that_prompts_cannot_hold_is_refused(folder):
    from bestiary.nodes.spectrum.spectrum_files import read_spectrum

    save_spectrum(spectrum(), folder / "corgi.safetensors")
    with pytest.raises(BestiaryError, match="'<corgi>' cannot be used as the name"):
        read_spectrum("corgi.safetensors", "<corgi>")


def test_a_changed_file_is_looked_at_again(folder):
    import os

    from bestiary.nodes.host.concept_folders import kind_of

    path = folder / "thing.safetensors"
    write_tensors(path, {"clip_l": torch.zeros(1, 32)})
    assert kind_of(str(path)) is None
    save_spectrum(spectrum(), path)
    os.utime(path, ns=(1, 1))
    assert kind_of(str(path)) == "prompt-spectrum"
    assert kind_of(str(folder / "gone.safetensors")) is None


def test_saving_never_overwrites(folder):
    from bestiary.nodes.spectrum.spectrum_files import write_spectrum

    assert write_spectrum(spectrum(), "mix") == "mix.safetensors"
    before = (folder / "mix.safetensors").read_bytes()
    assert write_spectrum(spectrum(width=16), "mix.safetensors") == "mix_2.safetensors"
    assert write_spectrum(spectrum(), "new/mix") == "new/mix.safetensors"
    assert (folder / "mix.safetensors").read_bytes() == before
    assert load_spectrum(folder / "mix_2.safetensors").vector_width == 16


@pytest.mark.parametrize("name", ["", "../out", "/tmp/out"])
def test_names_outside_the_folder_are_refused(folder, name):
    from bestiary.nodes.spectrum.spectrum_files import write_spectrum

    with pytest.raises(BestiaryError, match="give a file name inside models/bestiary"):
        write_spectrum(spectrum(), name)
    assert list(folder.iterdir()) == []


def test_a_file_of_another_width_is_refused(sd15_model, sdxl_model):
    from bestiary.nodes.spectrum.spectrum_files import check_spectrum_widths

    check_spectrum_widths("corgi", spectrum(), sd15_model.clip)
    with pytest.raises(BestiaryError) as caught:
        check_spectrum_widths("corgi", spectrum(width=768), sd15_model.clip)
    assert str(caught.value) == (
        "spectrum 'corgi' was trained for sd15 and contains vectors for clip_l (768 wide); the connected CLIP needs clip_l "
        "(32 wide): load a sd15 checkpoint, or a spectrum for this one"
    )
    with pytest.raises(BestiaryError, match=r"needs clip_g \(64 wide\), clip_l \(32 wide\)"):
        check_spectrum_widths("corgi", spectrum(), sdxl_model.clip)


def test_the_description_tells_stages_words_attributes_and_origin():
    from bestiary.nodes.host.socket_types import NamedSpectrum
    from bestiary.nodes.spectrum.spectrum_files import describe_spectrum

    counts = (1, 0, 0, *[1] * 7)
    one = spectrum(initial_words="dog", words={1: "a cat"}, counts=counts, provenance={"steps": 600})
    lines = describe_spectrum(NamedSpectrum("corgi", one)).splitlines()
    assert lines[:4] == [
        "<corgi> for sd15: 10 stages, 1 vector each",
        "initialised from the words: dog",
        "empty at stages 3",
        "stage 2 says: a cat",
    ]
    assert "layout: 0%-10%" in lines
    assert lines[-1] == "steps: 600"
