"""Part dictionaries between models/bestiary and a graph: read, taught to MODEL and CLIP, saved under a free name."""

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
"""Names that a prompt can hold without brackets or backslashes."""


def check_dictionary_file(file: str) -> Path:
    """Path of a listed dictionary file; nothing is opened.

    Raises:
        BestiaryError: the name leaves the folders, no such file exists, or it is a codebook.
    """
    if file not in dictionary_names():
        known = choices_text(file, dictionary_names()) or "none yet: put one there, or run bestiary train parts"
        raise BestiaryError(f"no part dictionary {shown_name(file)} in models/bestiary; choose {known}")
    return concept_path(file)


def read_dictionary(file: str, name: str = "") -> NamedDictionary:
    """The dictionary of a listed file under a name for prompts; without one, the file's own.

    Raises:
        BestiaryError: there is no such file, it is no dictionary, or the name cannot stand in a prompt.
    """
    from ...concepts.part_dictionary.part_dictionary import PartDictionary

    path = check_dictionary_file(file)
    return renamed(NamedDictionary(name_of_file(file), PartDictionary.load(path)), name)


def teach(model: Model, clip: Clip, named: NamedDictionary, strength: float) -> tuple[Model, Clip]:
    """Clones of MODEL and CLIP: the CLIP understands the dictionary's names, the MODEL has its LoRA at this strength.

    Raises:
        BestiaryError: the dictionary was trained for another model, its LoRA reaches no layer, or its name is taken.
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
    """Both dictionaries in one, under a given name or both names joined.

    Raises:
        BestiaryError: they belong to different models, or the name cannot stand in a prompt.
    """
    from ...concepts.part_dictionary.dictionary_merge import merge_dictionaries

    merged, _ = merge_dictionaries(first.dictionary, second.dictionary, strengths)
    joined = first.name if first.name == second.name else f"{first.name}_{second.name}"
    return renamed(NamedDictionary(joined, merged), name)


def renamed(named: NamedDictionary, name: str) -> NamedDictionary:
    """The same dictionary under another name; an empty one changes nothing.

    Raises:
        BestiaryError: the name cannot stand in a prompt.
    """
    return NamedDictionary(prompt_name(name), named.dictionary) if name.strip() else named


def save_dictionary(dictionary: PartDictionary, filename: str) -> str:
    """Writes a dictionary and returns its name below models/bestiary; a taken name gets a number.

    Raises:
        BestiaryError: the name leaves models/bestiary, or the file cannot be written.
    """
    # "birds.parts" would be listed as a codebook
    name = filename.strip().removesuffix(SUFFIX).removesuffix(CODEBOOK_SUFFIX.removesuffix(SUFFIX))
    return save_free(name, dictionary.save)


def prompt_name(typed: str) -> str:
    """A name as typed, if prompts can hold it.

    Raises:
        BestiaryError: it has characters that mean something else in a prompt.
    """
    # an ending of files is no part of the name
    name = typed.strip().removesuffix(SUFFIX).removesuffix(".spectrum")
    if not _NAME.fullmatch(name):
        raise BestiaryError(
            f"{shown_name(typed)} cannot be used as the name of a dictionary in prompts: use letters, digits, spaces and - _ . between them"
        )
    return checked_file_name(name, "the name")
