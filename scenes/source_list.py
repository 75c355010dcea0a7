"""`sources.toml`: licence and author of the photographs that subjects were cut from.

```toml
[default]
licence = "CC BY 4.0"
author = "Ann"

["cats/tom.jpg"]
licence = "CC0"
```
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ..concepts.errors import BestiaryError
from ..concepts.files.text_file import LARGEST_TOML, parse_toml, read_text
from .subject import PictureSource, Subject

DEFAULT = "default"
"""Table for all files that have none of their own."""


@dataclass(frozen=True)
class SourceTerms:
    """What is known of a file."""

    licence: str = ""
    author: str = ""


def read_sources(path: Path) -> dict[str, SourceTerms]:
    """Terms by file, as the list names them: relative paths or bare names, and `default`.

    Raises:
        BestiaryError: it cannot be read, or a table holds something else than a licence and an author as text.
    """
    try:
        tables = parse_toml(read_text(path, LARGEST_TOML))
        terms = {name: _terms(name, table) for name, table in tables.items()}
    except BestiaryError as fault:
        raise BestiaryError(f"{path}: {fault}") from fault
    return {name.replace("\\", "/"): entry for name, entry in terms.items()}


def with_terms(source: PictureSource, terms: Mapping[str, SourceTerms]) -> PictureSource:
    """The source with its licence and author: those of the longest listed path that its own ends with, else the default's.

    What the source knows already stays.
    """
    parts = PurePosixPath(source.file.replace("\\", "/")).parts
    endings = ("/".join(parts[start:]).lstrip("/") for start in range(len(parts)))
    listed = {name: entry for name, entry in terms.items() if name != DEFAULT}
    own = next((listed[ending] for ending in endings if ending in listed), SourceTerms())
    default = terms.get(DEFAULT, SourceTerms())
    return replace(
        source,
        licence=source.licence or own.licence or default.licence,
        author=source.author or own.author or default.author,
    )


def check_licences(subjects: Sequence[Subject]) -> None:
    """Raises BestiaryError with the files of subjects whose licence is not known."""
    check_terms((subject.name, subject.source) for subject in subjects)


def check_terms(sources: Iterable[tuple[str, PictureSource]]) -> None:
    """Raises BestiaryError with the files whose licence is not known; takes (name of the subject, source)."""
    files = sorted({source.file or name for name, source in sources if not source.licence.strip()})
    if files:
        raise BestiaryError(
            f"no licence is given for {', '.join(files[:5])}{' and others' if len(files) > 5 else ''}: "
            "name it in sources.toml, or leave the files out"
        )


def _terms(name: str, table: object) -> SourceTerms:
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise BestiaryError(f"{name!r} is not a table of texts: write [{name!r}] with licence and author below it")
    if unknown := sorted(table.keys() - {"licence", "author"}):
        raise BestiaryError(f"{unknown[0]!r} of {name!r} is not known: a file has licence and author")
    return SourceTerms(**table)
