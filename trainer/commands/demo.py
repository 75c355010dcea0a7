"""`bestiary demo`: the whole job on drawn creatures, and the training of the model that draws them."""

from typing import Annotated

import typer

from .options import (
    DeviceOption,
    DtypeOption,
    OutOption,
    ProgressOption,
    SeedOption,
    assignment,
    checked,
    result_folder,
)

app = typer.Typer(help="The whole job on drawn creatures, in minutes.")


@app.callback(invoke_without_command=True)
def demo(
    context: typer.Context,
    out: OutOption = None,
    seed: SeedOption = 0,
    pictures: Annotated[int | None, typer.Option("--pictures", help="Pictures to draw.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Training steps; left out: about three minutes.")] = None,
    judged: Annotated[int | None, typer.Option("--judged", help="Pictures of each test.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    progress: ProgressOption = "line",
) -> None:
    """Discover the parts of drawn creatures, learn their tokens, compose creatures nobody drew, measure them."""
    if context.invoked_subcommand:
        return
    from ..demo.job import DemoSettings, run_demo

    folder = result_folder(out, "bestiary-demo")
    values = {"seed": seed, "pictures": pictures, "steps": steps, "judged": judged}
    values |= {"device": device, "dtype": dtype, "progress": progress}
    result = run_demo(folder, checked(DemoSettings, values))
    typer.echo(f"open {result.page}")


@app.command("train-base")
def train_base(
    out: OutOption = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Number from which every random choice follows; left out: the shipped one."),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    hours: Annotated[
        float | None, typer.Option("--hours", help="Stop after this much time; run again to go on.")
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, such as denoiser_steps=20000."),
    ] = None,
) -> None:
    """Train the miniature base model from nothing.

    Run the same command again to go on after a stop.
    """
    from ..base_model.train_base import TrainBaseSettings
    from ..base_model.train_base import train_base as train

    folder = result_folder(out, "bestiary-base")
    # the options speak of bf16, the settings of torch's bfloat16
    precision = {"fp32": "float32", "bf16": "bfloat16"}.get(dtype, dtype)
    values: dict[str, object] = dict(assignment(text, "--set") for text in more or ())
    values |= {"seed": seed, "device": device, "dtype": precision, "hours": hours}
    train(checked(TrainBaseSettings, values), folder)
    typer.echo(f"wrote {folder}")
