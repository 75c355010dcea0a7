"""Trains the prompt spectra that ship in demo/concepts/, each on one drawing of a creature, with one command.

    python docs/make_spectra.py [--only NAME...] [--steps N] [--work FOLDER]

The three differ in everything: side, place, light, and shape, colour and pattern of every part. Afterwards write the example
workflows that use them again (`make_workflows.py --only mix_attributes spectrum_for_a_while`).
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

import numpy as np
from bestiary.concepts.files.atomic_file import replacing
from bestiary.concepts.spectrum.spectrum_file import load_spectrum, save_spectrum
from bestiary.demo.creatures import PARTS, PartLook, Scene, Species, draw_creature
from bestiary.trainer.learning.spectrum.spectrum_settings import load_spectrum_recipe
from bestiary.trainer.training.train_spectrum import train_spectrum
from PIL import Image

CONCEPTS = Path(__file__).parent.parent / "demo" / "concepts"
Look = tuple[str, str, str]
REFERENCES: dict[str, tuple[Scene, tuple[Look, ...]]] = {
    "meadow_lark": (
        Scene("meadow", "day", "left"),
        (
            ("crested", "yellow", "plain"),
            ("round", "orange", "plain"),
            ("feathered", "yellow", "plain"),
            ("forked", "orange", "plain"),
            ("bent", "black", "plain"),
        ),
    ),
    "swamp_drake": (
        Scene("swamp", "day", "right"),
        (
            ("horned", "red", "striped"),
            ("humped", "red", "striped"),
            ("batlike", "purple", "striped"),
            ("spiked", "red", "striped"),
            ("sturdy", "purple", "striped"),
        ),
    ),
    "snow_moth": (
        Scene("snow", "night", "right"),
        (
            ("eared", "cyan", "spotted"),
            ("pear", "white", "spotted"),
            ("lobed", "blue", "spotted"),
            ("bushy", "cyan", "spotted"),
            ("webbed", "blue", "spotted"),
        ),
    ),
}
"""Name of a spectrum -> scene, and shape, colour and pattern of head, body, wing, tail and legs."""

log = logging.getLogger("make_spectra")


def draw(name: str, number: int, folder: Path) -> Path:
    """Draws one reference; the picture's path."""
    scene, looks = REFERENCES[name]
    species = Species(name, tuple(PartLook(*look) for look in looks))
    if len(looks) != len(PARTS):
        raise ValueError(f"{name} has looks for {len(looks)} parts, a creature has {len(PARTS)}: {', '.join(PARTS)}")
    drawing = draw_creature(species, np.random.default_rng((number, 12)), scene=scene)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{name}.png") as temporary:
        Image.fromarray(drawing.image).save(temporary, "PNG")
    return folder / f"{name}.png"


def train(name: str, number: int, steps: int | None, work: Path) -> Path:
    """Trains one spectrum and puts it beside the shipped dictionary; its path."""
    values = {
        "images.source": draw(name, number, work / name), "base.path": "demo", "method.initial_words": "creature",
        "run.out": work / "runs" / name, "run.name": name, "run.preview_every": 0, "run.tensorboard": False,
    }  # fmt: skip
    if steps:
        values["optimizer.steps"] = steps
    trained = train_spectrum(load_spectrum_recipe("spectrum_demo", values))
    target = CONCEPTS / f"{name}.spectrum.safetensors"
    save_spectrum(load_spectrum(trained.path), target)
    return target


def main() -> None:
    """Reads the command line and trains what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(REFERENCES), default=list(REFERENCES), help="these alone")
    parser.add_argument("--steps", type=int, help="training steps of each; left out: the recipe's")
    parser.add_argument("--work", type=Path, help="folder for drawings and runs; left out: one that is removed")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        for number, name in enumerate(REFERENCES):
            if name in chosen.only:
                log.info("%s", train(name, number, chosen.steps, work))


if __name__ == "__main__":
    main()
