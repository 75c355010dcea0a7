"""Options that mean the same in every command, declared once."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from ...concepts.errors import BestiaryError
from ...concepts.files.concept_names import RESERVED_NAMES, checked_file_name
from ...concepts.name_search import shown_name

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]

SeedOption = Annotated[int, typer.Option("--seed", help="Random seed.")]


def _place(text: str) -> Path:
    """A typed place for results, once it is one that every system can make."""
    path = Path(text)
    cause = _place_fault(text, path)
    if cause:
        raise typer.BadParameter(f"{shown_name(text)} {cause}")
    # places such as `.` and `..` have names of their own, which numbers can be added to
    return path if path.name not in ("", "..") else Path(os.path.abspath(path))


def _place_fault(text: str, path: Path) -> str | None:
    if not text.strip():
        return "is empty: give a folder, or leave the option out"
    # what is there has a name that this system takes
    with suppress(OSError, ValueError):
        os.stat(path)
        return None
    for piece in path.parts:
        if piece in (path.anchor, ".", ".."):
            continue
        if "\0" in piece or any("\ud800" <= letter <= "\udfff" for letter in piece):
            return "holds signs that no file name can: type it anew"
        if len(piece.encode("utf-8")) > LONGEST_PLACE:
            return f"has a name of {len(piece.encode('utf-8'))} bytes: at most {LONGEST_PLACE} are taken"
        if piece.split(".")[0].strip().lower() in RESERVED_NAMES:
            return f"has a name that Windows keeps for a device ({piece}): add a letter"
        if piece[-1] in ". ":
            return (
                f"has a name that ends with a dot or a space ({shown_name(piece)}), which Windows drops: leave it out"
            )
    return None


LONGEST_PLACE = 200
"""Bytes of one name in a place for results, with room for numbers and temporary names."""
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        parser=_place,
        metavar="PATH",
        help=(
            "Folder for the result, created if missing; import commands also accept a file name ending in .safetensors."
        ),
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Floating-point precision; auto chooses by device.")]
BaseOption = Annotated[
    str | None,
    typer.Option("--base", help="Base model: a folder in diffusers format, or `demo` for the included model."),
]
ProgressOption = Annotated[
    Literal["line", "json", "off"],
    typer.Option("--progress", help="Format of progress on stderr; json writes one object per line."),
]

SUFFIX = ".safetensors"
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


def result_folder(out: Path | None, default: str | Path) -> Path:
    """The folder that a command writes to, which need not exist.

    Raises:
        BestiaryError: there is a file, or the name is that of a file.
    """
    folder = Path(default) if out is None else out
    if folder.exists() and not folder.is_dir():
        raise BestiaryError(f"--out {folder} is a file: give a folder, which need not exist yet")
    if folder.suffix.lower() == SUFFIX and not folder.exists():
        raise BestiaryError(f"--out {folder} ends like a file, but a folder is written: leave {SUFFIX} out")
    return folder


def page_folder(out: Path | None, default: str | Path, marks: Sequence[str]) -> Path:
    """As `result_folder`, for commands that write a page `index.html`, which never takes the place of another one.

    Args:
        marks: files of which one lies beside a page that an earlier run of the same command wrote.

    Raises:
        BestiaryError: as `result_folder`, or a page of something else lies there.
    """
    folder = result_folder(out, default)
    if (folder / "index.html").exists() and not any((folder / mark).exists() for mark in marks):
        raise BestiaryError(f"--out {folder} holds the page of something else (index.html): give another folder")
    return folder


def result_file(out: Path | None, default: str, beside: str | None = None) -> Path:
    """The file that a command writes: what `out` names if that ends with .safetensors, else `default` in the folder `out`.

    What exists is never replaced: a taken name gets a number.

    Args:
        beside: ending of a second file that is written beside it under the same name.

    Raises:
        BestiaryError: `out` is a file without that ending, or no system takes its name.
    """
    if out is not None and out.is_file() and out.suffix.lower() != SUFFIX:
        raise BestiaryError(f"--out {out} is a file: give a folder, or a file that ends with {SUFFIX}")
    path = (out or Path()) / default
    if out is not None and out.suffix.lower() == SUFFIX and not out.is_dir():
        path = out
    stem, ending = path.name[: -len(SUFFIX)], path.name[-len(SUFFIX) :]
    # a spectrum keeps both of its endings
    if stem.lower().endswith(".spectrum"):
        stem, ending = stem[: -len(".spectrum")], stem[-len(".spectrum") :] + ending
    checked_file_name(stem, "--out")
    number = 1
    while path.exists() or (beside is not None and path.with_name(f"{path.name[: -len(SUFFIX)]}{beside}").exists()):
        number += 1
        path = path.with_name(f"{stem}_{number}{ending}")
    return path


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
