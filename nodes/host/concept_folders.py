"""The folder models/bestiary: registration with ComfyUI, listing, and resolution of names, which must stay inside it."""

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
    """Adds models/bestiary to ComfyUI's folders, with safetensors files only; idempotent.

    Folders of the same name from extra_model_paths.yaml keep precedence.
    """
    own = Path(folder_paths.models_dir) / FOLDER
    own.mkdir(parents=True, exist_ok=True)
    for folder in (own, SHIPPED):
        if str(folder) not in folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))[0]:
            folder_paths.add_model_folder_path(FOLDER, str(folder))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})


def own_folder() -> Path:
    """Folder for new concept files: models/bestiary."""
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
    """Kind of a listed file, such as "part-dictionary"; None for foreign and unreadable files."""
    path = Path(folder_paths.get_full_path(FOLDER, name) or name)
    try:
        facts = path.stat()
    except OSError:
        return None
    return _kind(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=4096)
def _kind(path: Path, changed: int, size: int) -> str | None:
    """Cached by modification time and size, so that each header is read once per change."""
    try:
        return read_header(path).kind
    except BestiaryError:
        return None


def dictionary_names() -> list[str]:
    """Files that may be part dictionaries: all except those with another kind of ours in their header."""
    names = concept_names(without=CODEBOOK_SUFFIX)
    return [name for name in names if kind_of(name) in (DICTIONARY_KIND, None)]


def concept_path(name: str) -> Path:
    """Path of a name listed by `concept_names`.

    Raises:
        BestiaryError: no such file, or a name outside the folders; the message lists the nearest names.
    """
    listed = _listed()
    path = folder_paths.get_full_path(FOLDER, name) if name in listed else None
    if path is None:
        raise BestiaryError(
            f"no file {shown_name(name)} in models/{FOLDER}; available: {choices_text(name, listed) or 'none'}"
        )
    return Path(path)


def new_concept_path(name: str, suffix: str = ".safetensors") -> Path:
    """Path below models/bestiary for a typed name; subfolders are allowed, paths outside the folder are not.

    Subfolders may be separated by slashes or backslashes on every system.

    Raises:
        BestiaryError: the name is empty, absolute, outside models/bestiary, or not valid on every operating system.
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
    # resolve before comparing: `..` and links must not escape from the folder
    path = (root / f"{'/'.join(pieces)}{suffix}").resolve()
    if not path.is_relative_to(root) or path.name == suffix:
        raise _misplaced(name)
    return path


def free_concept_path(name: str, suffix: str = ".safetensors") -> Path:
    """Path of that name, with the next free number if the name is taken, ignoring case; creates its folder.

    Raises:
        BestiaryError: as `new_concept_path`, or the folder cannot be created.
    """
    path = new_concept_path(name, suffix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # file names on Windows and macOS are case-insensitive
        taken = {entry.name.casefold() for entry in path.parent.iterdir()}
    except OSError as fault:
        raise BestiaryError(
            f"cannot write {shown_name(name)} to models/{FOLDER}: {fault.strerror or fault}; check its permissions and free space"
        ) from fault
    number, stem = 1, path.name.removesuffix(suffix)
    while path.name.casefold() in taken:
        number += 1
        path = path.with_name(f"{stem}_{number}{suffix}")
    return path


def save_free(name: str, write: Callable[[Path], object], suffix: str = ".safetensors") -> str:
    """Writes a file under a free name, see `free_concept_path`, and returns its name below models/bestiary.

    Args:
        name: as typed by the user; a number is appended to a taken name.
        write: writes the file to a path.

    Raises:
        BestiaryError: as `free_concept_path`, or raised by `write`.
    """
    path = free_concept_path(name, suffix)
    write(path)
    return path.relative_to(own_folder().resolve()).as_posix()


def _misplaced(name: str) -> BestiaryError:
    return BestiaryError(f"cannot write {shown_name(name)}: give a file name inside models/{FOLDER}, such as birds")


def file_stamp(name: str) -> str:
    """Fingerprint of a file for `fingerprint_inputs`; changes with the file, empty if there is none."""
    path = folder_paths.get_full_path(FOLDER, name) if name else None
    if path is None:
        return ""
    try:
        facts = Path(path).stat()
    except OSError:
        return ""  # deleted since it was listed
    return f"{facts.st_mtime_ns}-{facts.st_size}"
