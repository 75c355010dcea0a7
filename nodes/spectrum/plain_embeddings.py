"""ProSpect's own files in models/embeddings: ComfyUI takes the word they were learned from for the embedding, without an error.

`comfy.sd1_clip.safe_load_embed_zip` looks for the last numbers in such a file that are long enough, and these are the initial
word's. Nothing is unpickled here: the names of ProSpect's classes stand in the pickle as plain bytes.
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
    """Files below models/embeddings that are ProSpect's."""
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
    """What people should know about such files, in one line; empty where there are none."""
    if not names:
        return ""
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    stem = Path(names[0]).stem
    return (
        f"models/embeddings holds spectra of ProSpect ({listed}): ComfyUI reads embedding:{stem} as the word it was learned "
        f"from, nothing else. Turn it into a spectrum: bestiary import prospect {Path(names[0]).name}"
    )


def warn_of_misread(texts: Iterable[str] | None = None) -> str:
    """The notice about all such files, or about those that texts name by `embedding:`; each file is logged once."""
    names = misread_embeddings()
    if texts is not None:
        named = {_plain(name) for text in texts for name in _MENTION.findall(text)}
        names = tuple(name for name in names if _plain(name) in named)
    if fresh := [name for name in names if name not in _told]:
        _told.update(fresh)
        logger.warning("%s", misread_notice(fresh))
    return misread_notice(names)


def _plain(name: str) -> str:
    """A name as prompts may write it: folders with slashes, with or without its ending."""
    plain = name.replace("\\", "/").lower()
    return next((plain.removesuffix(ending) for ending in _ENDINGS if plain.endswith(ending)), plain)


@functools.lru_cache(maxsize=65_536)
def _is_prospect(path: Path, changed: int, size: int) -> bool:
    """Each file is looked into once as long as it stays."""
    try:
        with zipfile.ZipFile(path) as archive:
            (entry,) = (info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
            if entry.file_size > _LARGEST_PICKLE:
                return False
            content = archive.read(entry)
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile):
        # no archive of torch, or one that ComfyUI cannot read either
        return False
    return all(mark in content for mark in _MARKS)
