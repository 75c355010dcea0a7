"""Options that mean the same in every command, declared once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from ..concepts.errors import BestiaryError

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]

SeedOption = Annotated[int, typer.Option("--seed", help="Number from which every random choice follows.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder (or file) for the result.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Precision of the work; auto chooses by device.")]
BaseOption = Annotated[
    str | None,
    typer.Option("--base", help="Base model: a diffusers folder, or `demo` for the model that comes with the program."),
]
ProgressOption = Annotated[
    Literal["line", "json", "off"],
    typer.Option("--progress", help="How progress is reported on stderr; json writes one object per line."),
]

Settings = TypeVar("Settings", bound=BaseModel)


def checked(model: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Settings from typed options; options left out (None) keep their defaults.

    Raises:
        BestiaryError: values are out of range; every fault is named by its option.
    """
    given = {name: value for name, value in values.items() if value is not None}
    try:
        return model(**given)
    except ValidationError as fault:
        raise BestiaryError("; ".join(_option_fault(error) for error in fault.errors())) from fault


def existing(path: Path, kind: Literal["file", "folder"]) -> Path:
    """The path itself, once it is known to be there.

    Raises:
        BestiaryError: nothing is there, or something of the other kind; the message says what is beside it.
    """
    # something of the right kind is there: nothing to say
    found = path.is_file() if kind == "file" else path.is_dir()
    if found:
        return path
    if path.exists():
        raise BestiaryError(f"{path} is not a {kind}: give the path of a {kind}")
    # a misspelt name is usually beside the right one
    parent = path.parent if path.parent.is_dir() else None
    beside = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))[:8] if parent else []
    hint = f"; {parent} holds {', '.join(beside)}" if beside else ""
    raise BestiaryError(f"no {kind} {path}{hint}")


def assignment(text: str, option: str) -> tuple[str, str]:
    """Split `name=value` as typed after an option.

    Raises:
        BestiaryError: there is no `=`, or nothing on one side of it.
    """
    name, equals, value = text.partition("=")
    if not (name.strip() and equals and value.strip()):
        raise BestiaryError(f"{option} {text!r}: write name=value, for example {option} old=new")
    return name.strip(), value.strip()


def assignments(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """Names and values of an option that may be given several times, each name once.

    Raises:
        BestiaryError: one cannot be split, or a name is given twice.
    """
    found: dict[str, str] = {}
    for text in texts or ():
        name, value = assignment(text, option)
        if name in found:
            raise BestiaryError(f"{option} names {name!r} twice, as {found[name]!r} and as {value!r}: give one of them")
        found[name] = value
    return found


def _option_fault(error: Mapping[str, Any]) -> str:
    option = "--" + "-".join(str(part) for part in error["loc"]).replace("_", "-") if error["loc"] else "options"
    shown = "" if error["type"] == "missing" or not error["loc"] else f" {error.get('input')!r}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{option}{shown}: {message[:1].lower()}{message[1:]}"
