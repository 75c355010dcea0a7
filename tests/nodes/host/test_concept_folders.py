"""Where files of a graph go: names as typed, sub-folders on every system, never over another file."""

import pytest
from bestiary.concepts.errors import BestiaryError

pytestmark = pytest.mark.comfyui


@pytest.fixture
def own(tmp_path, monkeypatch):
    from bestiary.nodes.host import concept_folders

    monkeypatch.setattr(concept_folders, "own_folder", lambda: tmp_path)
    return tmp_path


def test_sub_folders_are_written_either_way(own):
    from bestiary.nodes.host.concept_folders import new_concept_path

    for name in ("garden/birds", "garden\\birds", "garden\\birds.safetensors", "./garden//birds", " garden/birds "):
        assert new_concept_path(name) == own / "garden" / "birds.safetensors"
    for name in ("corgi.v2", "blue jay", "2024", "1.5"):
        assert new_concept_path(name).name == f"{name}.safetensors"


@pytest.mark.parametrize("name", ["../birds", "..\\birds", "a\\..\\..\\b", "/birds", "C:\\birds", "", "\\", "garden\\"])
def test_no_name_leads_out_of_the_folder(own, name):
    from bestiary.nodes.host.concept_folders import new_concept_path

    with pytest.raises(BestiaryError, match="cannot write .*: give a file name inside models/bestiary"):
        new_concept_path(name)


@pytest.mark.parametrize("name", ["con", "garden/NUL.v2", "aux/birds", "birds.", "a?", "x" * 300])
def test_names_that_some_system_refuses(own, name):
    from bestiary.nodes.host.concept_folders import new_concept_path

    with pytest.raises(BestiaryError, match="^the (file name|folder) '"):
        new_concept_path(name)


def test_nothing_is_replaced_on_systems_without_capital_letters(own):
    from bestiary.nodes.host.concept_folders import free_concept_path

    (own / "Birds.safetensors").touch()
    assert free_concept_path("birds").name == "birds_2.safetensors"
    assert free_concept_path("deep\\birds") == own / "deep" / "birds.safetensors" and (own / "deep").is_dir()


def test_weights_that_cut_out_are_no_concept_files(monkeypatch):
    from bestiary.nodes.host import concept_folders

    listed = ["birds.safetensors", "segmentation/isnet.safetensors", "segmentation\\isnet.safetensors"]
    monkeypatch.setattr(concept_folders, "_listed", lambda: listed)
    assert concept_folders.concept_names() == ["birds.safetensors"]
