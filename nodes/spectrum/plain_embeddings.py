"""Detects ProSpect's own files in models/embeddings, from which ComfyUI silently loads only the embedding of the initial word.

`comfy.sd1_clip.safe_load_embed_zip` takes the last sufficiently long array in such a file, which is that of the initial
word. Nothing is unpickled here: the names of ProSpect's classes are searched as plain bytes in the pickle.
"""

from __future__ import annotations

import functools
import logging
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import folder_paths

logger = logging.getLogger("bestiary")
FOLDER = "embeddings"
_MARKS = (b"ldm.modules.embedding_manager", b"TransformerBlock", b"initial_embeddings")
_ENDINGS = (".pt", ".pth", ".bin")
_LARGEST_PICKLE = 1 << 20
_MENTION = re.compile(r"embedding:([^\s,()<>\[\]:]+)")
_told: set[str] = set()


def misread_embeddings() -> tuple[str, ...]:
    """ProSpect files below models/embeddings."""
    found = []
    for name in folder_paths.get_filename_list(FOLDER):
        path = folder_paths.get_full_path(FOLDER, name)
        if path is None or not name.lower().endswith(_ENDINGS):
            continue
        facts = Path(path).stat()
        if _is_prospect(Path(path), facts.st_mtime_ns, facts.st_size):
            found.append(name)
    return tuple(found)


def misread_notice(names: Sequence[str]) -> str:
    """One-line warning about such files; empty if there are none."""
    if not names:
        return ""
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    stem = Path(names[0]).stem
    return (
        f"models/embeddings contains spectra of ProSpect ({listed}): ComfyUI loads embedding:{stem} as its initial word only. "
        f"Convert it to a spectrum: bestiary import prospect {Path(names[0]).name}"
    )


def warn_of_misread(texts: Iterable[str] | None = None) -> str:
    """The warning about all such files, or only those used in texts by `embedding:`; each file is logged once."""
    names = misread_embeddings()
    if texts is not None:
        named = {_plain(name) for text in texts for name in _MENTION.findall(text)}
        names = tuple(name for name in names if _plain(name) in named)
    if fresh := [name for name in names if name not in _told]:
        _told.update(fresh)
        logger.warning("%s", misread_notice(fresh))
    return misread_notice(names)


def _plain(name: str) -> str:
    """Normalised name for comparison with prompts: lower case, with slashes, without suffix."""
    plain = name.replace("\\", "/").lower()
    return next((plain.removesuffix(ending) for ending in _ENDINGS if plain.endswith(ending)), plain)


@functools.lru_cache(maxsize=65_536)
def _is_prospect(path: Path, changed: int, size: int) -> bool:
    """True for a ProSpect file; cached by modification time and size."""
    try:
        with zipfile.ZipFile(path) as archive:
            (entry,) = (info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
            if entry.file_size > _LARGEST_PICKLE:
                return False
            content = archive.read(entry)
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile):
        # not a torch archive, or one that ComfyUI cannot read either
        return False
    return all(mark in content for mark in _MARKS)
