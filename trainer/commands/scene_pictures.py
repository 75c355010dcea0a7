"""`bestiary scenes segment|layout|compose|caption`: single steps of a scene; each writes files that can be edited."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...concepts.errors import BestiaryError
from ..learning.run.progress_report import progress_callback
from .options import OutOption, ProgressOption, SeedOption, assignments, existing, page_folder, result_folder
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
    from ..scenes.chat_endpoint import ChatEndpoint
    from ..scenes.read_subjects import CutoutRules
    from ..scenes.single_scenes import SubjectTexts

CutoutsArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="PICTURE...",
        help="A picture for each subject, named after it: transparent, with NAME_mask.png beside it, or cut out by IS-Net.",
    ),
]
WordsOption = Annotated[
    list[str] | None, typer.Option("--words", metavar="NAME=WORDS", help="Words for a subject, such as cat='grey cat'.")
]
SizesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--size", metavar="NAME=SIZE", help="A number, a noun such as horse, or tiny, small, medium, large, huge."
    ),
]
SupportsOption = Annotated[
    list[str] | None, typer.Option("--support", metavar="NAME=WHERE", help="ground, sky, any or on:NAME.")
]


@scenes.command("segment")
def segment(
    source: Annotated[Path, typer.Argument(metavar="PICTURE|FOLDER", help="A picture or a folder of pictures.")],
    out: OutOption = None,
    masks: Annotated[Path | None, typer.Option("--masks", help="Folder of masks named like the pictures.")] = None,
    weights: WeightsOption = None,
    backend: Annotated[
        Literal["alpha", "mask", "isnet", "border", "parts"] | None,
        typer.Option("--backend", help="Use this mask source only; border and parts work badly on photographs."),
    ] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", help="Passes of IS-Net, 1 to 8.")] = None,
    feather: Annotated[float | None, typer.Option("--feather", help="Blur of the mask in pixels, 0 to 32.")] = None,
    largest_only: Annotated[
        bool | None, typer.Option("--largest-only/--all-pieces", help="Keep the largest connected piece, or all.")
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Run IS-Net in bfloat16.")] = False,
    discovery: Annotated[
        Path | None, typer.Option("--discovery", help="Folder that `bestiary discover` wrote, for --backend parts.")
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.KEY=VALUE", help="Any setting of `cutout` or `gate`, such as gate.border=false."
        ),
    ] = None,
    progress: ProgressOption = "line",
) -> None:
    """Cut the subject out of every picture, as transparent PNG files.

    Pictures with an unreliable mask are skipped, with the reason. Files that you edited by hand are kept.
    """
    from ..scenes.segment_pictures import LIST, segment_pictures

    if not source.is_file():
        existing(source, "folder")
    given = {
        "backend": backend,
        "rounds": rounds,
        "feather": feather,
        "largest_only": largest_only,
        "bf16": bf16,
        "discovery": discovery,
    }
    rules = _rules(weights, {f"cutout.{name}": value for name, value in given.items() if value is not None}, more)
    folder = page_folder(out, f"{source.resolve().stem}-cutouts", (LIST, ".cutouts"))
    done = segment_pictures(source, folder, rules, masks, on_picture=progress_callback("cut out", progress))
    for file, reason in done.skipped:
        typer.echo(f"bestiary: skipped {file}: {reason}", err=True)
    for file in done.kept:
        typer.echo(f"bestiary: kept {folder / file}, which was edited by hand: delete it to cut it out again", err=True)
    typer.echo(f"{len(done.written)} cut-outs, {len(done.skipped)} pictures skipped")
    typer.echo(f"open {folder / 'index.html'}")


@scenes.command("layout")
def layout_subjects(
    pictures: CutoutsArgument,
    out: OutOption = None,
    width: Annotated[int, typer.Option("--width", help="Width of the canvas in pixels.")] = 768,
    height: Annotated[int, typer.Option("--height", help="Height of the canvas in pixels.")] = 768,
    seed: SeedOption = 0,
    count: Annotated[
        int, typer.Option("--count", min=1, max=10_000, help="Number of layouts, with seeds from --seed upwards.")
    ] = 1,
    coverage: Annotated[
        float, typer.Option("--coverage", help="Maximum share of the canvas covered by all boxes together.")
    ] = 0.22,
    max_occlusion: Annotated[
        float, typer.Option("--max-occlusion", help="Maximum share of a subject that others may hide.")
    ] = 0.15,
    perspective: Annotated[
        float, typer.Option("--perspective", help="How much smaller distant subjects become, 0 to 1.")
    ] = 0.3,
    turn: Annotated[float, typer.Option("--turn", help="Turn subjects at random by up to this many degrees.")] = 0.0,
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="Mirror some subjects at random.")] = True,
    words: WordsOption = None,
    sizes: SizesOption = None,
    supports: SupportsOption = None,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="FILE|-", help="Read the boxes from a text instead of running the solver."),
    ] = None,
    ask: Annotated[
        bool, typer.Option("--ask", help="Print the prompt for a language model; give its answer to --text.")
    ] = False,
    place: Annotated[str, typer.Option("--place", help="Place for the language model, such as 'in a garden'.")] = "",
    layout: LayoutOption = "solver",
    llm_url: UrlOption = None,
    llm_model: ModelOption = "",
    llm_key_env: KeyOption = "",
    weights: WeightsOption = None,
) -> None:
    """Lay subjects out on a canvas, as JSON files.

    Boxes come from the solver, from a text (JSON, tuples or lines with boxes), or from a language model.
    """
    from ...scenes.layout_request import LayoutRequest
    from ...scenes.layout_text import layout_request
    from ..scenes.single_scenes import solve_layouts, subjects_of_files, write_layouts

    given = sys.stdin.read() if text == "-" else "" if text is None else _text_of(Path(text))
    if text is not None and not given.strip():
        raise BestiaryError(f"--text {text} is empty: give a text with boxes")
    request = LayoutRequest(width, height, seed, coverage, max_occlusion, perspective=perspective, flip=flip, turn=turn)
    folder = result_folder(out, "layouts")
    # the endpoint caches answers in the folder: a repeated command asks the model nothing
    endpoint = layout_endpoint(layout, llm_url, llm_model, llm_key_env, folder)
    subjects = subjects_of_files(_files(pictures), _texts(words, sizes, supports), _rules(weights))
    if ask:
        typer.echo(layout_request(subjects, place, width, height))
        return
    solved = solve_layouts(subjects, request, count, text=given, language=language_layouts(endpoint), place=place)
    for path, (_, notes) in zip(write_layouts([one for one, _ in solved], folder), solved, strict=True):
        typer.echo(f"wrote {path}")
        for note in notes:
            typer.echo(f"bestiary: {path.name}: {note}", err=True)


@scenes.command("compose")
def compose_scene(
    layout: Annotated[Path, typer.Argument(metavar="LAYOUT", help="JSON file of `bestiary scenes layout`.")],
    pictures: CutoutsArgument,
    out: OutOption = None,
    background: Annotated[
        str, typer.Option("--background", help="A picture, a folder of pictures, noise or plain.")
    ] = "noise",
    color: Annotated[str, typer.Option("--color", metavar="RRGGBB", help="Colour of a plain background.")] = "c8c8c8",
    shadow: Annotated[float, typer.Option("--shadow", help="Darkness of contact shadows, 0 to 1.")] = 0.5,
    lightness: Annotated[
        float, typer.Option("--lightness", help="How far subjects adapt to the lightness of their background, 0 to 1.")
    ] = 0.0,
    inset: Annotated[
        int, typer.Option("--inset", help="Pixels inside a subject's edge that the repaint mask includes.")
    ] = 5,
    supports: SupportsOption = None,
    weights: WeightsOption = None,
) -> None:
    """Compose one scene: the picture, its masks, and a layer for each subject.

    Subjects in the layout are named after their picture files.
    """
    from ...scenes.collage import CollageOptions, compose
    from ..scenes.single_scenes import find_background, read_layout, subjects_of_files, write_scene

    placed = read_layout(existing(layout, "file"))
    options = CollageOptions(shadow, lightness, inset)
    folder = result_folder(out, f"{layout.stem}-scene")
    behind = find_background(background, placed, _rgb(color))
    subjects = subjects_of_files(_files(pictures), _texts(None, None, supports), _rules(weights))
    scene = compose(subjects, placed, behind.pixels, options)
    for path in write_scene(scene, folder):
        typer.echo(f"wrote {path}")


@scenes.command("caption")
def caption(
    source: Annotated[
        Path,
        typer.Argument(metavar="LAYOUT|SET", help="JSON file of a layout or of a set's scene, or the folder of a set."),
    ],
    template: Annotated[
        str, typer.Option("--template", help="Caption template with {subjects} and, if a place is given, {place}.")
    ] = "a photo of {subjects} {place}",
    place: Annotated[str, typer.Option("--place", help="Place of a layout's scene, such as 'in a garden'.")] = "",
    words: WordsOption = None,
    triggers: Annotated[
        list[str] | None, typer.Option("--trigger", metavar="NAME=WORD", help="Trigger word before a subject's words.")
    ] = None,
    relations: Annotated[
        bool, typer.Option("--relations", help="Add which subject is left of, in front of or on another.")
    ] = False,
    repeat: Annotated[int, typer.Option("--repeat", help="Repetitions of the list of subjects, 1 to 3.")] = 1,
    prefix: Annotated[str, typer.Option("--prefix", help="Word before the whole caption.")] = "",
    caption_url: Annotated[
        str | None,
        typer.Option(
            "--caption-url", help="For a set: OpenAI-compatible URL of a vision model that captions each picture."
        ),
    ] = None,
    caption_model: Annotated[str, typer.Option("--caption-model", help="Name of the vision model.")] = "",
    caption_key_env: Annotated[
        str,
        typer.Option("--caption-key-env", metavar="NAME", help="Environment variable that contains the API key."),
    ] = "",
    progress: ProgressOption = "line",
) -> None:
    """Print the caption of a layout, or rewrite all captions of a set.

    A caption of the vision model is used only if it names every subject; other scenes keep the template's caption.
    """
    from ...scenes.scene_captions import CaptionOptions

    options = CaptionOptions(template, assignments(triggers, "--trigger"), prefix, repeat, relations)
    if source.is_dir():
        _caption_set(source, options, _caption_endpoint(source, caption_url, caption_model, caption_key_env), progress)
        return
    if caption_url is not None:
        raise BestiaryError(f"--caption-url needs the folder of a set, got {source}: the model captions its pictures")
    from ..scenes.single_scenes import caption_of

    typer.echo(caption_of(existing(source, "file"), options, place, assignments(words, "--words")))


def _caption_set(folder: Path, options: Any, endpoint: "ChatEndpoint | None", progress: Any) -> None:
    from ...scenes.set_files import EVALUATION, RECORDS
    from ..scenes.recaption import recaption_set
    from ..scenes.set_page import write_set_page

    # the evaluation first: the card of the whole set quotes it
    places = [place for place in (folder / EVALUATION, folder) if place == folder or (place / RECORDS).is_dir()]
    for place in places:
        report = progress_callback("captions", progress)
        done = recaption_set(place, options, endpoint, title=folder.name, on_scene=report)
        for stem, reason in done.fallen_back:
            typer.echo(f"bestiary: scene {stem} keeps the template's caption: {reason}", err=True)
        typer.echo(f"{place}: {done.changed} of {done.scenes} captions changed")
    write_set_page(folder)


def _caption_endpoint(folder: Path, url: str | None, model: str, key_env: str) -> "ChatEndpoint | None":
    from ..scenes.chat_endpoint import ChatEndpoint

    return None if url is None else ChatEndpoint(url, model, key_env, folder / "caption_cache.jsonl")


def _rules(
    weights: Path | None, given: Mapping[str, object] | None = None, more: Sequence[str] | None = None
) -> "CutoutRules":
    """Rules for cutting out, from options and recipe-style settings."""
    from ..learning.run.recipe_file import read_recipe
    from ..scenes.read_subjects import CutoutRules
    from ..scenes.scene_settings import CutSettings

    settings = read_recipe(None, {**(given or {}), **assignments(more, "--set")}, model=CutSettings)
    return CutoutRules(settings.cutout, settings.gate, weights)


def _texts(words: Sequence[str] | None, sizes: Sequence[str] | None, supports: Sequence[str] | None) -> "SubjectTexts":
    from ..scenes.single_scenes import SubjectTexts

    return SubjectTexts(assignments(words, "--words"), assignments(sizes, "--size"), assignments(supports, "--support"))


def _files(pictures: Sequence[Path]) -> list[Path]:
    return [existing(path, "file") for path in pictures]


def _text_of(path: Path) -> str:
    from ...concepts.files.text_file import read_text

    return read_text(existing(path, "file"))


def _rgb(text: str) -> tuple[int, int, int]:
    try:
        red, green, blue = bytes.fromhex(text.removeprefix("#"))
    except ValueError as fault:
        raise BestiaryError(f"--color {text!r} is not a colour: give six hexadecimal digits, such as c8c8c8") from fault
    return red, green, blue
