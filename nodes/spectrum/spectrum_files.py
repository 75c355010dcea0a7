"""Prompt spectra between models/bestiary and a graph: listing, loading, description, saving."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...concepts.errors import BestiaryError
from ...concepts.files.concept_file import SPECTRUM_KIND
from ...concepts.name_search import choices_text, shown_name
from ...concepts.spectrum.attribute_presets import format_presets, stages_text
from ..host.concept_folders import concept_names, concept_path, kind_of, save_free
from ..host.socket_types import NamedSpectrum
from ..part_dictionary.dictionary_loading import name_of_file, prompt_name

if TYPE_CHECKING:
    from ...concepts.spectrum.prompt_spectrum import PromptSpectrum
    from ..host.comfy_objects import Clip

SUFFIX = ".safetensors"


def spectrum_names() -> list[str]:
    """Names of the prompt spectra in models/bestiary, trained or imported."""
    return [name for name in concept_names(SUFFIX) if kind_of(name) == SPECTRUM_KIND]


def check_spectrum_file(file: str) -> Path:
    """Path of a listed spectrum file, which is not loaded.

    Raises:
        BestiaryError: no such file, a name outside the folders, or a file of another kind.
    """
    from .plain_embeddings import warn_of_misread

    listed = spectrum_names()
    if file not in listed:
        known = choices_text(file, listed) or (
            "none yet: train one with bestiary train spectrum, or import one with bestiary import "
            "prospect, xti, neti or textual-inversion"
        )
        notice = warn_of_misread()
        raise BestiaryError(
            f"no prompt spectrum {shown_name(file)} in models/bestiary; choose {known}"
            + (f". {notice}" if notice else "")
        )
    return concept_path(file)


def read_spectrum(file: str, name: str = "") -> NamedSpectrum:
    """The spectrum of a listed file with its name for prompts, by default the file name.

    Raises:
        BestiaryError: no such file, a damaged file, or a name that is not valid in prompts.
    """
    from ...concepts.spectrum.spectrum_file import load_spectrum

    path = check_spectrum_file(file)
    return NamedSpectrum(prompt_name(name) if name.strip() else name_of_file(file), load_spectrum(path))


def write_spectrum(spectrum: PromptSpectrum, filename: str) -> str:
    """Writes a spectrum and returns its name below models/bestiary; a number is appended to a taken name.

    Raises:
        BestiaryError: the name is outside models/bestiary, or the file cannot be written.
    """
    from ...concepts.spectrum.spectrum_file import save_spectrum

    # the file name is the name in prompts, so strip ".spectrum" as on the command line
    name = filename.strip().removesuffix(SUFFIX).removesuffix(".spectrum")
    return save_free(name, lambda path: save_spectrum(spectrum, path))


def check_spectrum_widths(name: str, spectrum: PromptSpectrum, clip: Clip) -> None:
    """Rejects vectors that ComfyUI would silently ignore.

    Raises:
        BestiaryError: the CLIP has other text encoders, or their widths differ.
    """
    from ..denoiser.model_backbone import check_family, check_insertion, missing_encoders, text_widths

    ours = {encoder: tensor.shape[-1] for encoder, tensor in spectrum.embeddings.items()}
    held = text_widths(clip)
    check_family("spectrum", name, spectrum.backbone, clip)
    check_insertion("spectrum", name, spectrum.insertion)
    # SD3 runs without some of its encoders: their vectors are then left out
    missing = missing_encoders(clip)
    ours = {encoder: width for encoder, width in ours.items() if encoder not in missing}
    if ours != held:
        raise BestiaryError(
            f"spectrum {shown_name(name)} was trained for {spectrum.backbone} and contains vectors for {_listed(ours)}; the "
            f"connected CLIP needs {_listed(held)}: load a {spectrum.backbone} checkpoint, or a spectrum for this one"
        )


def describe_spectrum(named: NamedSpectrum) -> str:
    """Text about a spectrum: stages, vectors, words, presets, provenance; and a warning about misread embeddings."""
    from .plain_embeddings import warn_of_misread

    spectrum = named.spectrum
    layers = f", {spectrum.layers} cross-attention layers" if spectrum.layers else ""
    plural = "vectors" if spectrum.vectors > 1 else "vector"
    lines = [
        f"<{named.name}> for {spectrum.backbone}: {spectrum.stages} stages, {spectrum.vectors} {plural} each{layers}",
        f"initialised from the words: {spectrum.initial_words or 'unknown'}",
    ]
    silent = tuple(s for s in range(spectrum.stages) if not spectrum.count(s) and s not in spectrum.words)
    if silent:
        lines.append(f"empty at stages {stages_text(silent)}")
    # stages count from 0 in the file, from 1 for users
    lines += [f"stage {stage + 1} says: {text or 'nothing'}" for stage, text in sorted(spectrum.words.items())]
    lines += ["", "attributes:", format_presets(spectrum.presets)]
    facts = [f"{key}: {value}" for key, value in spectrum.provenance.items()]
    notice = warn_of_misread()
    return "\n".join([*lines, *(["", *facts] if facts else []), *(["", notice] if notice else [])])


def _listed(widths: dict[str, int]) -> str:
    return ", ".join(f"{name} ({width} wide)" for name, width in sorted(widths.items())) or "no text encoder"
