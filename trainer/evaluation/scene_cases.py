"""Pictures of several subjects from a folder: the prompt of each, and the subjects that it asks for.

A prompt is, in this order: the `text` of metadata.jsonl, a .txt file of the picture's name, or what `bestiary compose` and other programs
write into a PNG. Subjects are listed in metadata.jsonl, or are those that the prompt names.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...concepts.errors import BestiaryError
from ...concepts.files.text_file import read_text
from ...scenes.import_gen4gen import object_words
from ..learning.pictures.image_files import read_image, scan_images
from .drawn_judge import species_named
from .scene_judges import KnownSubject

LISTING = "metadata.jsonl"
_TOKEN = re.compile(r"<[^<>]*>")
_REFERENCES = 16


@dataclass(frozen=True)
class SceneCase:
    """A picture and what it should show."""

    path: Path
    prompt: str
    """In plain words, without tokens."""
    subjects: tuple[KnownSubject, ...]


def known_subjects(folder: Path | None, drawn: Sequence[str], words: Mapping[str, str]) -> list[KnownSubject]:
    """Subjects from a folder with a subfolder of pictures for each, and species of the drawn world.

    Args:
        words: class of a subject by its name; others are called as their folder.

    Raises:
        BestiaryError: no subfolders, one without pictures, an unknown species, or words for a subject that is not there.
    """
    found = {name: KnownSubject(name, name, (), species_named(name)) for name in drawn}
    places = [] if folder is None else [path for path in sorted(folder.iterdir()) if path.is_dir()]
    places = [path for path in places if not path.name.startswith(".")]
    if folder is not None and not places:
        raise BestiaryError(f"{folder} has no subfolders: put pictures of each subject into a subfolder named after it")
    for place in places:
        scan = scan_images(place)
        if not scan.names:
            raise BestiaryError(f"{place} holds no readable picture of its subject")
        pictures = tuple(read_image(place / name) for name in scan.names[:_REFERENCES])
        found[place.name] = KnownSubject(place.name, words.get(place.name, object_words(place.name)), pictures)
    if strange := sorted(set(words) - found.keys()):
        raise BestiaryError(f"words for {strange[0]!r}, which is not a subject: the subjects are {', '.join(found)}")
    return list(found.values())


def read_cases(folder: Path, subjects: Sequence[KnownSubject]) -> list[SceneCase]:
    """The pictures of a folder that ask for any of the subjects, sorted by path.

    Raises:
        BestiaryError: no pictures, a listing that cannot be read, or no picture that asks for a subject.
    """
    listed = _listed(folder)
    scan = scan_images(folder)
    names = [name for name in scan.names if name in listed] if listed else scan.names
    if not names:
        raise BestiaryError(f"{folder} holds no readable pictures{' of ' + LISTING if listed else ''}")
    cases = []
    for name in names:
        row = listed.get(name, {})
        prompt = str(row.get("text") or _prompt_beside(folder / name))
        asked = _asked(row, prompt, subjects, f"{folder / LISTING}: {name}")
        if asked:
            cases.append(SceneCase(folder / name, " ".join(_TOKEN.sub(" ", prompt).split()), asked))
    if not cases:
        raise BestiaryError(
            f"no picture of {folder} asks for {', '.join(one.name for one in subjects)}: name subjects in the prompts (a .txt beside each "
            f'picture), or list them in {LISTING}, as in {{"file_name": "{names[0]}", "text": "...", "subjects": ["{subjects[0].name}"]}}'
        )
    return cases


def _listed(folder: Path) -> dict[str, Mapping[str, object]]:
    """Rows of metadata.jsonl by the picture's path within the folder."""
    path = folder / LISTING
    if not path.is_file():
        return {}
    try:
        rows = [json.loads(line) for line in read_text(path).splitlines() if line.strip()]
        return {str(row["file_name"]): row for row in rows}
    except (ValueError, KeyError, TypeError) as fault:
        raise BestiaryError(f'{path} cannot be read ({fault!r}): each line is an object with "file_name"') from fault


def _asked(
    row: Mapping[str, object], prompt: str, subjects: Sequence[KnownSubject], where: str
) -> tuple[KnownSubject, ...]:
    """The subjects of a row, by name, or those whose name or words the prompt says."""
    objects = row.get("objects")
    named = row.get("subjects", objects.get("id") if isinstance(objects, Mapping) else None)
    if named is None:
        return tuple(one for one in subjects if _says(prompt, one.name) or _says(prompt, one.words))
    known = {one.name: one for one in subjects}
    listed = [str(name) for name in (named if isinstance(named, list) else [named])]
    if strange := [name for name in listed if name not in known]:
        raise BestiaryError(f"{where}: subject {strange[0]!r} is not one of {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(listed))


def _says(prompt: str, words: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(words)}(?!\w)", prompt, re.IGNORECASE))


def _prompt_beside(path: Path) -> str:
    """What a picture was made of, or nothing."""
    text = path.with_suffix(".txt")
    if text.is_file():
        return read_text(text).partition("\n")[0].strip()
    with Image.open(path) as picture:
        written = dict(picture.info)
    try:
        return str(json.loads(str(written["bestiary"]))["prompt"])
    except (KeyError, ValueError, TypeError):
        # prompt, then perhaps a negative one, then settings
        return re.split(r"\nNegative prompt: |\nSteps: ", str(written.get("parameters", "")))[0].strip()
