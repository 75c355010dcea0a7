"""`bestiary demo`: the complete workflow on drawn creatures, and training of the miniature base model."""

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

app = typer.Typer(help="Run the complete workflow on drawn creatures, in minutes.")


@app.callback(invoke_without_command=True)
def demo(
    context: typer.Context,
    out: OutOption = None,
    seed: SeedOption = 0,
    pictures: Annotated[int | None, typer.Option("--pictures", help="Number of pictures to draw.")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Training steps; by default as many as fit into about three minutes.")
    ] = None,
    judged: Annotated[int | None, typer.Option("--judged", help="Pictures per test.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    progress: ProgressOption = "line",
    base: Annotated[
        str,
        typer.Option(
            "--base", help="Base model: demo (a UNet), demo-dit (a transformer), or a folder that train-base wrote."
        ),
    ] = "demo",
) -> None:
    """Discover the parts of drawn creatures, train their tokens, compose new creatures and evaluate them."""
    if context.invoked_subcommand:
        return
    from ..demo.job import DemoSettings, run_demo

    folder = result_folder(out, "bestiary-demo")
    values = {"base": base, "seed": seed, "pictures": pictures, "steps": steps, "judged": judged}
    values |= {"device": device, "dtype": dtype, "progress": progress}
    result = run_demo(folder, checked(DemoSettings, values))
    typer.echo(f"open {result.page}")


@app.command("train-base")
def train_base(
    out: OutOption = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Random seed; default: that of the shipped model."),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    hours: Annotated[
        float | None, typer.Option("--hours", help="Stop after this time; run the command again to continue.")
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, such as denoiser_steps=20000."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape", help="Denoiser: unet (default), or dit, a transformer of the class of Stable Diffusion 3."
        ),
    ] = None,
) -> None:
    """Train the miniature base model from scratch.

    Run the same command again to continue after a stop.
    """
    from ..base_model.train_base import TrainBaseSettings
    from ..base_model.train_base import train_base as train

    folder = result_folder(out, "bestiary-base")
    # options use the short names (bf16), the settings torch's (bfloat16)
    precision = {"fp32": "float32", "bf16": "bfloat16"}.get(dtype, dtype)
    values: dict[str, object] = dict(assignment(text, "--set") for text in more or ())
    options = {"seed": seed, "device": device, "dtype": precision, "hours": hours, "shape": shape}
    values |= {name: value for name, value in options.items() if value is not None}
    train(checked(TrainBaseSettings, values), folder)
    typer.echo(f"wrote {folder}")
