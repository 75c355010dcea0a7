"""The name of a concept: what prompts call it and what its file is called, the same on the command line and in a graph."""

import re
from pathlib import PurePosixPath

from ..errors import BestiaryError
from ..name_search import shown_name

LONGEST_NAME = 160
"""Bytes of a name in UTF-8: file systems take 255, endings and temporary names need their share."""
RESERVED_NAMES = frozenset(["con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(10))])
"""Names that Windows keeps for devices, whatever ending follows."""

CODEBOOK_SUFFIX = ".parts.safetensors"
"""Ending of the files that hold part codebooks."""

_ENDINGS = (".safetensors", ".spectrum")
_PLAIN = re.compile(r"[^\w .-]+")
_SIGNS = re.compile(r"[\x00-\x1f<>:\"/\\|?*\x7f]")


def name_of_file(file: str) -> str:
    """The name that a file gives its concept: its own without folder and endings, with characters that prompts can hold.

    Dots, spaces and digits stay; `.safetensors` and `.spectrum` are never part of it.
    """
    name = PurePosixPath(str(file).replace("\\", "/")).name
    # "a.spectrum.safetensors" has two endings, "a.v2.safetensors" one
    for ending in _ENDINGS:
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
    # spaces around a sign that cannot be kept go with it
    plain = re.sub(r"[ _]*_[ _]*", "_", _PLAIN.sub("_", name)) if _PLAIN.search(name) else name
    return plain.strip(" _.-") or "dictionary"


def checked_file_name(name: str, called: str = "name") -> str:
    """A name that is the same file on every system, without its ending.

    Args:
        called: what the message calls it, such as `--name`.

    Raises:
        BestiaryError: it is empty, too long, kept by Windows for a device, ends with a dot or a space, or holds signs that
            no file name can.
    """
    size = len(name.encode("utf-8", "surrogatepass"))
    if not name.strip(" ."):
        raise BestiaryError(f"{called} {shown_name(name)} is empty: enter a name such as birds")
    if strange := _SIGNS.search(name):
        raise BestiaryError(
            f"{called} {shown_name(name)} holds {strange[0]!r}, which is not allowed in file names: remove it"
        )
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise BestiaryError(f"{called} {shown_name(name)} is not valid Unicode: type it again")
    if size > LONGEST_NAME:
        raise BestiaryError(
            f"{called} {shown_name(name)} has {size} bytes: at most {LONGEST_NAME} fit into a file name"
        )
    if name.split(".")[0].strip().lower() in RESERVED_NAMES:
        raise BestiaryError(f"{called} {shown_name(name)} is reserved for a device on Windows: add a letter")
    if name[-1] in ". ":
        raise BestiaryError(f"{called} {shown_name(name)} ends with a dot or a space, which Windows removes: remove it")
    return name
