"""`bestiary train`, `bestiary resume` and `bestiary doctor`: train concepts, continue a stopped run, check a setup."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...concepts.files.concept_names import checked_file_name
from ..learning.run.progress_report import ProgressStyle, progress_callback
from .options import (
    BaseOption,
    DeviceOption,
    DtypeOption,
    OutOption,
    ProgressOption,
    assignment,
    existing,
    result_folder,
)

if TYPE_CHECKING:
    from ..training.train import Trained
    from ..training.training_setup import Task

train = typer.Typer(help="Train concepts on a base model.", no_args_is_help=True)

RecipeArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RECIPE]", help="A TOML file, or the name of an included recipe; options override its settings."
    ),
]
DiscoveryOption = Annotated[Path | None, typer.Option("--discovery", help="Folder written by `bestiary discover`.")]
ScenesOption = Annotated[
    Path | None,
    typer.Option(
        "--scenes",
        help="Set of scenes (`bestiary scenes build`) to learn from too; images.scene_share says how many batches hold them.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any setting of the recipe; can be given several times."),
]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Number of optimizer steps.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Random seed.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.add_typer(train, name="train")
    app.command("resume")(resume)
    app.command("doctor")(doctor)


@train.command("parts")
def train_parts(
    recipe: RecipeArgument = None,
    discovery: DiscoveryOption = None,
    base: BaseOption = None,
    out: OutOption = None,
    steps: StepsOption = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pictures per step and process.")] = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    more: SetOption = None,
    progress: ProgressOption = "line",
    scenes: ScenesOption = None,
) -> None:
    """Train one token per part and kind of a discovery.

    Writes a run folder that contains the part dictionary.
    """
    from ..training.train_parts import train_parts as run_training

    settings = _recipe_settings(recipe, discovery, base, out, steps, batch_size, seed, device, dtype, more, scenes)
    _train(run_training, settings, progress)


@train.command("spectrum")
def train_spectrum(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="IMAGE_OR_FOLDER",
            help="A picture, or a folder of pictures of one concept. HEIC requires pillow-heif.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            help=(
                "A TOML file, or the name of an included recipe such as spectrum_sd15; options override its settings."
            ),
        ),
    ] = None,
    words: Annotated[
        str | None,
        typer.Option("--words", help="What the pictures show, such as `teddy`; the vectors are initialised from it."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the concept in prompts.")] = None,
    stages: Annotated[
        int | None, typer.Option("--stages", help="Number of stages of equal width; 1 is ordinary textual inversion.")
    ] = None,
    base: BaseOption = None,
    out: OutOption = None,
    steps: StepsOption = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pictures per step.")] = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    more: SetOption = None,
    check: Annotated[bool, typer.Option("--check", help="Only check everything, as `bestiary doctor` does.")] = False,
    progress: ProgressOption = "line",
) -> None:
    """Train a prompt spectrum: separate embeddings per denoising stage, from one or more pictures.

    Writes a run folder that contains the spectrum file; use it in prompts as <NAME>.
    """
    from ..learning.spectrum.spectrum_settings import load_spectrum_recipe

    # users paste the file name of an earlier result: its suffixes are not part of the name
    called = name and name.removesuffix(".safetensors").removesuffix(".spectrum")
    typed = {"images.source": source, "method.initial_words": words, "run.name": called, "method.stages": stages}
    typed |= _shared_flags(base, out, steps, batch_size, seed, device, dtype)
    settings = load_spectrum_recipe(recipe, _overrides(typed, more))
    checked_file_name(settings.run.name, "run.name")
    from ..training.train_spectrum import SpectrumTask
    from ..training.train_spectrum import train_spectrum as run_training

    if check:
        _examine(SpectrumTask(settings))
    else:
        _train(run_training, settings, progress)


@train.command("dreambooth")
def train_dreambooth(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="IMAGE_OR_FOLDER", help="Pictures of one thing; 3 to 6 are usual."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="A TOML file, or the name of an included recipe such as dreambooth_sd15."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", help="Prompt of the pictures: identifier and class noun, such as `a photo of sks dog`."
        ),
    ] = None,
    class_prompt: Annotated[
        str | None, typer.Option("--class-prompt", help="Prompt of the class, such as `a photo of a dog`.")
    ] = None,
    class_images: Annotated[
        Path | None,
        typer.Option("--class-images", help="Folder of pictures of the class; missing ones are generated into it."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the LoRA file.")] = None,
    base: BaseOption = None,
    out: OutOption = None,
    steps: StepsOption = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pictures of the thing per step.")] = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    more: SetOption = None,
    check: Annotated[bool, typer.Option("--check", help="Only check everything, as `bestiary doctor` does.")] = False,
    progress: ProgressOption = "line",
) -> None:
    """Train a LoRA of one thing from a few pictures (DreamBooth), without forgetting its class.

    Writes a run folder that contains the LoRA file.
    """
    from ..learning.dreambooth.dreambooth_settings import load_dreambooth_recipe

    typed = {"images.instance": source, "captions.instance_prompt": prompt, "captions.class_prompt": class_prompt}
    typed |= {"images.class_images": class_images, "run.name": name and name.removesuffix(".safetensors")}
    typed |= _shared_flags(base, out, steps, batch_size, seed, device, dtype)
    settings = load_dreambooth_recipe(recipe, _overrides(typed, more))
    checked_file_name(settings.run.name, "run.name")
    from ..training.train_dreambooth import DreamBoothTask
    from ..training.train_dreambooth import train_dreambooth as run_training

    if check:
        _examine(DreamBoothTask(settings))
    else:
        _train(run_training, settings, progress)


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a stopped training.")],
    progress: ProgressOption = "line",
) -> None:
    """Continue a stopped training."""
    from ..training.tasks import resume_training

    _train(resume_training, existing(run, "folder"), progress)


def doctor(
    recipe: RecipeArgument = None,
    discovery: DiscoveryOption = None,
    base: BaseOption = None,
    out: OutOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    more: SetOption = None,
    scenes: ScenesOption = None,
) -> None:
    """Check a training before it starts.

    Pictures, sizes, disk space, memory, one forward pass, one preview.
    """
    from ..training.train_parts import PartTask

    settings = _recipe_settings(recipe, discovery, base, out, None, None, None, device, dtype, more, scenes)
    _examine(PartTask(settings))


def _train(run_training: Callable[..., "Trained"], what: object, progress: ProgressStyle) -> None:
    """Train by these settings, or go on in this run folder, and say where the result is."""
    run = run_training(what, on_progress=progress_callback("train", progress))
    typer.echo(f"wrote {run.path}")


def _examine(task: "Task") -> None:
    from ..training.doctor import examine

    typer.echo("\n".join(examine(task)))


def _recipe_settings(
    recipe: Path | None,
    discovery: Path | None,
    base: str | None,
    out: Path | None,
    steps: int | None,
    batch_size: int | None,
    seed: int | None,
    device: str,
    dtype: str,
    more: list[str] | None,
    scenes: Path | None,
) -> Any:
    from ..learning.parts.settings import load_recipe

    typed = {"discovery.folder": discovery, "images.scenes": scenes}
    typed |= _shared_flags(base, out, steps, batch_size, seed, device, dtype)
    settings = load_recipe(recipe, _overrides(typed, more))
    checked_file_name(settings.run.name, "run.name")
    return settings


def _overrides(typed: dict[str, Any], more: list[str] | None) -> dict[str, Any]:
    """Given options as dotted keys of the recipe; `--set` overrides them."""
    given = {key: value for key, value in typed.items() if value is not None}
    return given | dict(assignment(text, "--set") for text in more or ())


def _shared_flags(
    base: str | None,
    out: Path | None,
    steps: int | None,
    batch_size: int | None,
    seed: int | None,
    device: str,
    dtype: str,
) -> dict[str, Any]:
    """Dotted keys common to all recipes; None for options that were not given."""
    typed = {"base.path": base, "run.out": out and result_folder(out, out), "optimizer.steps": steps}
    typed |= {"optimizer.batch_size": batch_size, "run.seed": seed}
    return typed | {"run.device": None if device == "auto" else device, "run.dtype": None if dtype == "auto" else dtype}
