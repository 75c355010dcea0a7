"""Menus of files that take a linked text, and nothing else that the node does not take."""

import pytest
from bestiary.concepts.errors import BestiaryError


def _no_file(name: str) -> None:
    raise BestiaryError(f"no file {name}")


@pytest.mark.parametrize("kind", ["STRING", "COMBO"])
def test_a_linked_name_is_looked_at_later(kind: str) -> None:
    from bestiary.nodes.host.file_menus import check_file_input
    from bestiary.nodes.spectrum.prompt_spectrum_nodes import BestiaryLoadSpectrum

    assert check_file_input(BestiaryLoadSpectrum, None, {"file": kind}, _no_file) is True


def test_a_name_of_the_menu_is_looked_at_now() -> None:
    from bestiary.nodes.host.file_menus import check_file_input
    from bestiary.nodes.spectrum.prompt_spectrum_nodes import BestiaryLoadSpectrum

    assert check_file_input(BestiaryLoadSpectrum, "a", {}, _no_file) == "no file a"
    assert check_file_input(BestiaryLoadSpectrum, "a", {}, str) is True


def test_all_other_links_are_what_the_node_takes() -> None:
    from bestiary.nodes.host.file_menus import check_file_input
    from bestiary.nodes.part_dictionary.part_dictionary_nodes import BestiaryLoadDictionary

    links = {"model": "MODEL", "clip": "CLIP", "file": "STRING"}
    assert check_file_input(BestiaryLoadDictionary, None, links, _no_file) is True
    wrong = check_file_input(BestiaryLoadDictionary, None, {**links, "clip": "MODEL"}, _no_file)
    assert wrong == "clip, received_type(MODEL) mismatch input_type(CLIP)"
    wrong = check_file_input(BestiaryLoadDictionary, None, {**links, "file": "IMAGE"}, _no_file)
    assert wrong == "file, received_type(IMAGE) mismatch input_type(COMBO,STRING)"
