"""`bestiary compose` and `bestiary evaluate`: make pictures with a part dictionary, and judge how well it keeps its word."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..learning.run.progress_report import progress_callback
from .options import (
    BaseOption,
    DeviceOption,
    DtypeOption,
    OutOption,
    ProgressOption,
    SeedOption,
    assignments,
    checked,
    existing,
    page_folder,
    result_folder,
)

evaluate = typer.Typer(help="Judge what was learned.", no_args_is_help=True)
Sampler = Literal["ddim", "dpmpp_2m", "euler", "pndm"]


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command("compose")(compose)
    app.add_typer(evaluate, name="evaluate")


def compose(
    dictionary: Annotated[
        Path, typer.Argument(metavar="CONCEPT", help="A part dictionary or a prompt spectrum (.safetensors).")
    ],
    prompts: Annotated[
        list[str],
        typer.Argument(metavar="PROMPT...", help='For example "a photo of a <head:cardinal> <wing:blue jay> bird".'),
    ],
    more: Annotated[
        list[Path] | None, typer.Option("--with", help="One more, for <its name.part:kind> or <its name>.")
    ] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option("--mix", metavar="ATTRIBUTE=NAME", help="layout=corgi and so on: prompts call the mix <mix>."),
    ] = None,
    presets: Annotated[
        Path | None, typer.Option("--presets", help="Text file with lines such as `layout: 0%-10%`.")
    ] = None,
    stage_texts: Annotated[
        list[str] | None,
        typer.Option("--stage-text", metavar="STAGES:TEXT", help="Another prompt for some stages: `layout: a meadow`."),
    ] = None,
    negative: Annotated[str, typer.Option("--negative", help="What to keep out; may name parts too.")] = "",
    base: BaseOption = None,
    out: OutOption = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Pictures of each prompt.")] = 1,
    seed: SeedOption = 0,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Denoising steps.")] = 30,
    guidance: Annotated[float, typer.Option("--guidance", min=0, help="Classifier-free guidance.")] = 7.5,
    size: Annotated[int | None, typer.Option("--size", help="Edge in pixels; left out: the model's own.")] = None,
    sampler: Annotated[Sampler, typer.Option("--sampler", help="How noise is taken away.")] = "ddim",
    lora_strength: Annotated[
        float, typer.Option("--lora-strength", help="1 as trained, 0 without the adapters.")
    ] = 1.0,
    sheet: Annotated[bool, typer.Option("--sheet", help="Also write a contact sheet with captions.")] = False,
    heat_maps: Annotated[bool, typer.Option("--heat-maps", help="Also write where each part token looked.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    progress: ProgressOption = "line",
) -> None:
    """Make pictures from prompts that name learned parts and spectra.

    Earlier pictures are never overwritten; each PNG carries its prompt, its seed and what made it.
    """
    from ..composing.compose import ComposeSettings, compose_files

    out = out and result_folder(out, out)
    # files are looked for before any library is loaded
    values = {"dictionaries": [existing(path, "file") for path in (dictionary, *(more or ()))], "prompts": prompts}
    values |= {"negative": negative, "base": base, "out": out, "count": count, "seed": seed, "steps": steps}
    values |= {"guidance": guidance, "size": size, "sampler": sampler, "lora_strength": lora_strength, "sheet": sheet}
    values |= {
        "heat_maps": heat_maps,
        "device": device,
        "dtype": dtype,
        "presets": presets and existing(presets, "file"),
    }
    values |= {"mix": assignments(mix, "--mix"), "stage_texts": list(stage_texts or ())}
    for path in compose_files(checked(ComposeSettings, values), progress_callback("compose", progress)):
        typer.echo(path)


@evaluate.command("parts")
def evaluate_parts(
    dictionary: Annotated[Path, typer.Argument(metavar="DICT", help="A part dictionary (.safetensors).")],
    discovery: Annotated[Path, typer.Option("--discovery", help="The discovery it was trained on.")],
    labels: Annotated[
        Path | None, typer.Option("--labels", help="CSV with path and class, where it was trained on classes.")
    ] = None,
    base: BaseOption = None,
    out: OutOption = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Pictures of each test.")] = 96,
    baseline: Annotated[
        list[str] | None, typer.Option("--baseline", metavar="NAME=DICT", help="Another dictionary, judged beside it.")
    ] = None,
    seed: SeedOption = 0,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Denoising steps.")] = 30,
    guidance: Annotated[float, typer.Option("--guidance", min=0, help="Classifier-free guidance.")] = 7.5,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    progress: ProgressOption = "line",
) -> None:
    """Judge a part dictionary, as JSON and as a page.

    Reconstruction and mixes of 1 to 4 sources: exact matches (EMR), CoSim, absent parts, attention IoU, likeness.
    """
    from ..evaluation.evaluate import EvaluateSettings, evaluate_files

    out = out and page_folder(out, out, ("evaluation.json",))
    # baselines are typed as NAME=DICT
    others = assignments(baseline, "--baseline")
    values = {"dictionary": existing(dictionary, "file"), "discovery": existing(discovery, "folder"), "base": base}
    values |= {"baselines": {name: existing(Path(path), "file") for name, path in others.items()}}
    values |= {"out": out, "count": count, "seed": seed, "steps": steps, "guidance": guidance}
    values |= {"labels": labels, "device": device, "dtype": dtype}
    page = evaluate_files(checked(EvaluateSettings, values), lambda stage: progress_callback(stage, progress))
    typer.echo(f"open {page}")


@evaluate.command("spectrum")
def evaluate_spectrum(
    spectrum: Annotated[Path, typer.Argument(metavar="SPECTRUM", help="A prompt spectrum (.safetensors).")],
    images: Annotated[Path, typer.Option("--images", help="A picture, or a folder of pictures, of the concept.")],
    base: BaseOption = None,
    out: OutOption = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Noised pictures for every stage.")] = 8,
    seed: SeedOption = 0,
    clip: Annotated[
        str | None,
        typer.Option(
            "--clip",
            metavar="MODEL",
            help="Also draw pictures and judge them by this CLIP model: a folder in transformers format, or a name such as "
            "openai/clip-vit-base-patch32 that is in the Hugging Face cache.",
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt", help="A prompt that CLIP judges, with <NAME OF THE FILE>; may be given several times."
        ),
    ] = None,
    pictures: Annotated[
        int | None, typer.Option("--pictures", help="Pictures of each prompt and stage that CLIP judges; 8 by default.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps of these pictures.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Guidance of these pictures.")] = None,
    size: Annotated[int | None, typer.Option("--size", help="Edge of all pictures in pixels.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    progress: ProgressOption = "line",
) -> None:
    """Judge a spectrum stage by stage, as JSON and as a page.

    Noise loss with the spectrum, with its mean, with the words it started from, and with shuffled stages. With a CLIP model
    also how like the pictures (CLIP-I) and how true to the prompts (CLIP-T) it draws, and how much each stage alone lets through.
    """
    from ..evaluation.evaluate_spectrum import EvaluateSpectrumSettings
    from ..evaluation.evaluate_spectrum import evaluate_spectrum as run_evaluation

    out = out and page_folder(out, out, ("evaluation.json",))
    values = {"spectrum": existing(spectrum, "file"), "images": images, "base": base, "out": out, "count": count}
    values |= {"clip": clip, "prompts": prompts, "pictures": pictures, "steps": steps, "guidance": guidance}
    values |= {"size": size, "seed": seed, "device": device, "dtype": dtype}
    page = run_evaluation(checked(EvaluateSpectrumSettings, values), progress_callback("evaluate", progress))
    typer.echo(f"open {page}")
