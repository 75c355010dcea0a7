"""Options shared by all commands."""

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
    """Parser of `--out`: a path whose names are valid on every operating system."""
    path = Path(text)
    cause = _place_fault(text, path)
    if cause:
        raise typer.BadParameter(f"{shown_name(text)} {cause}")
    # `.` and `..` have no name of their own to which a number could be appended
    return path if path.name not in ("", "..") else Path(os.path.abspath(path))


def _place_fault(text: str, path: Path) -> str | None:
    if not text.strip():
        return "is empty: give a folder, or leave the option out"
    # an existing path is valid on this system by definition
    with suppress(OSError, ValueError):
        os.stat(path)
        return None
    for piece in path.parts:
        if piece in (path.anchor, ".", ".."):
            continue
        if "\0" in piece or any("\ud800" <= letter <= "\udfff" for letter in piece):
            return "contains characters that are not allowed in a file name: type it again"
        if len(piece.encode("utf-8")) > LONGEST_PLACE:
            return f"has a name of {len(piece.encode('utf-8'))} bytes: use at most {LONGEST_PLACE}"
        if piece.split(".")[0].strip().lower() in RESERVED_NAMES:
            return f"has a name that Windows reserves for a device ({piece}): add a letter"
        if piece[-1] in ". ":
            return f"has a name that ends with a dot or a space ({shown_name(piece)}), which Windows drops: remove it"
    return None


LONGEST_PLACE = 200
"""Maximum bytes of one name in an output path; leaves room for appended numbers and temporary suffixes."""
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
TextEncoderOption = Annotated[
    Path | None,
    typer.Option(
        "--text-encoder",
        help="SD3 and Flux.1: folder or safetensors file of the T5 encoder; default: the model folder's own.",
    ),
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option("--tokenizer", help="SD3 and Flux.1: folder of T5's tokenizer; default: the model folder's own."),
]
ProgressOption = Annotated[
    Literal["line", "json", "off"],
    typer.Option("--progress", help="Format of progress on stderr; json writes one object per line."),
]

SUFFIX = ".safetensors"
Settings = TypeVar("Settings", bound=BaseModel)


def checked(model: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Settings from command-line options; omitted options (None) keep their defaults.

    Raises:
        BestiaryError: values are out of range; the message names each faulty option.
    """
    given = {name: value for name, value in values.items() if value is not None}
    try:
        return model(**given)
    except ValidationError as fault:
        raise BestiaryError("; ".join(_option_fault(error) for error in fault.errors())) from fault


def existing(path: Path, kind: Literal["file", "folder"]) -> Path:
    """The path unchanged, after checking that it exists and is of this kind.

    Raises:
        BestiaryError: the path is missing or of the other kind; the message lists its neighbours.
    """
    found = path.is_file() if kind == "file" else path.is_dir()
    if found:
        return path
    if path.exists():
        raise BestiaryError(f"{path} is not a {kind}: give the path of a {kind}")
    # the path is usually a misspelling of a neighbour, so list the neighbours
    parent = path.parent if path.parent.is_dir() else None
    beside = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))[:8] if parent else []
    hint = f"; {parent} contains {', '.join(beside)}" if beside else ""
    raise BestiaryError(f"no {kind} {path}{hint}")


def result_folder(out: Path | None, default: str | Path) -> Path:
    """The output folder of a command; it does not have to exist yet.

    Raises:
        BestiaryError: the path is a file, or ends like a file name.
    """
    folder = Path(default) if out is None else out
    if folder.exists() and not folder.is_dir():
        raise BestiaryError(f"--out {folder} is a file: give a folder; it does not have to exist yet")
    if folder.suffix.lower() == SUFFIX and not folder.exists():
        raise BestiaryError(f"--out {folder} ends in {SUFFIX}, but this command writes a folder: remove {SUFFIX}")
    return folder


def page_folder(out: Path | None, default: str | Path, marks: Sequence[str]) -> Path:
    """`result_folder` for commands that write an `index.html`; refuses to overwrite a page of another command.

    Args:
        marks: files written beside the page by this command; one of them identifies the page as its own.

    Raises:
        BestiaryError: as `result_folder`, or the folder contains the page of another command.
    """
    folder = result_folder(out, default)
    if (folder / "index.html").exists() and not any((folder / mark).exists() for mark in marks):
        raise BestiaryError(f"--out {folder} contains an index.html of another command: give another folder")
    return folder


def result_file(out: Path | None, default: str, beside: str | None = None) -> Path:
    """The output file of a command: `out` itself if it ends with .safetensors, else `default` in the folder `out`.

    Existing files are never replaced: a number is appended to a taken name.

    Args:
        beside: ending of a second file that is written beside it under the same name.

    Raises:
        BestiaryError: `out` is a file with another suffix, or its name is not valid on every operating system.
    """
    if out is not None and out.is_file() and out.suffix.lower() != SUFFIX:
        raise BestiaryError(f"--out {out} is a file: give a folder, or a file name that ends with {SUFFIX}")
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
        BestiaryError: `=` is missing, or one side of it is empty.
    """
    name, equals, value = text.partition("=")
    if not (name.strip() and equals and value.strip()):
        raise BestiaryError(f"{option} {text!r}: write name=value, for example {option} old=new")
    return name.strip(), value.strip()


def assignments(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """Names and values of a repeatable option; each name may occur once.

    Raises:
        BestiaryError: one cannot be split, or a name is given twice.
    """
    found: dict[str, str] = {}
    for text in texts or ():
        name, value = assignment(text, option)
        if name in found:
            raise BestiaryError(f"{option} sets {name!r} twice, to {found[name]!r} and to {value!r}: give it once")
        found[name] = value
    return found


def _option_fault(error: Mapping[str, Any]) -> str:
    option = "--" + "-".join(str(part) for part in error["loc"]).replace("_", "-") if error["loc"] else "options"
    # a missing value has no input to show: pydantic then reports the whole mapping
    shown = "" if error["type"] == "missing" or not error["loc"] else f" {error.get('input')!r}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{option}{shown}: {message[:1].lower()}{message[1:]}"
