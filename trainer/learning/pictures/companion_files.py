"""Matches mask, caption and label files to pictures by their relative paths with suffixes.

Candidates for the picture `a/b.jpg`; the first step with a match decides; `E` is any of the requested suffixes:

1. `a/b.jpgE`, such as `a/b.jpg.png` or `a/b.jpg.txt`;
2. for masks `a/b.jpg_maskE`, then `a/b_maskE`;
3. `a/b.jpg` itself, if the folder is not that of the pictures;
4. `a/bE`, such as `a/b.png`;
5. in the folder of the pictures, the picture itself: its transparency may be its mask.

A name without the picture's suffix matches only if no other picture has the stem `a/b`. A file of the same name in
another subfolder never matches.
"""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from ....concepts.errors import BestiaryError
from .image_files import SUFFIXES, walk_files

MASK_MARK = "_mask"
"""Mark between the name of a picture and the suffix of its mask."""


class CompanionFolder:
    """The files of a folder as companions of pictures."""

    def __init__(
        self,
        folder: Path,
        pictures: Sequence[str],
        endings: Iterable[str] = SUFFIXES,
        *,
        called: str = "mask",
        pictures_folder: Path | None = None,
    ) -> None:
        """Scan a folder once.

        Args:
            pictures: all pictures, relative to their folder, with forward slashes; needed to detect ambiguous names.
            endings: suffixes of companions in lower case, with their dot; case is ignored in file names.
            called: word for a companion in messages. Masks may also be named `NAME_mask`.
            pictures_folder: folder of the pictures; None if it is another one.

        Raises:
            BestiaryError: the folder does not exist.
        """
        self.folder, self.called = Path(folder), called
        if not self.folder.is_dir():
            state = "is a file" if self.folder.exists() else "does not exist"
            raise BestiaryError(f"{called} folder {folder} {state}: give the folder that contains the {called}s")
        self._endings = tuple(sorted(endings))
        self._marks = (MASK_MARK,) if called == "mask" else ()
        self._together = pictures_folder is not None and Path(pictures_folder).resolve() == self.folder.resolve()
        # index pictures and files by stem, so that every step is one lookup even for millions of files
        self._pictures: dict[str, list[str]] = {}
        for picture in pictures:
            self._pictures.setdefault(_stem(picture), []).append(picture)
        self._files: dict[str, list[str]] = {}
        for name in walk_files(self.folder):
            if os.path.splitext(name)[1].lower() in self._endings:
                self._files.setdefault(_stem(name), []).append(name)

    def of(self, picture: str) -> Path | None:
        """The companion of a picture given by its relative path; None if it has none.

        Raises:
            BestiaryError: several files match in one step, or one file matches several pictures.
        """
        name = self._chosen(picture)
        return None if name is None else self.folder / name

    def unused(self) -> list[str]:
        """Files that do not belong to any picture, relative to the folder.

        Raises:
            BestiaryError: as `of` for any of the pictures.
        """
        pictures = [picture for alike in self._pictures.values() for picture in alike]
        taken = {self._chosen(picture) for picture in pictures}
        # in a shared folder the pictures themselves must not be reported as unused companions
        known = {_plain(picture) for picture in pictures} if self._together else set()
        files = [name for alike in self._files.values() for name in alike]
        return sorted(name for name in files if name not in taken and _plain(name) not in known)

    def names_for(self, picture: str) -> str:
        """Valid names for the companion of a picture, for messages."""
        ending = ".png" if ".png" in self._endings else self._endings[0]
        stem = os.path.splitext(picture)[0]
        alone = len(self._pictures.get(_stem(picture), ())) < 2
        return f"{picture}{ending} or {stem}{ending}" if alone else f"{picture}{ending}"

    def _chosen(self, picture: str) -> str | None:
        for names, without_ending in self._steps(picture):
            if len(names) > 1:
                raise BestiaryError(
                    f"{' and '.join(sorted(names))} in {self.folder} could both be the {self.called} of {picture}: "
                    "keep one of them"
                )
            if names:
                self._check_alone(picture, names[0], without_ending)
                return names[0]
        return None

    def _steps(self, picture: str) -> list[tuple[list[str], bool]]:
        """Matching files of each step, and whether their names omit the picture's suffix."""
        path, stem = _plain(picture), _stem(picture)
        theirs = {_plain(other) for other in self._pictures.get(stem, ())} - {path}
        alike = self._files.get(stem, [])
        itself = ([name for name in alike if _plain(name) == path], False)
        # a file with the full name of another picture belongs to that picture
        others = ([name for name in alike if _plain(name) not in (path, *theirs)], True)
        marked = [(self._files.get(base + mark, []), base == stem) for mark in self._marks for base in (path, stem)]
        last = [others, itself] if self._together else [itself, others]
        return [(self._files.get(path, []), False), *marked, *last]

    def _check_alone(self, picture: str, name: str, without_ending: bool) -> None:
        alike = self._pictures.get(_stem(picture), [])
        if without_ending and len(alike) > 1:
            raise BestiaryError(
                f"the {self.called} {name} in {self.folder} could belong to {' or to '.join(sorted(alike))}: "
                f"include the picture's suffix in its name, as in {picture}{os.path.splitext(name)[1]}"
            )


def companion_of(
    picture: str, folder: Path, endings: Iterable[str] = SUFFIXES, pictures: Sequence[str] = (), *, called: str = "mask"
) -> Path | None:
    """The companion file of one picture by the rule above; for many pictures use `CompanionFolder`.

    Args:
        picture: relative path with suffix, with forward slashes.
        pictures: all other pictures; needed to detect ambiguous names.

    Raises:
        BestiaryError: no such folder, or the name is ambiguous.
    """
    return CompanionFolder(folder, [picture, *(set(pictures) - {picture})], endings, called=called).of(picture)


def masks_among(names: Sequence[str]) -> set[str]:
    """The pictures of a folder that are masks of others by steps 1 and 2, such as `a_mask.png` beside `a.jpg`."""
    known: dict[str, int] = {}
    for name in names:
        for key in {_plain(name), _stem(name)}:
            known[key] = known.get(key, 0) + 1
    found = set()
    for name in names:
        base = _stem(name)
        marked = base.removesuffix(MASK_MARK)
        # `a.jpg.png` belongs to a.jpg; `a_mask.png` and `a.jpg_mask.png` to any picture named a or a.jpg
        added = os.path.splitext(base)[1].lower() in SUFFIXES and base in known
        if added or (marked != base and marked in known):
            found.add(name)
    return found


def _plain(name: str) -> str:
    """A name in normal form NFC: macOS stores accents as separate characters, other systems do not."""
    return unicodedata.normalize("NFC", name)


def _stem(name: str) -> str:
    return os.path.splitext(_plain(name))[0]
