"""What a training set of scenes costs: CPU seconds and memory of `bestiary scenes build`, and the seams of what a model repaints.

Photographs of four subjects and of places in one folder (`cat.jpg`, perhaps `cat_mask.png`; places begin with `garden`) become 40
scenes of 768 x 768 with one to four subjects. Cut-outs are made before the clock starts; the build runs in a process of its own.
With `--repaint` six scenes of 256 x 256 are painted by the embedded model besides: how hard the subjects' edges are against the collage.

    python benchmarks/bench_scene_set.py --photos FOLDER --weights isnet.safetensors --out results [--repaint]
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import find_bestiary
import numpy as np
import typer
from bestiary.concepts.files.atomic_file import write_text
from bestiary.scenes.set_files import read_records
from bestiary.trainer.scenes.cutout_cache import FOLDER as CUTOUTS

SUBJECTS = {"cat": "cat", "dog_1": "dog", "dog_2": "dog", "teddy": "teddy bear"}
COMMAND = """
import resource, sys
import find_bestiary
from bestiary.trainer.__main__ import main
code = main(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
sys.exit(code)
"""
"""Runs a command and writes the most memory that it took, in KiB."""


def main() -> None:
    """Build and measure, and print the figures."""
    options = _parse()
    folder: Path = options.out / "scene_set"
    recipe = write_recipe(options, folder)
    if not (folder / "few" / "provenance.json").is_file():
        run(options, folder, "scenes", "build", str(recipe), "--out", str(folder / "few"), "--count", "1")
    begin(folder, "many")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(options, folder, "scenes", "build", str(recipe), "--out", str(folder / "many"), "--count", str(options.count))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures: dict[str, float | int] = {
        "scenes": len(list(read_records(folder / "many"))),
        "cpu_seconds": round(seconds, 1),
        "per_scene": round(seconds / options.count, 2),
        "peak_mib": peak_of(folder / "many.peak"),
    }
    run(options, folder, "scenes", "verify", str(folder / "many"))
    typer.echo(json.dumps(figures), err=True)
    if options.repaint:
        figures |= repaint(options, folder, recipe)
    write_text(options.out / "bench_scene_set.json", json.dumps(figures, indent=1) + "\n")
    for name, value in figures.items():
        typer.echo(f"{name:<16}{value}")


def begin(folder: Path, name: str) -> Path:
    """A new set that has its cut-outs already: they are kept by content."""
    shutil.rmtree(folder / name, ignore_errors=True)
    shutil.copytree(folder / "few" / CUTOUTS, folder / name / CUTOUTS)
    return folder / name


def write_recipe(options: argparse.Namespace, folder: Path) -> Path:
    """The photographs sorted into folders, and the recipe of their set."""
    for name in SUBJECTS:
        (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
        for file in (f"{name}.jpg", f"{name}_mask.png"):
            if (options.photos / file).is_file():
                shutil.copy(options.photos / file, folder / "photos" / name / file)
    (folder / "photos" / "places").mkdir(exist_ok=True)
    for file in options.photos.glob("garden*.jpg"):
        shutil.copy(file, folder / "photos" / "places" / file.name)
    subjects = "".join(
        f'[[subjects]]\nname = "{name.replace("_", " ")}"\nwords = "{words}"\nfolder = "{folder.resolve() / "photos" / name}"\n'
        for name, words in SUBJECTS.items()
    )
    recipe = folder / "scenes.toml"
    text = f'kind = "scenes"\nper_scene = [1, 2, 3, 4]\n[layout]\nwidth = 768\nheight = 768\n{subjects}'
    write_text(recipe, f'{text}[background]\nmode = "photo"\nfolder = "{folder.resolve() / "photos" / "places"}"\n')
    return recipe


def repaint(options: argparse.Namespace, folder: Path, recipe: Path) -> dict[str, float | int]:
    """Seams of six scenes that the embedded model painted."""
    small, sides = begin(folder, "small"), ("layout.width=256", "layout.height=256")
    given = [part for side in sides for part in ("--set", side)]
    run(options, folder, "scenes", "build", str(recipe), "--out", str(small), "--count", "6", *given)
    shutil.copytree(small / "images", folder / "collages", dirs_exist_ok=True)
    limits = ("--set", "repaint.most_seam=1000", "--set", "repaint.least_variation=0")
    run(options, folder, "scenes", "repaint", str(small), "--with", "model", *limits)
    seams = [record.scores["seam"] for record in read_records(small) if "seam" in record.scores]
    return {
        "repainted": len(seams),
        "seam_mean": round(float(np.mean(seams)), 2),
        "seam_most": round(float(np.max(seams)), 2),
    }


def run(options: argparse.Namespace, folder: Path, *command: str) -> None:
    """A command in a process of its own, whose peak of memory is kept beside its output."""
    weights = ["--weights", str(options.weights)] if options.weights and "verify" not in command else []
    quiet = [] if "verify" in command else ["--progress", "off"]
    name = next((Path(part).name for place, part in enumerate(command) if place and command[place - 1] == "--out"), "x")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(find_bestiary.ROOT / "benchmarks")}
    line = [sys.executable, "-c", COMMAND, str(folder / f"{name}.peak"), *command, *weights, *quiet]
    done = subprocess.run(line, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")


def peak_of(path: Path) -> int:
    """MiB of resident memory that a process took at most."""
    return int(path.read_text()) // 1024


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="IS-Net, for photographs without a mask")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--repaint", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
