"""What the browser gets of a spectrum: stages and attributes out of the header, and a clear word where there are none."""

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.concept_file import SPECTRUM_KIND, write_concept_file
from bestiary.concepts.spectrum.spectrum_file import load_spectrum
from bestiary.nodes.host.concept_folders import SHIPPED
from bestiary.nodes.spectrum.spectrum_listing import MOST_PRESETS, list_spectrum

SPECTRA = sorted(SHIPPED.glob("*.spectrum.safetensors"))


@pytest.mark.parametrize("path", SPECTRA, ids=lambda path: path.stem)
def test_stages_and_attributes_are_those_of_the_file(path):
    theirs, ours = load_spectrum(path), list_spectrum(path)
    assert ours["stages"] == theirs.stages and ours["shares"] == list(theirs.bounds.fractions)
    assert ours["presets"] == dict(theirs.presets)


def made(tmp_path, **metadata):
    path = tmp_path / "made.safetensors"
    write_concept_file(path, {}, {"kind": SPECTRUM_KIND, "edges": [1000, 300, 0], **metadata})
    return path


@pytest.mark.parametrize(("given", "listed"), [(3.0, 3.0), (None, None), (0, None), ("3", None), (-1.5, None)])
def test_the_shift_of_a_flow_is_listed_where_it_is_a_number_above_0(tmp_path, given, listed):
    assert list_spectrum(made(tmp_path, shift=given))["shift"] == listed


def test_many_and_long_attributes_are_cut(tmp_path):
    presets = {f"{number}" + "x" * 500: [[0, 0.5]] * 200 for number in range(300)}
    listed = list_spectrum(made(tmp_path, presets=presets))
    assert listed["stages"] == 2 and listed["shares"] == [0, 0.7, 1]
    assert len(listed["presets"]) == MOST_PRESETS
    assert all(len(name) == 80 and len(ranges) == 50 for name, ranges in listed["presets"].items())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"kind": "part-dictionary"}, "made.safetensors is part-dictionary, not a prompt spectrum"),
        ({"edges": "<script>"}, "made.safetensors is damaged: its stages cannot be read"),
        ({"edges": None}, "made.safetensors is damaged: its stages cannot be read"),
        ({"presets": [1]}, "its attribute presets are broken"),
        ({"presets": {"a": [[2, 3]]}}, "its preset 'a' has a range that is not increasing within 0 to 1"),
    ],
)
def test_broken_headers_are_told(tmp_path, metadata, message):
    with pytest.raises(BestiaryError, match=message):
        list_spectrum(made(tmp_path, **metadata))
