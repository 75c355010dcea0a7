"""`bestiary compose` and `bestiary evaluate`: generate pictures with learned concepts, and measure how faithful they are."""

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
    TextEncoderOption,
    TokenizerOption,
    assignments,
    checked,
    existing,
    page_folder,
    result_folder,
)

evaluate = typer.Typer(help="Evaluate a part dictionary, a spectrum or a DreamBooth LoRA.", no_args_is_help=True)
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
        list[Path] | None,
        typer.Option("--with", help="A further dictionary or spectrum, for <its name.part:kind> or <its name>."),
    ] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            "--mix",
            metavar="ATTRIBUTE=NAME",
            help="Attribute and spectrum, such as layout=corgi; use the mixture in prompts as <mix>.",
        ),
    ] = None,
    presets: Annotated[
        Path | None, typer.Option("--presets", help="Text file with lines such as `layout: 0%-10%`.")
    ] = None,
    stage_texts: Annotated[
        list[str] | None,
        typer.Option(
            "--stage-text",
            metavar="STAGES:TEXT",
            help="A different prompt for some stages, such as `layout: a meadow`.",
        ),
    ] = None,
    negative: Annotated[str, typer.Option("--negative", help="Negative prompt; can contain parts.")] = "",
    base: BaseOption = None,
    out: OutOption = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Pictures per prompt.")] = 1,
    seed: SeedOption = 0,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Denoising steps.")] = 30,
    guidance: Annotated[float, typer.Option("--guidance", min=0, help="Classifier-free guidance scale.")] = 7.5,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="EDGE|WIDTHxHEIGHT",
            help="Edge length, or width and height such as 256x128, in pixels; default: that of the model.",
        ),
    ] = None,
    sampler: Annotated[Sampler, typer.Option("--sampler", help="Sampling method.")] = "ddim",
    regions: Annotated[
        list[str] | None,
        typer.Option(
            "--region",
            metavar="PLACE:PROMPT",
            help="A prompt for a part of the picture: left, right, top, bottom, middle, 0%,0%,50%,100%, or a subject of --layout.",
        ),
    ] = None,
    layout: Annotated[
        Path | None,
        typer.Option("--layout", help="Layout of `bestiary scenes layout`; its subjects are places for --region."),
    ] = None,
    feather: Annotated[float, typer.Option("--feather", help="Soft edge of regions in pixels.")] = 16,
    lora_strength: Annotated[
        float, typer.Option("--lora-strength", help="Strength of the LoRA: 1 as trained, 0 without it.")
    ] = 1.0,
    sheet: Annotated[bool, typer.Option("--sheet", help="Also write a contact sheet with captions.")] = False,
    heat_maps: Annotated[
        bool, typer.Option("--heat-maps", help="Also write heat maps of the attention of each part token.")
    ] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    progress: ProgressOption = "line",
    text_encoder: TextEncoderOption = None,
    tokenizer: TokenizerOption = None,
) -> None:
    """Generate pictures from prompts with learned parts and spectra.

    Existing pictures are never overwritten; each PNG stores its prompt, seed and settings.
    """
    from ..composing.compose import ComposeSettings, compose_files

    out = out and result_folder(out, out)
    # missing files are reported before the slow imports of the models
    values = {"dictionaries": [existing(path, "file") for path in (dictionary, *(more or ()))], "prompts": prompts}
    values |= {"negative": negative, "base": base, "out": out, "count": count, "seed": seed, "steps": steps}
    values |= {"guidance": guidance, "size": size, "sampler": sampler, "lora_strength": lora_strength, "sheet": sheet}
    values |= {"heat_maps": heat_maps, "device": device, "dtype": dtype, "mix": assignments(mix, "--mix")}
    values |= {"presets": presets and existing(presets, "file"), "stage_texts": list(stage_texts or ())}
    values |= {"regions": list(regions or ()), "layout": layout and existing(layout, "file"), "feather": feather}
    values |= {"text_encoder": text_encoder, "tokenizer": tokenizer}
    for path in compose_files(checked(ComposeSettings, values), progress_callback("compose", progress)):
        typer.echo(path)


@evaluate.command("parts")
def evaluate_parts(
    dictionary: Annotated[Path, typer.Argument(metavar="DICT", help="A part dictionary (.safetensors).")],
    discovery: Annotated[Path, typer.Option("--discovery", help="The discovery it was trained on.")],
    labels: Annotated[
        Path | None, typer.Option("--labels", help="CSV file with path and class, if it was trained on classes.")
    ] = None,
    base: BaseOption = None,
    out: OutOption = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Pictures per test.")] = 96,
    baseline: Annotated[
        list[str] | None, typer.Option("--baseline", metavar="NAME=DICT", help="Another dictionary to compare with.")
    ] = None,
    seed: SeedOption = 0,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Denoising steps.")] = 30,
    guidance: Annotated[float, typer.Option("--guidance", min=0, help="Classifier-free guidance scale.")] = 7.5,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    progress: ProgressOption = "line",
    text_encoder: TextEncoderOption = None,
    tokenizer: TokenizerOption = None,
) -> None:
    """Evaluate a part dictionary; writes JSON and an HTML page.

    Reconstruction and mixes of 1 to 4 sources: exact match rate (EMR), CoSim, absent parts, attention IoU,
    similarity.
    """
    from ..evaluation.evaluate import EvaluateSettings, evaluate_files

    out = out and page_folder(out, out, ("evaluation.json",))
    others = assignments(baseline, "--baseline")
    values = {"dictionary": existing(dictionary, "file"), "discovery": existing(discovery, "folder"), "base": base}
    values |= {"baselines": {name: existing(Path(path), "file") for name, path in others.items()}}
    values |= {"out": out, "count": count, "seed": seed, "steps": steps, "guidance": guidance}
    values |= {"labels": labels, "device": device, "dtype": dtype}
    values |= {"text_encoder": text_encoder, "tokenizer": tokenizer}
    page = evaluate_files(checked(EvaluateSettings, values), lambda stage: progress_callback(stage, progress))
    typer.echo(f"open {page}")


@evaluate.command("spectrum")
def evaluate_spectrum(
    spectrum: Annotated[Path, typer.Argument(metavar="SPECTRUM", help="A prompt spectrum (.safetensors).")],
    images: Annotated[Path, typer.Option("--images", help="A picture, or a folder of pictures, of the concept.")],
    base: BaseOption = None,
    out: OutOption = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Noised pictures per stage.")] = 8,
    seed: SeedOption = 0,
    clip: Annotated[
        str | None,
        typer.Option(
            "--clip",
            metavar="MODEL",
            help=(
                "Also generate pictures and score them with this CLIP model: a folder in transformers format, or "
                "a name such as openai/clip-vit-base-patch32 from the Hugging Face cache."
            ),
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt", help="A prompt for the CLIP evaluation, with <NAME OF THE FILE>; can be given several times."
        ),
    ] = None,
    pictures: Annotated[
        int | None,
        typer.Option("--pictures", help="Pictures per prompt and stage for the CLIP evaluation; default: 8."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps of the CLIP evaluation.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Guidance scale of the CLIP evaluation.")] = None,
    size: Annotated[int | None, typer.Option("--size", help="Edge length of all pictures in pixels.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    progress: ProgressOption = "line",
    text_encoder: TextEncoderOption = None,
    tokenizer: TokenizerOption = None,
) -> None:
    """Evaluate a spectrum per stage; writes JSON and an HTML page.

    Noise loss with the spectrum, with its mean, with its initial words, and with shuffled stages. With a CLIP model
    also the similarity to the pictures (CLIP-I), the agreement with the prompts (CLIP-T), and the leakage of each
    stage.
    """
    from ..evaluation.evaluate_spectrum import EvaluateSpectrumSettings
    from ..evaluation.evaluate_spectrum import evaluate_spectrum as run_evaluation

    out = out and page_folder(out, out, ("evaluation.json",))
    values = {"spectrum": existing(spectrum, "file"), "images": images, "base": base, "out": out, "count": count}
    values |= {"clip": clip, "prompts": prompts, "pictures": pictures, "steps": steps, "guidance": guidance}
    values |= {"size": size, "seed": seed, "device": device, "dtype": dtype}
    values |= {"text_encoder": text_encoder, "tokenizer": tokenizer}
    page = run_evaluation(checked(EvaluateSpectrumSettings, values), progress_callback("evaluate", progress))
    typer.echo(f"open {page}")


@evaluate.command("dreambooth")
def evaluate_dreambooth(
    adapters: Annotated[
        Path,
        typer.Argument(metavar="LORA", help="A LoRA of `bestiary train dreambooth`, or a folder with one per subject."),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            help="Real pictures of the subject; or the folder of google/dreambooth, or a TOML file of subjects.",
        ),
    ] = None,
    drawn: Annotated[
        str | None,
        typer.Option(
            "--drawn", metavar="SPECIES", help="Species of the drawn world; needs no weights and no pictures."
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="A prompt with {} for the identifier; can be given several times."),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Pictures per prompt.")] = 4,
    class_count: Annotated[int, typer.Option("--class-count", min=2, help="Pictures of the class prompt.")] = 16,
    clip: Annotated[
        str | None, typer.Option("--clip", metavar="MODEL", help="CLIP: a folder, or a name of the Hugging Face cache.")
    ] = None,
    dino: Annotated[Path | None, typer.Option("--dino", help="DINO: a checkpoint of ViT-S/16.")] = None,
    lpips: Annotated[
        Path | None, typer.Option("--lpips", help="LPIPS: folder with alexnet-owt-7be5be79.pth and alex.pth.")
    ] = None,
    base: BaseOption = None,
    text_encoder: Annotated[
        Path | None,
        typer.Option("--text-encoder", help="T5 of DeepFloyd IF: a folder or one file; default: the base model's own."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="Folder of T5's tokenizer for DeepFloyd IF.")
    ] = None,
    out: OutOption = None,
    seed: SeedOption = 0,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Denoising steps.")] = 50,
    guidance: Annotated[float, typer.Option("--guidance", min=0, help="Classifier-free guidance scale.")] = 7.5,
    size: Annotated[int | None, typer.Option("--size", help="Edge length of the pictures in pixels.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    progress: ProgressOption = "line",
) -> None:
    """Evaluate DreamBooth LoRA files; writes JSON, CSV and an HTML page.

    DINO, CLIP-I, CLIP-T, PRES and DIV, with the real pictures for comparison. Nothing is downloaded: columns whose
    weights are missing are left out.
    """
    from ..evaluation.evaluate_dreambooth import EvaluateDreamBoothSettings
    from ..evaluation.evaluate_dreambooth import evaluate_dreambooth as run_evaluation

    if not adapters.exists():
        adapters = existing(adapters, "file")
    out = out and page_folder(out, out, ("evaluation.json", "plan.json"))
    values = {"adapters": adapters, "images": images, "drawn": drawn, "prompts": prompts or (), "count": count}
    values |= {"class_count": class_count, "clip": clip, "dino": dino, "lpips": lpips, "base": base, "out": out}
    values |= {"seed": seed, "steps": steps, "guidance": guidance, "size": size, "device": device, "dtype": dtype}
    values |= {"text_encoder": text_encoder, "tokenizer": tokenizer}
    page = run_evaluation(checked(EvaluateDreamBoothSettings, values), progress_callback("evaluate", progress))
    typer.echo(f"open {page}")
