"""The folder models/bestiary: registered with ComfyUI, listed, and names resolved inside it and nowhere else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

import folder_paths

from ...concepts.errors import BestiaryError
from ...concepts.files.concept_file import DICTIONARY_KIND, read_header
from ...concepts.files.concept_names import CODEBOOK_SUFFIX, checked_file_name
from ...concepts.files.pack import ROOT
from ...concepts.name_search import choices_text, shown_name

FOLDER = "bestiary"
SEGMENTATION = "segmentation"
"""Folder below models/bestiary with weights of IS-Net."""
SHIPPED = ROOT / "demo" / "concepts"
"""Concept files of the embedded model, listed after the user's own."""


def register_folder() -> None:
    """Adds models/bestiary to ComfyUI's folders, with safetensors files only; called again it changes nothing.

    Folders that extra_model_paths.yaml gave under the same name stay first.
    """
    own = Path(folder_paths.models_dir) / FOLDER
    own.mkdir(parents=True, exist_ok=True)
    for folder in (own, SHIPPED):
        if str(folder) not in folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))[0]:
            folder_paths.add_model_folder_path(FOLDER, str(folder))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})


def own_folder() -> Path:
    """Where new concept files are written: models/bestiary."""
    return Path(folder_paths.models_dir) / FOLDER


def _listed() -> list[str]:
    if FOLDER not in folder_paths.folder_names_and_paths:
        register_folder()
    return folder_paths.get_filename_list(FOLDER)


def concept_names(suffix: str = ".safetensors", without: str | None = None) -> list[str]:
    """Names of the files whose name ends with `suffix` but not with `without`, relative to their folder."""
    # weights that cut pictures out lie in a folder of their own
    names = [name for name in _listed() if not name.replace("\\", "/").startswith(f"{SEGMENTATION}/")]
    return [name for name in names if name.endswith(suffix) and not (without and name.endswith(without))]


def kind_of(name: str) -> str | None:
    """What a listed file says it is, such as "part-dictionary"; None for files of others and unreadable ones."""
    path = Path(folder_paths.get_full_path(FOLDER, name) or name)
    try:
        facts = path.stat()
    except OSError:
        return None
    return _kind(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=4096)
def _kind(path: Path, changed: int, size: int) -> str | None:
    """The header is read once as long as the file stays."""
    try:
        return read_header(path).kind
    except BestiaryError:
        return None


def dictionary_names() -> list[str]:
    """Files that may be part dictionaries: not those that say they are something else of ours."""
    names = concept_names(without=CODEBOOK_SUFFIX)
    return [name for name in names if kind_of(name) in (DICTIONARY_KIND, None)]


def concept_path(name: str) -> Path:
    """File of a name as listed by `concept_names`.

    Raises:
        BestiaryError: the name leaves the folders or no such file exists; the message lists the nearest names.
    """
    listed = _listed()
    path = folder_paths.get_full_path(FOLDER, name) if name in listed else None
    if path is None:
        raise BestiaryError(
            f"no file {shown_name(name)} in models/{FOLDER}; available: {choices_text(name, listed) or 'none'}"
        )
    return Path(path)


def new_concept_path(name: str, suffix: str = ".safetensors") -> Path:
    """File under models/bestiary for a name that a user typed; sub-folders are allowed, leaving the folder is not.

    Sub-folders are written with slashes or backslashes, on every system.

    Raises:
        BestiaryError: the name is empty, absolute, leads out of models/bestiary, or is no file name on every system.
    """
    stem = (
        name.replace("\\", "/").strip().removesuffix(".safetensors").removesuffix(suffix.removesuffix(".safetensors"))
    )
    root = own_folder().resolve()
    if not stem.strip("./ ") or stem.startswith("/") or stem.endswith("/") or PureWindowsPath(stem).drive:
        raise _misplaced(name)
    pieces = [piece for piece in stem.split("/") if piece not in ("", ".")]
    for piece in pieces:
        if piece != "..":
            checked_file_name(piece, "the file name" if piece is pieces[-1] else "the folder")
    path = (root / f"{'/'.join(pieces)}{suffix}").resolve()
    if not path.is_relative_to(root) or path.name == suffix:
        raise _misplaced(name)
    return path


def free_concept_path(name: str, suffix: str = ".safetensors") -> Path:
    """File of that name, or with the next free number where it or one that systems take for the same is there.

    The folder it lies in is made.

    Raises:
        BestiaryError: as `new_concept_path`, or the folder cannot be made.
    """
    path = new_concept_path(name, suffix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Windows and macOS know no capital letters
        taken = {entry.name.casefold() for entry in path.parent.iterdir()}
    except OSError as fault:
        raise BestiaryError(
            f"cannot write {shown_name(name)} into models/{FOLDER}: {fault.strerror or fault}"
        ) from fault
    number, stem = 1, path.name.removesuffix(suffix)
    while path.name.casefold() in taken:
        number += 1
        path = path.with_name(f"{stem}_{number}{suffix}")
    return path


def save_free(name: str, write: Callable[[Path], object], suffix: str = ".safetensors") -> str:
    """Writes a file under a free name, as `free_concept_path`, and returns its name below models/bestiary.

    Args:
        name: as a user typed it; a taken name gets a number.
        write: makes the file at a path.

    Raises:
        BestiaryError: as `free_concept_path`, or `write` refuses.
    """
    path = free_concept_path(name, suffix)
    write(path)
    return path.relative_to(own_folder().resolve()).as_posix()


def _misplaced(name: str) -> BestiaryError:
    return BestiaryError(f"cannot write {shown_name(name)}: give a file name inside models/{FOLDER}, such as birds")


def file_stamp(name: str) -> str:
    """What `fingerprint_inputs` returns for a file: changes when the file does; empty where there is none."""
    path = folder_paths.get_full_path(FOLDER, name) if name else None
    if path is None:
        return ""
    try:
        facts = Path(path).stat()
    except OSError:
        return ""  # it went meanwhile
    return f"{facts.st_mtime_ns}-{facts.st_size}"
