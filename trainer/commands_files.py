"""`bestiary import`, `export` and `inspect`: other people's files in, ours out, and what a file holds."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .command_options import OutOption, existing

imports = typer.Typer(help="Turn files of other programs into ours.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.add_typer(imports, name="import")
    app.command("export")(export)
    app.command("inspect")(inspect)


@imports.command("partcraft")
def import_partcraft(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Mapper, LoRA and k-means files, in any order.")
    ],
    out: OutOption = None,
    names: Annotated[
        str | None, typer.Option("--names", help="cub, dogs, or a TOML file that names the parts; else by the path.")
    ] = None,
    class_names: Annotated[
        Path | None, typer.Option("--class-names", help="Text file with one class name per line.")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option("--captions", help="Caption file, for a training without class labels.")
    ] = None,
) -> None:
    """Turn published PartCraft checkpoints into one part dictionary.

    Pickles are read with an allow-list: code in them is never run.
    """
    # files are looked for before any library is loaded
    sources = [existing(path, "file") for path in files]
    from .import_partcraft import import_partcraft as convert

    target = out or Path("partcraft.safetensors")
    for path in convert(sources, target, names=names, class_names=class_names, captions=captions).written:
        typer.echo(f"wrote {path}")


def export(
    dictionary: Annotated[Path, typer.Argument(metavar="DICT", help="A part dictionary (.safetensors).")],
    out: OutOption = None,
) -> None:
    """Write embeddings and a LoRA for other programs.

    ComfyUI, A1111 and diffusers load them; each file is loaded back before it is reported.
    """
    source = existing(dictionary, "file")
    from ..concepts.parts.part_dictionary import PartDictionary
    from .export_parts import export_dictionary

    for path in export_dictionary(PartDictionary.load(source), out or source.with_suffix("")):
        typer.echo(f"wrote {path}")


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Any file of this program.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Show what one of our files holds."""
    source = existing(file, "file")
    from .inspect_file import describe_file, description_text

    described = describe_file(source)
    typer.echo(json.dumps(described, indent=2, default=str) if as_json else description_text(described))
