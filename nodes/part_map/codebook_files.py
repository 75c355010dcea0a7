"""Codebooks in models/bestiary: loading by name, saving under the next free name."""

from __future__ import annotations

from ...concepts.errors import BestiaryError
from ...concepts.files.concept_names import CODEBOOK_SUFFIX
from ...concepts.name_search import choices_text, shown_name
from ...concepts.part_map.part_codebook import PartCodebook
from ..host.concept_folders import concept_names, concept_path, save_free
from ..host.socket_types import NamedCodebook


def load_codebook(name: str) -> NamedCodebook:
    """The codebook of a listed file.

    Raises:
        BestiaryError: no such file, or not a codebook.
    """
    if not name.endswith(CODEBOOK_SUFFIX):
        known = choices_text(name, concept_names(CODEBOOK_SUFFIX)) or "none yet: save one, or run bestiary discover"
        raise BestiaryError(f"{shown_name(name)} is not a codebook: choose {known}")
    return NamedCodebook(name.removesuffix(CODEBOOK_SUFFIX), PartCodebook.load(concept_path(name)))


def save_codebook(codebook: PartCodebook, filename: str) -> str:
    """Writes a codebook and returns its name below models/bestiary; a number is appended to a taken name.

    Raises:
        BestiaryError: the name is outside models/bestiary, or the file cannot be written.
    """
    return save_free(filename, codebook.save, CODEBOOK_SUFFIX)
