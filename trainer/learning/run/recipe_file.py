"""Recipes: TOML files and dotted options to validated settings and back; all errors are reported together."""

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
"""Settings of the table `images` that are folders to write into."""
RECIPE_FOLDER = ROOT / "trainer" / "recipes"
PARTS = "parts"
"""Kind of a recipe without the key `kind`, unless another training loads it."""


def read_recipe(
    path: Path | str | None,
    overrides: Mapping[str, Any] | None = None,
    *,
    model: type[Settings],
    of_run: bool = False,
) -> Settings:
    """Settings from a recipe file and options that override it.

    Args:
        path: a TOML file, the name of a shipped recipe such as "sd15_12gb", or None for defaults only.
        overrides: dotted key -> value, such as {"optimizer.steps": "500"}; texts are parsed as TOML values if possible.
        model: the settings class, such as TrainPartsSettings.
        of_run: the file is from a run folder, where folders are absolute.

    Raises:
        BestiaryError: the file is missing or not TOML; misspelt keys and values out of range, all in one message; an
            output folder outside the working folder, which only the command line may set.
    """
    # overrides are applied before validation: they may correct an invalid value of the file
    tree = _read_toml(find_recipe(path)) if path is not None else {}
    _check_kind(tree, model, path)
    if not of_run:
        _check_written(tree, f"recipe {path}")
    for key, value in (overrides or {}).items():
        _set_dotted(tree, key, _typed(value, key, model) if isinstance(value, str) else value)
    source = f"recipe {path}" if path is not None else "settings"
    return check_settings(tree, model, source)


def find_recipe(path: Path | str) -> Path:
    """The recipe file for a path or the name of a shipped recipe.

    Raises:
        BestiaryError: neither exists; the message lists the shipped recipes.
    """
    given = Path(path)
    if given.is_file():
        return given
    # only a bare name can refer to a shipped recipe, not a path
    shipped = RECIPE_FOLDER / f"{given.name.removesuffix('.toml')}.toml"
    if shipped.is_file() and given.parent == Path("."):
        return shipped
    names = ", ".join(sorted(recipe.stem for recipe in RECIPE_FOLDER.glob("*.toml")))
    raise BestiaryError(f"no recipe {str(path)!r}: give a TOML file or a shipped recipe ({names})")


def check_settings(tree: Mapping[str, Any], model: type[Settings], source: str) -> Settings:
    """Settings from nested values; BestiaryError lists every error with its key as written."""
    try:
        return model.model_validate(tree)
    except ValidationError as fault:
        lines = [_describe(error, model) for error in fault.errors()]
        raise BestiaryError(f"{source}: {len(lines)} error(s)\n  " + "\n  ".join(lines)) from fault


def parse_value(text: str) -> Any:
    """The text of an option parsed as a TOML value; `none` is None, text that is not TOML stays text."""
    if text.lower() == "none":
        return None
    try:
        return parse_toml_text(f"value = {text}")["value"]
    except BestiaryError:
        return text


def _typed(text: str, key: str, model: type[BaseModel]) -> Any:
    """The text of an option in the type of its setting: a name 42 or a folder 1.5 is not parsed as a number."""
    value = parse_value(text)
    *tables, last = key.split(".")
    field = _section_at(model, tables).model_fields.get(last)
    # only plain and union types: the elements of a list do not count
    kinds = () if field is None else (field.annotation,)
    takes = {kind for one in kinds for kind in (get_args(one) if get_origin(one) in (Union, UnionType) else (one,))}
    # `none` unsets optional settings only: for a required text it is an ordinary word
    if value is None:
        return None if type(None) in takes or not takes & {str, Path} else text
    return text if takes & {str, Path} and not isinstance(value, str) else value


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Nested values of TOML text; `source` is its name in messages.

    Raises:
        BestiaryError: it is not TOML.
    """
    try:
        return parse_toml_text(text)
    except BestiaryError as fault:
        raise BestiaryError(f"{source} is not valid TOML: {fault}") from fault


def format_toml(settings: BaseModel) -> str:
    """Settings as TOML without unset values; parsing it yields equal settings."""
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))


def _read_toml(path: Path) -> dict[str, Any]:
    return parse_toml(read_text(path, LARGEST_TOML), str(path))


def _check_kind(tree: Mapping[str, Any], model: type[BaseModel], path: Path | str | None) -> None:
    """Reject a recipe for another training first, instead of reporting each of its keys as unknown."""
    wanted = model.model_fields["kind"].default if "kind" in model.model_fields else PARTS
    if (kind := tree.get("kind", wanted)) != wanted:
        raise BestiaryError(
            f"recipe {path} is for `{_command(kind)}`, not for `{_command(wanted)}`: choose another recipe"
        )


def _command(kind: object) -> str:
    """The command for recipes of a kind."""
    return "bestiary scenes build" if kind == "scenes" else f"bestiary train {kind}"


def _check_written(tree: Mapping[str, Any], source: str) -> None:
    """Reject output folders outside the working folder: recipes may be downloaded, so only the user may set these."""
    images = tree.get("images")
    for key in _WRITTEN:
        folder = images.get(key) if isinstance(images, Mapping) else None
        if isinstance(folder, str) and leaves_folder(folder):
            raise BestiaryError(
                f"{source}: images.{key} = {folder!r} is outside the working folder, which a recipe must not choose: use a folder "
                f"inside it, or give this one on the command line with --set images.{key}={folder}"
            )


def leaves_folder(path: str) -> bool:
    """True if a path, in POSIX or Windows syntax, is absolute or leaves its starting folder."""
    parts = {*PurePosixPath(path).parts, *PureWindowsPath(path).parts}
    return ".." in parts or path.startswith("~") or bool(PurePosixPath(path).root or PureWindowsPath(path).anchor)


def _set_dotted(tree: dict[str, Any], key: str, value: Any) -> None:
    *tables, last = key.split(".")
    for table in tables:
        tree = tree.setdefault(table, {})
        if not isinstance(tree, dict):
            raise BestiaryError(f"option {key!r}: {table!r} is a value, not a table")
    tree[last] = value


def _describe(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One line per error: key, value, cause, and for misspelt keys the closest valid one."""
    path = [str(step) for step in error["loc"]]
    key = ".".join(path) or "settings"
    if error["type"] == "extra_forbidden":
        valid = list(_section_at(model, path[:-1]).model_fields)
        close = difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"valid keys: {', '.join(valid)}"
        return f"{key}: no such key; {hint}"
    message = str(error["msg"]).removeprefix("Value error, ")
    # the value of a whole section would be too long to print
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
