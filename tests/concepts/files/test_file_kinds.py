"""Kinds of our files: public for good, and what the shipped files say of themselves."""

from pathlib import Path

from bestiary.concepts.files.concept_file import read_header
from bestiary.concepts.files.file_kinds import CODEBOOK_KIND, CODEBOOK_SUFFIX, DICTIONARY_KIND, SPECTRUM_KIND

SHIPPED = Path(__file__).parents[3] / "demo" / "concepts"


def test_kinds_and_ending_stay_what_files_in_use_say():
    assert (DICTIONARY_KIND, CODEBOOK_KIND, SPECTRUM_KIND) == ("part-dictionary", "parts", "prompt-spectrum")
    assert CODEBOOK_SUFFIX == ".parts.safetensors"


def test_shipped_files_are_of_these_kinds_and_codebooks_end_as_such():
    kinds = {path.name: read_header(path).kind for path in SHIPPED.glob("*.safetensors")}
    assert set(kinds.values()) == {DICTIONARY_KIND, CODEBOOK_KIND, SPECTRUM_KIND}
    assert {name for name, kind in kinds.items() if kind == CODEBOOK_KIND} == {
        name for name in kinds if name.endswith(CODEBOOK_SUFFIX)
    }
