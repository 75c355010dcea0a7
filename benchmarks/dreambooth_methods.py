"""DreamBooth against textual inversion and part tokens on the drawn world: is the subject kept, is the prompt followed, is the class kept?

For every seed a held-out species is drawn five times. Every method learns from these five pictures for equally many steps at
equal batch size on the embedded model; then pictures of each are judged by the drawn world's own judge:
- subject: colour, pattern and shape of the five parts, for the plain prompt and, as `kept`, for prompts that name a place,
- prompt: the place that was named, and the colour that was asked for one part,
- class: mean distance between pictures of the class prompt, relative to the untouched model from the same seeds.

    python benchmarks/dreambooth_methods.py --out results --seeds 0 1 2

Every training and judgement is kept; a stopped run goes on where it was. Rows `untouched` (the class prompt, nothing learned) and
`words` (nothing learned, the looks written out) show the range.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import typer
from bestiary.concepts.files.atomic_file import replacing, write_text
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_map.part_map import ABSENT
from bestiary.demo.captions import look_words
from bestiary.demo.species import HELD_OUT_SPECIES, PARTS, PLACES, Species
from bestiary.trainer.composing.compose import add_adapters
from bestiary.trainer.composing.picture_making import PictureOrder, SamplingChoice, make_pictures
from bestiary.trainer.discovery.discover import DiscoverSettings, discover
from bestiary.trainer.evaluation.drawn_judge import DrawnJudge, color_changes, draw_subject, place_words
from bestiary.trainer.evaluation.dreambooth_pictures import Subject, SubjectModel, load_subject
from bestiary.trainer.evaluation.evaluate import mention
from bestiary.trainer.learning.discovery.discovery_folder import Discovery
from bestiary.trainer.learning.dreambooth.dreambooth_settings import load_dreambooth_recipe
from bestiary.trainer.learning.parts.settings import load_recipe
from bestiary.trainer.learning.pictures.contact_sheet import contact_sheet, to_image
from bestiary.trainer.learning.run.progress_report import progress_callback
from bestiary.trainer.model.backbones import load_denoiser
from bestiary.trainer.model.diffusers_denoiser import DiffusersDenoiser
from bestiary.trainer.training.tasks import resume_training
from bestiary.trainer.training.train_dreambooth import train_dreambooth
from bestiary.trainer.training.train_parts import train_parts
from PIL import Image
from torch import Tensor

INSTANCE, CLASS = "a photo of a {} creature", "a photo of a creature"
METHODS: dict[str, dict[str, object]] = {
    "prior_pictures": {"method.prior": "pictures"},
    "prior_model": {"method.prior": "model"},
    "no_prior": {"method.prior": "off"},
    "textual_inversion": {
        "method.prior": "off",
        "optimizer.lora_lr": 0.0,
        "method.vectors": 8,
        "optimizer.vector_lr": 3.0,
    },
}
"""Trainings of `bestiary train dreambooth`, by what they change of the recipe dreambooth_demo."""
PARTS_METHOD, WORDS, UNTOUCHED = "part_tokens", "words", "untouched"
ROWS = (UNTOUCHED, WORDS, *METHODS, PARTS_METHOD)
Sample = Callable[[str, Sequence[int]], Tensor]
"""What follows the subject in the prompt, and seeds -> pictures `(N, 3, 128, 128)` in 0..1."""


@dataclass(frozen=True)
class Method:
    """How pictures of one method are made."""

    of_subject: Sample
    of_class: Sample


class Seed:
    """Pictures, trainings and judgements of one seed, each kept in a file of its own."""

    def __init__(self, options: argparse.Namespace, seed: int, denoiser: DiffusersDenoiser) -> None:
        self.options, self.seed, self.denoiser = options, seed, denoiser
        self.folder = options.out / f"seed{seed}"
        self.species: Species = HELD_OUT_SPECIES[(3 * seed) % len(HELD_OUT_SPECIES)]
        self.model = SubjectModel(denoiser, SamplingChoice(options.sampling_steps, options.guidance))
        (self.folder / "pictures").mkdir(parents=True, exist_ok=True)
        for number, drawing in enumerate(draw_subject(self.species, options.pictures, seed)):
            with replacing(self.folder / "pictures" / f"{number}.png") as temporary:
                Image.fromarray(drawing).save(temporary, "PNG")

    def method(self, name: str) -> Method:
        """A row's way to its pictures, trained if it is not yet."""
        nothing = Subject(name, {}, {}, "")
        if name == UNTOUCHED:
            return Method(*(lambda more, seeds: self.model.sample(nothing, CLASS + more, seeds) for _ in range(2)))
        if name == WORDS:
            looks = " , ".join(look_words(part, self.species.look(part)) for part in PARTS)
            told = f"{CLASS} with {looks}"
            return Method(
                lambda more, seeds: self.model.sample(nothing, f"{told} {more.replace('with', ',')}", seeds),
                lambda more, seeds: self.model.sample(nothing, CLASS + more, seeds),
            )
        if name == PARTS_METHOD:
            return self._part_method()
        subject = self._dreambooth(name)
        return Method(
            lambda more, seeds: self.model.sample(subject, INSTANCE + more, seeds),
            lambda more, seeds: self.model.sample(subject, CLASS + more, seeds),
        )

    def judge(self, name: str, judge: DrawnJudge) -> dict[str, float]:
        """Make and judge the pictures of one row; the diversity is absolute here."""
        count, method = self.options.judged, self.method(name)
        seeds = [10_000 * self.seed + n for n in range(count)]
        plain = method.of_subject("", seeds)
        looks = judge.fidelity(plain)
        places = [PLACES[(self.seed + 2 * n) % len(PLACES)] for n in range(4)]
        there = [method.of_subject(f" {place_words(place)}", seeds[: count // 4]) for place in places]
        changes = color_changes(self.species, 2, self.seed)
        changed = [method.of_subject(f" {change.words}", seeds[: count // 2]) for change in changes]
        kind = method.of_class("", seeds)
        self._sheet(name, [plain, torch.cat([some[:2] for some in there]), torch.cat([c[:4] for c in changed]), kind])
        kept = judge.fidelity(torch.cat(there))
        return {
            **looks,
            "kept": sum(kept.values()) / len(kept),
            "place": _mean([judge.place(some, place) for some, place in zip(there, places, strict=True)]),
            "change": _mean([judge.change(some, change) for some, change in zip(changed, changes, strict=True)]),
            "diversity": judge.diversity(kind),
            "class_color": judge.fidelity(kind)["color"],
        }

    def _dreambooth(self, name: str) -> Subject:
        run, options = self.folder / name, self.options
        path = run / "creature.safetensors"
        if not path.is_file():
            values: dict[str, object] = {
                "images.instance": self.folder / "pictures", "images.class_images": options.out / "class",
                "images.class_count": options.class_pictures, "images.cache": self.folder / "latents", "run.out": run,
                "captions.instance_prompt": INSTANCE, "captions.class_prompt": CLASS, "optimizer.steps": options.steps,
                "optimizer.batch_size": options.batch_size, "run.seed": self.seed, "run.tensorboard": False,
                "run.device": options.device,
            }  # fmt: skip
            values |= _rates(options, "optimizer.lora_lr", "optimizer.vector_lr")
            settings = load_dreambooth_recipe("dreambooth_demo", values | METHODS[name])
            path = _resumed(run, name) or train_dreambooth(settings, on_progress=progress_callback(name)).path
        return load_subject(path)

    def _part_method(self) -> Method:
        """Parts of the five pictures, one kind of each, as tokens with a LoRA."""
        options, found = self.options, self.folder / "discovery"
        discover(
            DiscoverSettings(
                images=self.folder / "pictures", out=found, source="diffusion", base="demo", kinds=1, num_parts=5,
                seed=self.seed, device=options.device,
            ),
            progress_callback("discover"),
            denoiser=self.denoiser,
        )  # fmt: skip
        discovery, run = Discovery.load(found), self.folder / PARTS_METHOD
        path = run / "creatures.safetensors"
        if not path.is_file():
            values: dict[str, object] = {
                "discovery.folder": found, "run.out": run, "run.seed": self.seed, "optimizer.steps": options.steps,
                "optimizer.batch_size": options.batch_size, "optimizer.warmup": min(20, options.steps // 10),
                "run.tensorboard": False, "run.device": options.device,
            }  # fmt: skip
            values |= _rates(options, "optimizer.lora_lr")
            settings = load_recipe("demo", values)
            path = (
                _resumed(run, PARTS_METHOD) or train_parts(settings, on_progress=progress_callback(PARTS_METHOD)).path
            )
        dictionary = PartDictionary.load(path)
        codes = discovery.maps.codes  # (N, M)
        parts = [part for part in range(codes.shape[1]) if part != discovery.codebook.background]
        shown = [part for part in parts if bool((codes[:, part] != ABSENT).any())]
        tokens = " ".join(mention(dictionary, part, 0) for part in shown)

        def sample(prompt: str, seeds: Sequence[int]) -> Tensor:
            self.model.wear(Subject(PARTS_METHOD, {}, {}, ""))
            add_adapters(self.denoiser, {"parts": dictionary}, 1.0)
            orders = [PictureOrder(prompt, seed) for seed in seeds]
            made = make_pictures(self.denoiser, {"parts": dictionary}, orders, self.model.choice)
            self.denoiser.network.adapters.unload()
            return torch.stack([picture.image for picture in made])

        return Method(
            lambda more, seeds: sample(f"a photo of a {tokens} creature{more}", seeds),
            lambda more, seeds: sample(CLASS + more, seeds),
        )

    def _sheet(self, name: str, rows: Sequence[Tensor]) -> None:
        shown = [to_image(picture) for row in rows for picture in row[:8]]
        with replacing(self.folder / f"{name}.png") as temporary:
            contact_sheet(shown, [""] * len(shown), columns=8, tile=128).save(temporary, "PNG")


def main() -> None:
    """Do what has no result yet, then print the means."""
    options = _parse()
    denoiser = load_denoiser("demo", device=options.device)
    for seed in options.seeds:
        run_seed(options, seed, denoiser)
        whole = [done for done in options.seeds if all(_result(options, done, name).is_file() for name in ROWS)]
        summary = summarise(options, whole)
        write_text(options.out / "dreambooth_methods.json", json.dumps(summary, indent=1) + "\n")
    print_summary(summary)


def run_seed(options: argparse.Namespace, seed: int, denoiser: DiffusersDenoiser) -> None:
    """Train and judge what is missing of one seed."""
    missing = [name for name in ROWS if not _result(options, seed, name).is_file()]
    if not missing:
        return
    bench = Seed(options, seed, denoiser)
    judge = DrawnJudge(bench.species)
    for name in missing:
        started = time.monotonic()
        figures = {**bench.judge(name, judge), "seconds": round(time.monotonic() - started, 1)}
        write_text(_result(options, seed, name), json.dumps(figures, indent=1) + "\n")
        typer.echo(f"seed {seed} {name}: {figures}")


def summarise(options: argparse.Namespace, seeds: Sequence[int]) -> dict[str, object]:
    """Means over seeds, and every seed; diversity as a share of the untouched model's."""
    by_seed = {seed: {name: _read(options, seed, name) for name in ROWS} for seed in seeds}
    for rows in by_seed.values():
        whole = rows[UNTOUCHED]["diversity"]
        for figures in rows.values():
            figures["diversity"] /= whole
    means = {
        name: {key: round(_mean([rows[name][key] for rows in by_seed.values()]), 4) for key in by_seed[seeds[0]][name]}
        for name in ROWS
        if seeds
    }
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    return {
        "made_by": "benchmarks/dreambooth_methods.py",
        "seeds": list(seeds),
        "settings": settings,
        "means": means,
        "by_seed": by_seed,
    }


def print_summary(summary: Mapping[str, object]) -> None:
    """One line for each row."""
    means = summary["means"]
    assert isinstance(means, Mapping)
    names = ("color", "pattern", "shape", "kept", "place", "change", "diversity", "class_color")
    typer.echo(f"{'method':<20}" + "".join(f"{name:>12}" for name in names))
    for method, figures in means.items():
        typer.echo(f"{method:<20}" + "".join(f"{figures[name]:12.3f}" for name in names))


def _resumed(run: Path, name: str) -> Path | None:
    """What a stopped training of this folder comes to; None where there is none."""
    if not list((run / "state").glob("step-*.safetensors")):
        return None
    return resume_training(run, on_progress=progress_callback(name)).path


def _rates(options: argparse.Namespace, *keys: str) -> dict[str, object]:
    """Learning rates that were given in place of the recipes' own."""
    given = {"optimizer.lora_lr": options.lora_lr, "optimizer.vector_lr": options.vector_lr}
    return {key: given[key] for key in keys if given[key] is not None}


def _result(options: argparse.Namespace, seed: int, name: str) -> Path:
    return options.out / f"seed{seed}" / f"{name}.json"


def _read(options: argparse.Namespace, seed: int, name: str) -> dict[str, float]:
    return json.loads(_result(options, seed, name).read_text(encoding="utf-8"))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, default=5, help="drawings of the subject")
    parser.add_argument("--class-pictures", type=int, default=40)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lora-lr", type=float, help="of every LoRA; left out: the recipes' own")
    parser.add_argument("--vector-lr", type=float, help="of DreamBooth's identifier; left out: the recipe's own")
    parser.add_argument("--judged", type=int, default=48, help="pictures of every figure")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
