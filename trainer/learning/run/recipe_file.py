"""Recipes: TOML files and dotted flags in, checked settings out, and back; every fault is told in one go."""

import difflib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ValidationError

from ....concepts.errors import BestiaryError
from ....concepts.files.pack import ROOT
from ....concepts.files.text_file import LARGEST_TOML, read_text
from ....concepts.files.text_file import parse_toml as parse_toml_text

Settings = TypeVar("Settings", bound=BaseModel)
_WRITTEN = ("cache", "class_images")
"""Folders among the settings of pictures that a training writes into."""
RECIPE_FOLDER = ROOT / "trainer" / "recipes"
PARTS = "parts"
"""What a recipe that does not say its `kind` trains, unless it is asked for by another training."""


def read_recipe(
    path: Path | str | None,
    overrides: Mapping[str, Any] | None = None,
    *,
    model: type[Settings],
    of_run: bool = False,
) -> Settings:
    """Settings from a recipe file and flags that override it.

    Args:
        path: a TOML file, the name of a shipped recipe such as "sd15_12gb", or None for defaults alone.
        overrides: dotted key -> value, such as {"optimizer.steps": "500"}; texts are read as TOML values where they are.
        model: the settings class, such as TrainPartsSettings.
        of_run: the file is the one that a run folder keeps, in which folders are absolute.

    Raises:
        BestiaryError: file missing or no TOML; misspelt keys and values out of range, all of them in one message; a
            folder to write into that only a person may name.
    """
    # file first, flags over it, then one check of everything
    tree = _read_toml(find_recipe(path)) if path is not None else {}
    _check_kind(tree, model, path)
    if not of_run:
        _check_written(tree, f"recipe {path}")
    for key, value in (overrides or {}).items():
        _set_dotted(tree, key, _typed(value, key, model) if isinstance(value, str) else value)
    source = f"recipe {path}" if path is not None else "settings"
    return check_settings(tree, model, source)


def find_recipe(path: Path | str) -> Path:
    """The recipe file of a path or of a shipped recipe's name.

    Raises:
        BestiaryError: neither exists; the message lists the shipped recipes.
    """
    given = Path(path)
    if given.is_file():
        return given
    # a name alone may mean a shipped recipe, a path never does
    shipped = RECIPE_FOLDER / f"{given.name.removesuffix('.toml')}.toml"
    if shipped.is_file() and given.parent == Path("."):
        return shipped
    names = ", ".join(sorted(recipe.stem for recipe in RECIPE_FOLDER.glob("*.toml")))
    raise BestiaryError(f"no recipe {str(path)!r}: give a TOML file or a shipped recipe ({names})")


def check_settings(tree: Mapping[str, Any], model: type[Settings], source: str) -> Settings:
    """Settings from nested values; BestiaryError lists every fault with the key as it was written."""
    try:
        return model.model_validate(tree)
    except ValidationError as fault:
        lines = [_describe(error, model) for error in fault.errors()]
        raise BestiaryError(f"{source}: {len(lines)} fault(s)\n  " + "\n  ".join(lines)) from fault


def parse_value(text: str) -> Any:
    """A flag's text as the TOML value it spells; `none` is None, anything else that is no TOML stays text."""
    if text.lower() == "none":
        return None
    try:
        return parse_toml_text(f"value = {text}")["value"]
    except BestiaryError:
        return text


def _typed(text: str, key: str, model: type[BaseModel]) -> Any:
    """A flag's text as its setting takes it: the name 42, the words 2024 and a folder 1.5 are no numbers."""
    value = parse_value(text)
    *tables, last = key.split(".")
    field = _section_at(model, tables).model_fields.get(last)
    # a text alone, or one of several types; a list of texts is none
    kinds = () if field is None else (field.annotation,)
    takes = {kind for one in kinds for kind in (get_args(one) if get_origin(one) in (Union, UnionType) else (one,))}
    # `none` and texts in quotes mean what they say, where the setting can be left out or is a text
    if value is None:
        return None if type(None) in takes or not takes & {str, Path} else text
    return text if takes & {str, Path} and not isinstance(value, str) else value


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Nested values of TOML text; `source` names it in messages.

    Raises:
        BestiaryError: it is no TOML.
    """
    try:
        return parse_toml_text(text)
    except BestiaryError as fault:
        raise BestiaryError(f"{source} is no valid TOML: {fault}") from fault


def format_toml(settings: BaseModel) -> str:
    """Settings as TOML, unset values left out; reads back equal."""
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))


def _read_toml(path: Path) -> dict[str, Any]:
    return parse_toml(read_text(path, LARGEST_TOML), str(path))


def _check_kind(tree: Mapping[str, Any], model: type[BaseModel], path: Path | str | None) -> None:
    """Refuse a recipe that says it is for another training before its keys are complained about one by one."""
    wanted = model.model_fields["kind"].default if "kind" in model.model_fields else PARTS
    if (kind := tree.get("kind", wanted)) != wanted:
        raise BestiaryError(
            f"recipe {path} is for `{_command(kind)}`, not for `{_command(wanted)}`: choose another recipe"
        )


def _command(kind: object) -> str:
    """The command that takes recipes of a kind."""
    return "bestiary scenes build" if kind == "scenes" else f"bestiary train {kind}"


def _check_written(tree: Mapping[str, Any], source: str) -> None:
    """A recipe may come from elsewhere: where large files go outside of the working folder is for the user to say."""
    images = tree.get("images")
    for key in _WRITTEN:
        folder = images.get(key) if isinstance(images, Mapping) else None
        if isinstance(folder, str) and leaves_folder(folder):
            raise BestiaryError(
                f"{source}: images.{key} = {folder!r} leads out of the working folder, which a file may not decide: name a folder "
                f"below it there, or give this one on the command line with --set images.{key}={folder}"
            )


def leaves_folder(path: str) -> bool:
    """Whether a path, read as one of this system or of another, is absolute or steps out of the folder it starts in."""
    parts = {*PurePosixPath(path).parts, *PureWindowsPath(path).parts}
    return ".." in parts or path.startswith("~") or bool(PurePosixPath(path).root or PureWindowsPath(path).anchor)


def _set_dotted(tree: dict[str, Any], key: str, value: Any) -> None:
    *tables, last = key.split(".")
    for table in tables:
        tree = tree.setdefault(table, {})
        if not isinstance(tree, dict):
            raise BestiaryError(f"flag {key!r}: {table!r} is a value, not a table")
    tree[last] = value


def _describe(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One line for a fault: key, value, cause, and for misspelt keys the closest valid one."""
    path = [str(step) for step in error["loc"]]
    key = ".".join(path) or "settings"
    if error["type"] == "extra_forbidden":
        valid = list(_section_at(model, path[:-1]).model_fields)
        close = difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"valid keys: {', '.join(valid)}"
        return f"{key}: no such key; {hint}"
    message = str(error["msg"]).removeprefix("Value error, ")
    # whole sections would fill the screen
    if isinstance(error["input"], dict | BaseModel):
        return f"{key}: {message}"
    return f"{key} = {error['input']!r}: {message}"


def _section_at(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    for step in path:
        annotation = model.model_fields[step].annotation if step in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return model
        model = annotation
    return model
