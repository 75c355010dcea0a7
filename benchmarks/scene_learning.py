"""Does learning from scenes help to draw two learned creatures in one picture? On the drawn world, at equal steps and pixels.

Four held-out species of six pictures each; the parts are the drawings' own, so that a discovery's faults stay out. Three arms learn
part tokens and a LoRA on the embedded model:
- single: the pictures alone, 128 x 128;
- wide: one creature on 256 x 128, half as many in a batch;
- scenes: batches of single pictures and of two creatures on 256 x 128 in turn, two thirds as many in a batch.
Then the 12 ordered pairs of species are drawn at 256 x 128, with one prompt for both and with a prompt for each half, and each
species alone at 128 x 128. The judge of attributes looks at windows of the picture: `cp` is the mean likeness of the creatures that
were found (our reading of CP-CLIP, on looks in place of CLIP), `both` the share of pictures with both of them, `match` the likeness
of the best places, found or not; TI needs a CLIP model and is left out. `one` is the match of a single creature.

    python benchmarks/scene_learning.py --out results --seeds 0 1 2 --steps 100 200 300

Trainings go on from their newest state and judgements are kept: a stopped run goes on where it was, and later steps can be added.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import find_bestiary  # noqa: F401 - before the first import of bestiary
import numpy as np
import torch
import typer
from bestiary.concepts.files.atomic_file import replacing, write_text
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_map.foreground import CentroidForeground
from bestiary.concepts.part_map.part_codebook import PartCodebook
from bestiary.concepts.part_map.part_map import PartMaps
from bestiary.concepts.part_map.part_model import CentroidParts
from bestiary.demo.creatures import Drawing, draw_creature
from bestiary.demo.scenery import cut_window
from bestiary.demo.species import HELD_OUT_SPECIES, PARTS, Species, random_scene
from bestiary.scenes.collage import NO_PART, compose
from bestiary.scenes.scene_layout import Placement, SceneLayout
from bestiary.scenes.scene_scores import score_places
from bestiary.scenes.scene_set import SceneEntry, SceneSet
from bestiary.scenes.subject import PictureSource, Subject
from bestiary.trainer.composing.compose import add_adapters
from bestiary.trainer.composing.picture_making import PictureOrder, SamplingChoice, make_pictures
from bestiary.trainer.composing.prompt_regions import PLACES, PromptRegion
from bestiary.trainer.evaluation.evaluate import mention
from bestiary.trainer.evaluation.scene_judges import DrawnSceneJudge, KnownSubject
from bestiary.trainer.learning.discovery.discovery_folder import PART_MAPS, write_lines, write_maps, write_report
from bestiary.trainer.learning.parts.settings import load_recipe
from bestiary.trainer.learning.pictures.contact_sheet import contact_sheet
from bestiary.trainer.learning.run.processes import SingleProcess
from bestiary.trainer.learning.run.run_folder import RunFolder
from bestiary.trainer.model.backbones import load_denoiser
from bestiary.trainer.training.train import train_in
from bestiary.trainer.training.train_parts import PartTask
from PIL import Image

SPECIES, PICTURES, EDGE, CELL = 4, 6, 128, 8
SCENES = 24
PROMPT = "a photo of a {} creature"
WAYS = ("one prompt", "regions", "one")
BACKGROUND = len(PARTS)


@dataclass(frozen=True)
class Arm:
    """What is learned from."""

    creatures: int
    """In each scene; 0 has no scenes."""
    share: float
    """Of batches that hold scenes."""
    batch: int
    """Pictures in a batch where `--batch` is 6: equal pixels in the mean."""


ARMS = {"single": Arm(0, 0.5, 6), "wide": Arm(1, 1.0, 3), "scenes": Arm(2, 0.5, 4)}


class Seed:
    """Pictures, sets, trainings and judgements of one seed."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options, self.seed = options, seed
        self.folder: Path = options.out / f"seed{seed}"
        first = SPECIES * seed
        self.species: list[Species] = [
            HELD_OUT_SPECIES[(first + number) % len(HELD_OUT_SPECIES)] for number in range(SPECIES)
        ]
        rng = np.random.default_rng((seed, 1))
        self.drawings = [draw_creature(self.species[row % SPECIES], rng) for row in range(SPECIES * PICTURES)]
        if not (self.folder / "found" / "report.json").is_file():
            self._write_pictures()

    def _write_pictures(self) -> None:
        """The drawings as a folder of pictures, and their own parts as its discovery."""
        names = [f"{row:04d}.png" for row in range(len(self.drawings))]
        (self.folder / "pictures").mkdir(parents=True, exist_ok=True)
        for name, drawing in zip(names, self.drawings, strict=True):
            with replacing(self.folder / "pictures" / name) as temporary:
                Image.fromarray(drawing.image).save(temporary, "PNG")
        labels = np.stack([part_labels(one, BACKGROUND)[CELL // 2 :: CELL, CELL // 2 :: CELL] for one in self.drawings])
        kinds = np.arange(len(names)) % SPECIES
        codes = np.full((len(names), BACKGROUND + 1), -1)  # (N, M)
        for part in range(BACKGROUND):
            codes[:, part] = np.where((labels == part).any((1, 2)), kinds, -1)
        codes[:, BACKGROUND] = 0
        found, count = self.folder / "found", BACKGROUND + 1
        fine = (*(torch.eye(SPECIES) for _ in PARTS), torch.eye(1, SPECIES))
        PartCodebook(
            feature_spec={"name": "descriptor"}, width=SPECIES, grid=labels.shape[1:], part_names=(*PARTS, "background"),
            background=BACKGROUND, foreground=CentroidForeground(torch.eye(2, SPECIES), 0),
            parts=CentroidParts(torch.eye(count, SPECIES), torch.arange(count)), fine=fine, kind_names=({},) * count,
        ).save(found / "codebook.parts.safetensors")  # fmt: skip
        maps = PartMaps(torch.from_numpy(labels.astype(np.uint8)), torch.from_numpy(codes))
        write_maps(found / PART_MAPS, [maps], len(names), labels.shape[1:], count)
        write_lines(found / "images.txt", names)
        write_report(found, {"images_folder": str(self.folder / "pictures"), "images_folder_relative": "../pictures"})

    def scenes(self, creatures: int) -> Path:
        """A set of scenes with so many creatures each, on 256 x 128."""
        folder = self.folder / f"scenes{creatures}"
        if (folder / "metadata.jsonl").is_file():
            return folder
        made, rng = SceneSet(folder), np.random.default_rng((self.seed, 2, creatures))
        for number in range(SCENES):
            rows = [
                (number + SPECIES // 2 * place + place * int(rng.integers(1, SPECIES))) for place in range(creatures)
            ]
            rows = [row % len(self.drawings) for row in rows]
            if creatures == 2 and rows[0] % SPECIES == rows[1] % SPECIES:
                rows[1] = (rows[1] + 1) % len(self.drawings)
            lefts = [EDGE * place for place in range(creatures)] if creatures > 1 else [int(rng.integers(EDGE + 1))]
            subjects, placed = [], []
            for row, left in zip(rows, lefts, strict=True):
                subject, (x, y) = self._subject(row)
                height, width = subject.cutout.shape[:2]
                subjects.append(subject)
                placed.append(Placement(subject.name, left + x, y, width, height))
            scene = random_scene(rng)
            place = np.concatenate([cut_window(scene.place, scene.light, rng) for _ in range(2)], axis=1)
            layout = SceneLayout(2 * EDGE, EDGE, tuple(placed))
            composed = compose(subjects, layout, place.round().clip(0, 255).astype(np.uint8))
            made.write(f"{number + 1:06d}", SceneEntry(composed, "a photo of creatures"), "drawn")
        made.finish()
        return folder

    def _subject(self, row: int) -> tuple[Subject, tuple[int, int]]:
        """The creature of a drawing, and where its left upper corner was."""
        drawing, file = self.drawings[row], self.folder / "pictures" / f"{row:04d}.png"
        ys, xs = np.nonzero(drawing.labels)
        box = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)
        parts = part_labels(drawing, NO_PART)[box]
        cutout = np.dstack([drawing.image[box], np.where(parts == NO_PART, 0, 255).astype(np.uint8)])
        source = PictureSource(file.resolve().as_posix())
        subject = Subject(f"creature {row}", cutout, "creature", "medium", parts=parts, source=source)
        return subject, (int(xs.min()), int(ys.min()))

    def learned(self, name: str, steps: int) -> Path:
        """The dictionary of an arm after so many steps."""
        file = self.folder / f"{name}_{steps}.safetensors"
        if file.is_file():
            return file
        arm, options = ARMS[name], self.options
        flags: dict[str, object] = {
            "discovery.folder": self.folder / "found", "images.cache": self.folder / "latents", "run.device": "cpu",
            "run.seed": self.seed, "run.save_every": 20, "run.preview_every": 0, "run.out": self.folder / name,
            "optimizer.batch_size": max(1, round(arm.batch * options.batch / 6)), "optimizer.steps": steps,
            "optimizer.schedule": "constant", "optimizer.warmup": 0, "optimizer.ema": 0.0, "run.tensorboard": False,
        }  # fmt: skip
        if arm.creatures:
            flags |= {"images.scenes": self.scenes(arm.creatures), "images.scene_share": arm.share}
        task = PartTask(load_recipe("demo", flags))
        run = RunFolder(self.folder / name)
        if not run.path.exists():
            run = RunFolder.create(run.path)
        trained = train_in(task, run, SingleProcess(), "cpu", None)
        with replacing(file) as temporary:
            temporary.write_bytes(trained.path.read_bytes())
        return file

    def judged(self, name: str, steps: int, judge: DrawnSceneJudge) -> dict[str, dict[str, float]]:
        """Figures by way; kept in a file."""
        path = self.folder / f"{name}_{steps}.json"
        if path.is_file():
            return json.loads(path.read_text("utf-8"))
        dictionary = PartDictionary.load(self.learned(name, steps))
        denoiser = load_denoiser("demo", device="cpu", dtype="fp32")
        add_adapters(denoiser, {"creatures": dictionary}, 1.0)
        words = [self._words(dictionary, number) for number in range(SPECIES)]
        known = [KnownSubject(one.name, "creature", species=one) for one in self.species]
        figures: dict[str, dict[str, float]] = {}
        for way in WAYS:
            asked = list(permutations(range(SPECIES), 2)) if way != "one" else [(number,) for number in range(SPECIES)]
            scores, shown = [], []
            for place, chosen in enumerate(asked):
                said = " and a ".join(f"{words[number]} creature" for number in chosen)
                sides = zip(("left", "right"), chosen, strict=False)
                regions = [PromptRegion(PLACES[side], PROMPT.format(words[number])) for side, number in sides]
                size = (EDGE, 2 * EDGE) if len(chosen) > 1 else EDGE
                choice = SamplingChoice(self.options.sampling_steps, self.options.guidance, size, "dpmpp_2m", 8.0)
                orders = [PictureOrder(f"a photo of a {said}", 100 * self.seed + place)]
                (made,) = make_pictures(
                    denoiser, {"creatures": dictionary}, orders, choice, regions=regions if way == "regions" else ()
                )
                shown.append(made.to_image())
                scores.append(score_places(judge.look(shown[-1], [known[number] for number in chosen])))
            figures[way] = {
                "cp": float(np.mean([one.cp for one in scores])),
                "both": float(np.mean([one.found == 1 for one in scores])),
                "match": float(np.mean([one.match for one in scores])),
            }
            sheet = contact_sheet(shown, [" + ".join(self.species[n].name for n in chosen) for chosen in asked])
            sheet.save(self.folder / f"{name}_{steps}_{way.replace(' ', '_')}.png")
        write_text(path, json.dumps(figures, indent=1) + "\n")
        return figures

    def _words(self, dictionary: PartDictionary, kind: int) -> str:
        rows = {tuple(row) for row in dictionary.rows.tolist()}
        return " ".join(mention(dictionary, part, kind) for part in range(BACKGROUND) if (part, kind) in rows)


def part_labels(drawing: Drawing, none: int) -> np.ndarray:
    """Part of every pixel `(H, W)` uint8, `none` for the background."""
    return np.where(drawing.labels == 0, none, drawing.labels.astype(np.int64) - 1).astype(np.uint8)


def main() -> None:
    """Train and judge what is not yet, step by step, and print the curve."""
    options = _parse()
    torch.set_num_threads(1)
    judge = DrawnSceneJudge()
    results: dict[tuple[str, int], list[Mapping[str, Mapping[str, float]]]] = {}
    for seed in options.seeds:
        one = Seed(options, seed)
        for steps in options.steps:
            for name in options.arms:
                results.setdefault((name, steps), []).append(one.judged(name, steps, judge))
                typer.echo(f"seed {seed}, {name}, {steps} steps: {results[name, steps][-1]}", err=True)
    _print(results, options)


def _print(
    results: Mapping[tuple[str, int], Sequence[Mapping[str, Mapping[str, float]]]], options: argparse.Namespace
) -> None:
    columns = [(way, figure) for way in WAYS[:2] for figure in ("cp", "both", "match")] + [("one", "match")]
    typer.echo("arm, steps".ljust(16) + "".join(f"{way}: {figure}".rjust(19) for way, figure in columns))
    rows = {}
    for (name, steps), seeds in results.items():
        means = [float(np.mean([seed[way][figure] for seed in seeds])) for way, figure in columns]
        rows[f"{name}, {steps}"] = [round(mean, 3) for mean in means]
        typer.echo(f"{name}, {steps}".ljust(16) + "".join(f"{mean:.2f}".rjust(19) for mean in means))
    kept = {"made_by": "benchmarks/scene_learning.py", "seeds": options.seeds, "columns": columns, "rows": rows}
    write_text(options.out / "scene_learning.json", json.dumps(kept, indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 200, 300])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument(
        "--batch", type=int, default=6, help="single pictures in a batch; the other arms hold as many pixels"
    )
    parser.add_argument("--sampling-steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=4.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
