"""What a DreamBooth evaluation asks for: subjects with their real pictures, and prompts for each.

Three sources: the folder of google/dreambooth as it is (`dataset/prompts_and_classes.txt` beside a folder per subject), a TOML file
of the same content, or one folder of pictures with prompts of the user's. In prompts `{}` is the identifier, `{class}` the class noun.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...concepts.errors import BestiaryError
from ..learning.dreambooth.dreambooth_settings import PLACE
from ..learning.pictures.image_files import scan_images
from ..learning.run.recipe_file import parse_toml

DATASET_FILE = "prompts_and_classes.txt"
NOUN = "{class}"
_PROMPT = re.compile(r"""^\s*(['"])(?P<text>.*)\1\.format\(\s*unique_token\s*,\s*class_token\s*\)""")
_LIVE_NOUNS = ("cat", "dog")
"""Class nouns of the published set that get the prompts of live subjects."""


@dataclass(frozen=True)
class SubjectPlan:
    """One subject, and what is asked of it."""

    name: str
    class_noun: str
    pictures: tuple[Path, ...]
    """Real ones."""
    prompts: tuple[str, ...]
    """With `{}` for the identifier; the class noun is filled in."""

    @property
    def class_prompt(self) -> str:
        """Prompt of any member of the class."""
        return f"a photo of a {self.class_noun}"


def read_protocol(source: Path, prompts: Sequence[str] = ()) -> list[SubjectPlan]:
    """The subjects of google/dreambooth's folder or of a TOML file.

    Args:
        prompts: replace those of the source, if any are given.

    Raises:
        BestiaryError: a file that is neither, a subject without pictures or class, or no prompts.
    """
    if source.is_file() and source.suffix == ".toml":
        plans = list(_toml_plans(source, prompts))
    else:
        listing = dataset_file(source)
        if listing is None:
            raise BestiaryError(
                f"{source} is not a dataset of subjects: give a folder with {DATASET_FILE}, a TOML file, or one LoRA with a folder "
                "of its subject's pictures"
            )
        plans = list(_dataset_plans(listing, prompts))
    if not plans:
        raise BestiaryError(f"{source} names no subject")
    return plans


def dataset_file(folder: Path) -> Path | None:
    """The listing of google/dreambooth in its folder or the one above it; None where there is none."""
    places = (folder / DATASET_FILE, folder / "dataset" / DATASET_FILE)
    return next((path for path in places if path.is_file()), None)


def single_plan(name: str, class_noun: str, pictures: Path, prompts: Sequence[str]) -> SubjectPlan:
    """One subject from one folder of pictures.

    Raises:
        BestiaryError: no pictures.
    """
    return SubjectPlan(name, class_noun, _pictures(pictures), _filled(prompts, class_noun, name))


def _dataset_plans(listing: Path, prompts: Sequence[str]) -> Iterator[SubjectPlan]:
    lines = listing.read_text(encoding="utf-8").splitlines()
    start = next((n for n, line in enumerate(lines) if line.strip().startswith("subject_name")), None)
    nouns: dict[str, str] = {}
    for line in lines[start + 1 :] if start is not None else ():
        name, comma, noun = line.partition(",")
        if not comma:
            if line.strip():
                break
            continue
        nouns[name.strip()] = noun.strip()
    lists = _prompt_lists(lines)
    if not nouns or not (lists or prompts):
        raise BestiaryError(
            f"{listing} has no table of subject_name,class or no prompts: give the file as it is published"
        )
    for name, noun in nouns.items():
        # the second list is for live subjects
        chosen = prompts or lists[-1 if noun in _LIVE_NOUNS else 0]
        yield SubjectPlan(name, noun, _pictures(listing.parent / name), _filled(chosen, noun, name))


def _prompt_lists(lines: Sequence[str]) -> list[tuple[str, ...]]:
    """Every `prompt_list = [...]`, its sentences with our marks."""
    lists: list[list[str]] = []
    for line in lines:
        if line.strip().startswith("prompt_list"):
            lists.append([])
        elif lists and (found := _PROMPT.match(line)):
            lists[-1].append(found["text"].replace("{0}", PLACE).replace("{1}", NOUN))
    return [tuple(some) for some in lists if some]


def _toml_plans(path: Path, prompts: Sequence[str]) -> Iterator[SubjectPlan]:
    """`prompts = [...]`, then `[subjects.NAME]` with `class`, `pictures` and perhaps `prompts` of its own."""
    content = parse_toml(path.read_text(encoding="utf-8"), str(path))
    shared, subjects = content.get("prompts", []), content.get("subjects", {})
    if not isinstance(subjects, dict):
        raise BestiaryError(f"{path}: subjects is not a table: write [subjects.NAME] with class and pictures")
    for name, facts in subjects.items():
        if not isinstance(facts, dict) or not isinstance(noun := facts.get("class"), str) or "pictures" not in facts:
            raise BestiaryError(f'{path}: subjects.{name} needs class and pictures, such as class = "dog"')
        templates = prompts or facts.get("prompts") or shared
        if not isinstance(templates, list | tuple) or not all(isinstance(one, str) for one in templates):
            raise BestiaryError(f"{path}: the prompts of {name} are not a list of texts")
        yield SubjectPlan(name, noun, _pictures(path.parent / str(facts["pictures"])), _filled(templates, noun, name))


def _pictures(folder: Path) -> tuple[Path, ...]:
    scan = scan_images(folder)
    if not scan.names:
        raise BestiaryError(f"{folder} holds no readable picture of its subject")
    return tuple(folder / name for name in scan.names)


def _filled(prompts: Sequence[str], noun: str, name: str) -> tuple[str, ...]:
    if not prompts:
        raise BestiaryError(
            f"no prompts for {name}: give some with --prompt, such as 'a {PLACE} {noun or 'dog'} in the snow'"
        )
    strange = [prompt for prompt in prompts if prompt.count(PLACE) != 1]
    if strange:
        raise BestiaryError(f"the prompt {strange[0]!r} needs {PLACE} exactly once, where the identifier goes")
    if not noun and any(NOUN in prompt for prompt in prompts):
        raise BestiaryError(f"a prompt of {name} holds {NOUN}, but its class is not known: write the noun")
    return tuple(prompt.replace(NOUN, noun) for prompt in prompts)
