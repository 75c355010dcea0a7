"""`bestiary discover` and `bestiary parts`: find the parts of objects in a folder of pictures, and edit the result."""

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

parts = typer.Typer(help="Rename, merge or drop the parts of a discovery.", no_args_is_help=True)
FolderArgument = Annotated[Path, typer.Argument(help="Folder written by `bestiary discover`.", metavar="FOLDER")]


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command("discover")(discover)
    app.add_typer(parts, name="parts")


def discover(
    images: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Folder of pictures, including subfolders. HEIC requires pillow-heif."),
    ],
    out: OutOption = None,
    source: Annotated[
        Literal["auto", "dinov2", "imagenet", "diffusion", "descriptor"],
        typer.Option(
            "--source",
            help=(
                "Feature source; auto uses dinov2 if its weights are on disk, otherwise imagenet, which is "
                "included; descriptor is for flat drawings."
            ),
        ),
    ] = "auto",
    base: BaseOption = None,
    num_parts: Annotated[
        int | None, typer.Option("--parts", help="Number of foreground parts; default: estimated.")
    ] = None,
    kinds: Annotated[int | None, typer.Option("--kinds", help="Number of kinds per part; default: estimated.")] = None,
    names: Annotated[Path | None, typer.Option("--names", help="TOML file with names of parts and kinds.")] = None,
    flip_foreground: Annotated[bool, typer.Option("--flip-foreground", help="Swap foreground and background.")] = False,
    min_margin: Annotated[
        float | None,
        typer.Option(
            "--min-margin",
            help="Minimum by which the foreground must cover more of the centre than of the borders, -1 to 1.",
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pictures per batch.")] = None,
    sample_patches: Annotated[
        int | None, typer.Option("--sample-patches", help="Number of patches to fit the parts on.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Checkpoint of dinov2 or imagenet; default: the published one.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard the results of an earlier discovery in this folder.")
    ] = False,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    progress: ProgressOption = "line",
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="timm name of the vision transformer for dinov2: DINOv2, DINOv2 with registers, or DINOv3."
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            "--masks",
            help=(
                "Folder of masks with the names of their pictures and the object in white; transparent pictures "
                "count as masks too."
            ),
        ),
    ] = None,
) -> None:
    """Discover the parts of objects in a folder of pictures.

    Needs no labels; writes a codebook, part maps, captions and an HTML page.
    """
    existing(images, "folder")
    from ..discovery.discover import DiscoverSettings
    from ..discovery.discover import discover as run_discovery

    folder = page_folder(out, f"{images.resolve().name}-parts", ("report.json", "state"))
    # None means "not given": `checked` then keeps the default of the settings
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
    new_name: Annotated[str, typer.Argument(metavar="NEW", help="The new name.")],
) -> None:
    """Rename a part (`part 2`) or a kind (`head:17`)."""
    from ..discovery.edit_parts import rename_part

    rename_part(existing(folder, "folder"), name, new_name)
    typer.echo(f"{name} is now {new_name}")


@parts.command("merge")
def merge(
    folder: FolderArgument,
    names: Annotated[
        list[str], typer.Argument(metavar="PART...", help="Two or more parts or kinds; all are merged into the first.")
    ],
) -> None:
    """Merge parts, or kinds of one part (`head:3 head:7`).

    All are merged into the first one.
    """
    from ..discovery.edit_parts import merge_parts

    merge_parts(existing(folder, "folder"), names)
    typer.echo(f"{', '.join(names[1:])} joined {names[0]}")


@parts.command("drop")
def drop(
    folder: FolderArgument,
    names: Annotated[list[str], typer.Argument(metavar="PART...", help="Parts, or kinds as part:kind.")],
) -> None:
    """Exclude parts or kinds from training.

    Patches of a dropped part become background.
    """
    from ..discovery.edit_parts import drop_parts

    drop_parts(existing(folder, "folder"), names)
    typer.echo(f"dropped {', '.join(names)}")
