"""Codebooks in models/bestiary: nothing is overwritten, nothing outside is reached."""

from pathlib import Path

import folder_paths
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.host import concept_folders
from bestiary.nodes.part_map.codebook_files import load_codebook, save_codebook


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/bestiary, known to ComfyUI alone."""
    own = tmp_path / "models" / "bestiary"
    own.mkdir(parents=True)
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "bestiary", ([str(own)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return own


def test_what_is_saved_is_loaded(small_codebook, folder):
    assert save_codebook(small_codebook, "birds") == "birds.parts.safetensors"
    loaded = load_codebook("birds.parts.safetensors")
    assert loaded.name == "birds"
    assert loaded.codebook.part_names == small_codebook.part_names
    assert loaded.codebook.kind_names == small_codebook.kind_names
    assert all(torch.equal(a, b) for a, b in zip(loaded.codebook.fine, small_codebook.fine, strict=True))


def test_taken_names_get_a_number(small_codebook, folder):
    (folder / "birds.parts.safetensors").write_text("mine")
    assert save_codebook(small_codebook, "birds") == "birds_2.parts.safetensors"
    assert save_codebook(small_codebook, "birds.parts.safetensors") == "birds_3.parts.safetensors"
    assert (folder / "birds.parts.safetensors").read_text() == "mine"


def test_sub_folders_are_made(small_codebook, folder):
    assert save_codebook(small_codebook, "garden/birds") == "garden/birds.parts.safetensors"
    assert load_codebook("garden/birds.parts.safetensors").name == "garden/birds"


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "", "  "])
def test_names_stay_inside_the_folder(name, small_codebook, folder):
    with pytest.raises(BestiaryError) as fault:
        save_codebook(small_codebook, name)
    assert str(fault.value) == f"cannot write {name!r}: give a file name inside models/bestiary, such as birds"
    assert list(folder.parent.parent.rglob("*.safetensors")) == []


@pytest.mark.parametrize(
    "name", ["../../evil.parts.safetensors", "/etc/evil.parts.safetensors", "finches.parts.safetensors"]
)
def test_files_that_are_not_listed_are_not_opened(name, small_codebook, folder, monkeypatch):
    save_codebook(small_codebook, "birds")
    monkeypatch.setattr("bestiary.nodes.part_map.codebook_files.PartCodebook.load", pytest.fail)
    with pytest.raises(BestiaryError) as fault:
        load_codebook(name)
    assert str(fault.value) == f"no file {name!r} in models/bestiary; available: 'birds.parts.safetensors'"


def test_a_dictionary_is_no_codebook(small_codebook):
    with pytest.raises(BestiaryError) as fault:
        load_codebook("birds.safetensors")
    assert (
        str(fault.value) == "'birds.safetensors' is not a codebook: choose none yet: save one, or run bestiary discover"
    )
    save_codebook(small_codebook, "birds")
    with pytest.raises(BestiaryError, match="is not a codebook: choose 'birds.parts.safetensors'"):
        load_codebook("birds.safetensors")


def test_a_broken_file_is_named(folder):
    (folder / "torn.parts.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{broken")
    with pytest.raises(BestiaryError, match=r"torn\.parts\.safetensors"):
        load_codebook("torn.parts.safetensors")


def test_files_of_the_folder_are_listed(small_codebook):
    save_codebook(small_codebook, "birds")
    assert concept_folders.concept_names(".parts.safetensors") == ["birds.parts.safetensors"]
