"""`bestiary train`, `bestiary resume` and `bestiary doctor`: learn part tokens, go on after a stop, check beforehand."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .command_options import BaseOption, DeviceOption, DtypeOption, OutOption, ProgressOption, assignment, existing
from .progress_report import progress_callback

train = typer.Typer(help="Train concepts on a base model.", no_args_is_help=True)

RecipeArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[RECIPE]", help="A TOML file, or the name of a shipped recipe; flags override it."),
]
DiscoveryOption = Annotated[Path | None, typer.Option("--discovery", help="Folder that `bestiary discover` wrote.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any setting of the recipe; may be given several times."),
]


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
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pictures of one step and process.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Number from which every random choice follows.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    more: SetOption = None,
    progress: ProgressOption = "line",
) -> None:
    """Learn one token for every part and kind of a discovery.

    Writes a run folder and, in it, a part dictionary.
    """
    from .train_parts import train_parts as run_training

    settings = _recipe_settings(recipe, discovery, base, out, steps, batch_size, seed, device, dtype, more)
    result = run_training(settings, on_progress=progress_callback("train", progress))
    typer.echo(f"wrote {result.dictionary_path}")


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a stopped training.")],
    progress: ProgressOption = "line",
) -> None:
    """Go on with a training that was stopped."""
    from .train_parts import resume_training

    result = resume_training(existing(run, "folder"), on_progress=progress_callback("train", progress))
    typer.echo(f"wrote {result.dictionary_path}")


def doctor(
    recipe: RecipeArgument = None,
    discovery: DiscoveryOption = None,
    base: BaseOption = None,
    out: OutOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    more: SetOption = None,
) -> None:
    """Check a training before its first step.

    Pictures, sizes, disk, memory, one forward pass, one preview.
    """
    from .doctor import examine

    settings = _recipe_settings(recipe, discovery, base, out, None, None, None, device, dtype, more)
    for line in examine(settings):
        typer.echo(line)


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
) -> Any:
    from .settings import load_recipe

    # flags become dotted keys of the recipe, `--set` comes last and wins
    typed = {"discovery.folder": discovery, "base.path": base, "run.out": out, "optimizer.steps": steps}
    typed |= {"optimizer.batch_size": batch_size, "run.seed": seed}
    typed |= {"run.device": None if device == "auto" else device, "run.dtype": None if dtype == "auto" else dtype}
    overrides = {key: value for key, value in typed.items() if value is not None}
    overrides |= dict(assignment(text, "--set") for text in more or ())
    return load_recipe(recipe, overrides)
