"""Part dictionaries between models/bestiary and a graph: loading, applying to MODEL and CLIP, saving."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ...concepts.errors import BestiaryError
from ...concepts.files.concept_names import CODEBOOK_SUFFIX, checked_file_name
from ...concepts.files.concept_names import name_of_file as name_of_file
from ...concepts.name_search import choices_text, shown_name
from ..host.concept_folders import concept_path, dictionary_names, save_free
from ..host.socket_types import NamedDictionary

if TYPE_CHECKING:
    from ...concepts.part_dictionary.part_dictionary import PartDictionary
    from ..host.comfy_objects import Clip, Model

SUFFIX = ".safetensors"
_NAME = re.compile(r"[\w](?:[\w .-]*[\w])?")
"""Names that are valid in prompts without brackets or backslashes."""


def check_dictionary_file(file: str) -> Path:
    """Path of a listed dictionary file, which is not opened.

    Raises:
        BestiaryError: no such file, a name outside the folders, or a codebook.
    """
    if file not in dictionary_names():
        known = choices_text(file, dictionary_names()) or "none yet: put one there, or run bestiary train parts"
        raise BestiaryError(f"no part dictionary {shown_name(file)} in models/bestiary; choose {known}")
    return concept_path(file)


def read_dictionary(file: str, name: str = "") -> NamedDictionary:
    """The dictionary of a listed file with its name for prompts, by default the file name.

    Raises:
        BestiaryError: no such file, not a dictionary, or a name that is not valid in prompts.
    """
    from ...concepts.part_dictionary.part_dictionary import PartDictionary

    path = check_dictionary_file(file)
    return renamed(NamedDictionary(name_of_file(file), PartDictionary.load(path)), name)


def teach(model: Model, clip: Clip, named: NamedDictionary, strength: float) -> tuple[Model, Clip]:
    """Clones of MODEL and CLIP: the CLIP resolves the dictionary's names, the MODEL has its LoRA at this strength.

    Raises:
        BestiaryError: the dictionary was trained for another model, its LoRA matches no layer, or its name is taken.
    """
    from ..denoiser.lora_loading import apply_lora
    from ..denoiser.model_backbone import check_backbone
    from ..part_prompt.taught_clip import with_dictionary

    check_backbone(named.dictionary, named.name, model, clip)
    taught = with_dictionary(clip, named)
    if not named.dictionary.lora:
        return model.clone(), taught
    applied = apply_lora(model, named.dictionary.lora, strength, clip=taught)
    return applied.model, applied.clip or taught


def merge(
    first: NamedDictionary, second: NamedDictionary, strengths: tuple[float, float], name: str
) -> NamedDictionary:
    """Both dictionaries merged, under the given name or both names joined.

    Raises:
        BestiaryError: they are for different models, or the name is not valid in prompts.
    """
    from ...concepts.part_dictionary.dictionary_merge import merge_dictionaries

    merged, _ = merge_dictionaries(first.dictionary, second.dictionary, strengths)
    joined = first.name if first.name == second.name else f"{first.name}_{second.name}"
    return renamed(NamedDictionary(joined, merged), name)


def renamed(named: NamedDictionary, name: str) -> NamedDictionary:
    """The same dictionary under another name; an empty name changes nothing.

    Raises:
        BestiaryError: the name is not valid in prompts.
    """
    return NamedDictionary(prompt_name(name), named.dictionary) if name.strip() else named


def save_dictionary(dictionary: PartDictionary, filename: str) -> str:
    """Writes a dictionary and returns its name below models/bestiary; a number is appended to a taken name.

    Raises:
        BestiaryError: the name is outside models/bestiary, or the file cannot be written.
    """
    # strip ".parts" too: "birds.parts.safetensors" would be listed as a codebook
    name = filename.strip().removesuffix(SUFFIX).removesuffix(CODEBOOK_SUFFIX.removesuffix(SUFFIX))
    return save_free(name, dictionary.save)


def prompt_name(typed: str) -> str:
    """A typed name, if it is valid in prompts.

    Raises:
        BestiaryError: it contains special characters of the prompt syntax.
    """
    # users paste file names: their suffixes are not part of the name
    name = typed.strip().removesuffix(SUFFIX).removesuffix(".spectrum")
    if not _NAME.fullmatch(name):
        raise BestiaryError(
            f"{shown_name(typed)} cannot be used as the name of a dictionary in prompts: use letters, digits, spaces and - _ . between them"
        )
    return checked_file_name(name, "the name")
