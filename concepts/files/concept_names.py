"""Names of concepts in prompts and of their files, with the same rules on the command line and in a graph."""

import re
from pathlib import PurePosixPath

from ..errors import BestiaryError
from ..name_search import shown_name

LONGEST_NAME = 160
"""Maximum bytes of a name in UTF-8: file systems allow 255, including suffixes and temporary names."""
RESERVED_NAMES = frozenset(["con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(10))])
"""Names that Windows reserves for devices, with any suffix."""

CODEBOOK_SUFFIX = ".parts.safetensors"
"""Suffix of part codebook files."""

_ENDINGS = (".safetensors", ".spectrum")
_PLAIN = re.compile(r"[^\w .-]+")
_SIGNS = re.compile(r"[\x00-\x1f<>:\"/\\|?*\x7f]")


def name_of_file(file: str) -> str:
    """Name of the concept in a file: the file name without folder and suffixes, with characters that prompts allow.

    Dots, spaces and digits are kept; `.safetensors` and `.spectrum` are never part of it.
    """
    name = PurePosixPath(str(file).replace("\\", "/")).name
    # "a.spectrum.safetensors" has two suffixes, "a.v2.safetensors" only one
    for ending in _ENDINGS:
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
    # replace an invalid character together with the spaces around it
    plain = re.sub(r"[ _]*_[ _]*", "_", _PLAIN.sub("_", name)) if _PLAIN.search(name) else name
    return plain.strip(" _.-") or "dictionary"


def checked_file_name(name: str, called: str = "name") -> str:
    """A file name without suffix that is valid on every operating system.

    Args:
        called: word for it in the message, such as `--name`.

    Raises:
        BestiaryError: it is empty, too long, reserved for a device on Windows, ends with a dot or a space, or contains
            characters that are not allowed in file names.
    """
    size = len(name.encode("utf-8", "surrogatepass"))
    if not name.strip(" ."):
        raise BestiaryError(f"{called} {shown_name(name)} is empty: enter a name such as birds")
    if strange := _SIGNS.search(name):
        raise BestiaryError(
            f"{called} {shown_name(name)} contains {strange[0]!r}, which is not allowed in file names: remove it"
        )
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise BestiaryError(f"{called} {shown_name(name)} is not valid Unicode: type it again")
    if size > LONGEST_NAME:
        raise BestiaryError(f"{called} {shown_name(name)} has {size} bytes: use at most {LONGEST_NAME}")
    if name.split(".")[0].strip().lower() in RESERVED_NAMES:
        raise BestiaryError(f"{called} {shown_name(name)} is reserved for a device on Windows: add a letter")
    if name[-1] in ". ":
        raise BestiaryError(f"{called} {shown_name(name)} ends with a dot or a space, which Windows removes: remove it")
    return name
