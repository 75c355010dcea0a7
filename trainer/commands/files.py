"""`bestiary import`, `export` and `inspect`: convert files from and to other programs, and show what a file contains."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...concepts.files.concept_names import CODEBOOK_SUFFIX, name_of_file
from .options import OutOption, existing, result_file, result_folder

if TYPE_CHECKING:
    from ...concepts.spectrum.prompt_spectrum import PromptSpectrum

_FOREIGN = (".pt", ".pth", ".bin", ".ckpt")
imports = typer.Typer(help="Convert files of other programs to Bestiary files.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.add_typer(imports, name="import")
    app.command("export")(export)
    app.command("inspect")(inspect)


@imports.command("partcraft")
def import_partcraft(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Mapper, LoRA and k-means files of PartCraft, in any order.")
    ],
    out: OutOption = None,
    names: Annotated[
        str | None,
        typer.Option("--names", help="cub, dogs, or a TOML file with part names; default: guessed from the path."),
    ] = None,
    class_names: Annotated[
        Path | None, typer.Option("--class-names", help="Text file with one class name per line.")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option("--captions", help="Caption file, if the training used no class labels.")
    ] = None,
) -> None:
    """Convert published PartCraft checkpoints to a part dictionary.

    Pickle files are read with an allow-list: code in them is never executed.
    """
    # missing files are reported at once: loading the libraries takes seconds
    sources = [existing(path, "file") for path in files]
    from ..exchange.import_partcraft import import_partcraft as convert

    target = result_file(out, "partcraft.safetensors", CODEBOOK_SUFFIX)
    for path in convert(sources, target, names=names, class_names=class_names, captions=captions).written:
        typer.echo(f"wrote {path}")


@imports.command("prospect")
def import_prospect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The embeddings.pt file of ProSpect.")],
    out: OutOption = None,
    words: Annotated[str, typer.Option("--words", help="The initial words of the training, if known.")] = "",
) -> None:
    """Convert a published ProSpect file to a spectrum.

    The pickle file is read with an allow-list: code in it is never executed, and `ldm` is not required.
    """
    source = existing(file, "file")
    from ..exchange.import_spectrum import import_prospect as convert

    _write_spectrum(convert(source, words), source, out)


@imports.command("xti")
def import_xti(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An XTI (P+) embedding with <name-layer-number> keys.")],
    out: OutOption = None,
) -> None:
    """Convert an XTI file to a spectrum with one vector per cross-attention layer."""
    source = existing(file, "file")
    from ..exchange.import_spectrum import import_xti as convert

    _write_spectrum(convert(source), source, out)


@imports.command("neti")
def import_neti(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The mapper-steps-N.pt file of NeTI.")],
    out: OutOption = None,
    stages: Annotated[
        int, typer.Option("--stages", min=1, max=250, help="Number of stages of equal width to compute.")
    ] = 10,
    truncation: Annotated[
        int | None,
        typer.Option(
            "--truncation", help="Hidden units to keep, of 128 (nested dropout); fewer make the concept easier to edit."
        ),
    ] = None,
) -> None:
    """Convert a NeTI mapper to a spectrum with vectors per stage and cross-attention layer."""
    source = existing(file, "file")
    from ..exchange.import_spectrum import import_neti as convert

    _write_spectrum(convert(source, stages=stages, truncation=truncation), source, out)


@imports.command("textual-inversion")
def import_textual_inversion(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An embedding of diffusers, A1111 or kohya.")],
    out: OutOption = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the embedding, if the file contains several or is a LoRA.")
    ] = None,
) -> None:
    """Convert a textual inversion to a spectrum with one stage, for mixing with others."""
    source = existing(file, "file")
    from ..exchange.import_spectrum import import_textual_inversion as convert

    _write_spectrum(convert(source, name), source, out)


def _write_spectrum(spectrum: "PromptSpectrum", source: Path, out: Path | None) -> None:
    from ...concepts.spectrum.spectrum_file import save_spectrum

    # drop the suffix of the other program only: a name such as v1.5 keeps its dot
    stem = name_of_file(source.with_suffix("").name if source.suffix in _FOREIGN else source.name)
    target = result_file(out, f"{stem}.spectrum.safetensors")
    save_spectrum(spectrum, target)
    layers = f", {spectrum.layers} layers" if spectrum.layers else ""
    typer.echo(f"{spectrum.backbone}: {spectrum.stages} stages{layers}, {spectrum.vectors} vectors each")
    typer.echo(f"wrote {target}")


def export(
    concept: Annotated[
        Path, typer.Argument(metavar="CONCEPT", help="A part dictionary or a prompt spectrum (.safetensors).")
    ],
    out: OutOption = None,
) -> None:
    """Export embeddings and a LoRA for other programs.

    For ComfyUI, A1111 and diffusers; each written file is loaded again as a check.
    """
    source = existing(concept, "file")
    from ...concepts.files.concept_file import SPECTRUM_KIND, read_header
    from ...concepts.spectrum.spectrum_file import load_spectrum
    from ..exchange.new_files import added_together

    name = name_of_file(source.name)
    target = result_folder(out, source.parent / name)
    # the kind in the header decides, not the file name; existing files in the target are never replaced
    with added_together(target) as staging:
        if read_header(source).kind == SPECTRUM_KIND:
            from ..exchange.export_spectrum import export_spectrum

            written = export_spectrum(load_spectrum(source), staging, name)
        else:
            from ...concepts.part_dictionary.part_dictionary import PartDictionary
            from ..exchange.export_parts import export_dictionary

            written = export_dictionary(PartDictionary.load(source), staging)
        written = [target / path.relative_to(staging) for path in written]
    for path in written:
        typer.echo(f"wrote {path}")


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Any file written by Bestiary.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the contents of a Bestiary file."""
    source = existing(file, "file")
    from ..exchange.inspect_file import describe_file, description_text

    # the importers load torch; a missing file was reported before that
    described = describe_file(source)
    typer.echo(json.dumps(described, indent=2, default=str) if as_json else description_text(described))
