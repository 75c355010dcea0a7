"""`bestiary discover` and `bestiary parts`: find the parts of things in a folder of pictures, and edit what was found."""

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
    checked,
    existing,
    page_folder,
)

parts = typer.Typer(help="Name, join or drop the parts of a discovery.", no_args_is_help=True)
FolderArgument = Annotated[Path, typer.Argument(help="Folder that `bestiary discover` wrote.", metavar="FOLDER")]


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command("discover")(discover)
    app.add_typer(parts, name="parts")


def discover(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Folder of pictures; subfolders are read too, HEIC where pillow-heif is installed."
        ),
    ],
    out: OutOption = None,
    source: Annotated[
        Literal["auto", "dinov2", "imagenet", "diffusion", "descriptor"],
        typer.Option(
            "--source",
            help="What describes a patch; auto takes dinov2 where its weights are on disk, else imagenet, which needs "
            "nothing; descriptor is for flat drawings.",
        ),
    ] = "auto",
    base: BaseOption = None,
    num_parts: Annotated[int | None, typer.Option("--parts", help="Foreground parts; left out: chosen.")] = None,
    kinds: Annotated[int | None, typer.Option("--kinds", help="Kinds of each part; left out: chosen.")] = None,
    names: Annotated[Path | None, typer.Option("--names", help="TOML file with names of parts and kinds.")] = None,
    flip_foreground: Annotated[
        bool, typer.Option("--flip-foreground", help="Take what was held for background.")
    ] = False,
    min_margin: Annotated[
        float | None,
        typer.Option(
            "--min-margin", help="How much more the foreground must cover the centre than the borders, -1 to 1."
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pictures read at a time.")] = None,
    sample_patches: Annotated[
        int | None, typer.Option("--sample-patches", help="Patches the parts are fitted on.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Checkpoint of dinov2 or imagenet; left out: the published one.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what an earlier discovery left there.")] = False,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    progress: ProgressOption = "line",
    model: Annotated[
        str | None,
        typer.Option("--model", help="timm's name of a vision transformer for dinov2: DINOv2, with registers, DINOv3."),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            "--masks", help="Folder of masks called as their pictures, the thing in white; transparency counts too."
        ),
    ] = None,
) -> None:
    """Find the parts of things in a folder of pictures.

    No labels are needed; writes a codebook, part maps, captions and a page to look at.
    """
    existing(images, "folder")
    from ..discovery.discover import DiscoverSettings
    from ..discovery.discover import discover as run_discovery

    folder = page_folder(out, f"{images.resolve().name}-parts", ("report.json", "state"))
    # options by the names of the settings; those left out stay None and keep their defaults
    values = {"images": images, "out": folder, "source": source, "base": base, "num_parts": num_parts, "kinds": kinds}
    values |= {"names": names, "flip_foreground": flip_foreground, "batch_size": batch_size, "seed": seed}
    values |= {"sample_patches": sample_patches, "weights": weights, "min_margin": min_margin, "restart": restart}
    values |= {"device": device, "dtype": dtype, "model": model, "masks": masks}
    run_discovery(checked(DiscoverSettings, values), on_progress=progress_callback("discover", progress))
    typer.echo(f"open {folder / 'index.html'}")


@parts.command("rename")
def rename(
    folder: FolderArgument,
    name: Annotated[str, typer.Argument(metavar="PART", help="A part, or a kind as part:kind.")],
    new_name: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
) -> None:
    """Give a part (`part 2`) or a kind (`head:17`) a name."""
    from ..discovery.edit_parts import rename_part

    rename_part(existing(folder, "folder"), name, new_name)
    typer.echo(f"{name} is now {new_name}")


@parts.command("merge")
def merge(
    folder: FolderArgument,
    names: Annotated[list[str], typer.Argument(metavar="PART...", help="Two or more; all become the first.")],
) -> None:
    """Join parts, or kinds of one part (`head:3 head:7`).

    All become the first one named.
    """
    from ..discovery.edit_parts import merge_parts

    merge_parts(existing(folder, "folder"), names)
    typer.echo(f"{', '.join(names[1:])} joined {names[0]}")


@parts.command("drop")
def drop(
    folder: FolderArgument,
    names: Annotated[list[str], typer.Argument(metavar="PART...", help="Parts, or kinds as part:kind.")],
) -> None:
    """Leave parts or kinds out of training.

    Patches of a dropped part become background.
    """
    from ..discovery.edit_parts import drop_parts

    drop_parts(existing(folder, "folder"), names)
    typer.echo(f"dropped {', '.join(names)}")
