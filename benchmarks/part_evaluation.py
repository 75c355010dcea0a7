"""Our method against textual inversion and against itself without the attention loss, on the drawn world.

For every seed: draw pictures of held-out species, discover their parts, train three dictionaries for equally many steps
on the same pictures, then rebuild creatures and mix parts of 1 to 4 of them. Judged by the codebook (EMR, CoSim, absent
rate, attention IoU) and by the drawn world's own classifier. Textual inversion is told the species of every picture,
which ours is not; it learns one token for each.

    python benchmarks/part_evaluation.py --out results --seeds 0 1 2
    python benchmarks/part_evaluation.py --out results --seeds 0 1 2 --store

    python benchmarks/part_evaluation.py --out other --methods ours no_attention_loss --set method.part_words=

A stopped run goes on where it was. `--store` writes the figures to demo/stored_evaluation.json. `--set` changes the recipe of
all methods alike; `--base demo-dit --recipe demo_dit` takes another model of the drawn world.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import typer
from bestiary.concepts.files.atomic_file import write_text
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.demo.attribute_judge import AttributeJudge
from bestiary.trainer.demo.drawn_masks import PICTURES, TRUTH, draw_pictures, load_truth
from bestiary.trainer.demo.judging import (
    CHOICE,
    STORED_EVALUATION,
    discovery_figures,
    judge_looks,
    score_drawn_discovery,
)
from bestiary.trainer.discovery.discover import DiscoverSettings, discover
from bestiary.trainer.evaluation.evaluate import PartsEvaluator
from bestiary.trainer.learning.discovery.discovery_folder import Discovery
from bestiary.trainer.learning.parts.settings import load_recipe
from bestiary.trainer.learning.run.progress_report import progress_callback
from bestiary.trainer.model.backbones import DEMO, DEMO_DIT, EMBEDDED_BACKBONES, load_denoiser
from bestiary.trainer.training.train_parts import train_parts

METHODS: dict[str, dict[str, Any]] = {
    "ours": {},
    "no_attention_loss": {"attention_loss.weight": 0.0},
    "textual_inversion": {"method.kind": "textual_inversion", "attention_loss.weight": 0.0},
}


def main() -> None:
    """Run every (seed, method) that has no result yet, then print and perhaps store the means."""
    options = _parse()
    # every seed by itself, so that a stopped run loses at most one
    for seed in options.seeds:
        run_seed(options, seed)
    results = {seed: _read_seed(options, seed) for seed in options.seeds}
    summary = summarise(results, options)
    write_text(options.out / "part_evaluation.json", json.dumps(summary, indent=1) + "\n")
    print_summary(summary)
    if options.store:
        write_text(STORED_EVALUATION, json.dumps(summary, indent=1) + "\n")


def run_seed(options: argparse.Namespace, seed: int) -> None:
    """Draw, discover, train and judge all methods of one seed."""
    folder = options.out / f"seed{seed}"
    if all((folder / f"{method}.json").is_file() for method in options.methods):
        return
    # draw and discover, once for all methods
    draw_pictures(folder, options.pictures, seed)
    denoiser = load_denoiser(options.base, device=options.device)
    # a miniature transformer learns the parts that the embedded UNet finds, so that the two can be compared
    reader = DEMO if EMBEDDED_BACKBONES.get(denoiser.backbone.name) == DEMO_DIT else options.base
    settings = DiscoverSettings(
        images=folder / PICTURES,
        out=folder / "discovery",
        source="diffusion",
        base=reader,
        kinds=options.kinds,
        seed=seed,
    )
    discover(settings, progress_callback("discover"), denoiser=load_denoiser(reader, device=options.device))
    discovery = Discovery.load(folder / "discovery")
    truth = load_truth(folder).ordered_like([path.name for path in discovery.image_paths])
    score = score_drawn_discovery(discovery, truth)
    write_text(folder / "discovery.json", json.dumps(discovery_figures(discovery, score), indent=1) + "\n")
    evaluator = PartsEvaluator(discovery, denoiser, count=options.judged, seed=seed, choice=CHOICE)
    if not (folder / "ceiling.json").is_file():
        write_text(folder / "ceiling.json", json.dumps(evaluator.ceiling(), indent=1) + "\n")
    # every method: train, make pictures (N, 3, H, W), judge
    judge = AttributeJudge.load()
    for method in options.methods:
        if (folder / f"{method}.json").is_file():
            continue
        started = time.monotonic()
        dictionary = train_method(folder, method, {**dict(options.overrides), **METHODS[method]}, options, seed)
        figures: dict[str, Any] = {"train_seconds": time.monotonic() - started}
        for test, result in evaluator.run(method, dictionary, _report).items():
            images = torch.stack([picture.image for picture in result.pictures])
            figures[test] = result.scores | {"judge": judge_looks(judge, images, result.cases, truth, score)}
        write_text(folder / f"{method}.json", json.dumps(figures, indent=1) + "\n")


def train_method(
    folder: Path, method: str, overrides: Mapping[str, Any], options: argparse.Namespace, seed: int
) -> PartDictionary:
    """Train one method with the demo's recipe."""
    values = {
        "base.path": options.base,
        "discovery.folder": folder / "discovery",
        "run.out": folder / f"train-{method}",
        "run.seed": seed,
        **overrides,
    }
    # the warm-up of a short training must stay shorter than the training
    if options.steps:
        values |= {"optimizer.steps": options.steps, "optimizer.warmup": min(20, options.steps // 10)}
    # textual inversion is told what the pictures show, which ours is not
    if method == "textual_inversion":
        values["images.labels"] = folder / TRUTH / "labels.csv"
    result = train_parts(load_recipe(options.recipe, values), on_progress=progress_callback(method))
    return PartDictionary.load(result.path)


def summarise(results: Mapping[int, Mapping[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Figures of every seed and their means over the seeds."""
    # figures by method, then their means over the seeds
    methods = {method: [result[method] for result in results.values()] for method in options.methods}
    tests = [test for test in methods[options.methods[0]][0] if test != "train_seconds"]
    # means over seeds of every figure, however deep it lies
    means = {method: {test: _mean([run[test] for run in runs]) for test in tests} for method, runs in methods.items()}
    return {
        "made_by": "benchmarks/part_evaluation.py",
        "seeds": list(results),
        "pictures": options.pictures,
        "judged": options.judged,
        "steps": options.steps or load_recipe(options.recipe).optimizer.steps,
        "settings": dict(options.overrides),
        "means": means,
        "discovery": _mean([result["discovery"] for result in results.values()]),
        "ceiling": _mean([result["ceiling"] for result in results.values()]),
        "by_seed": {
            str(seed): {name: _headlines(result[name]) for name in options.methods} for seed, result in results.items()
        },
    }


def print_summary(summary: Mapping[str, Any]) -> None:
    """The means, and in how many seeds ours is ahead."""
    typer.echo(f"{'method':<20}{'test':<16}{'EMR':>8}{'CoSim':>8}{'absent':>8}{'IoU':>8}{'colour':>8}{'shape':>8}")
    for method, tests in summary["means"].items():
        for test, scores in tests.items():
            figures = [scores[name] for name in ("emr", "cosim", "absent_rate", "attention_iou")]
            figures += [scores["judge"].get(name) for name in ("color", "shape")]
            shown = "".join(f"{'-':>8}" if value is None else f"{value:8.3f}" for value in figures)
            typer.echo(f"{method:<20}{test:<16}{shown}")
    # in how many seeds ours is ahead, since means hide it
    for baseline in [method for method in summary["means"] if method != "ours" and "ours" in summary["means"]]:
        for test in ("reconstruction", "mix4"):
            for metric in ("emr", "cosim"):
                seeds = summary["by_seed"].values()
                ahead = sum(seed["ours"][test][metric] > seed[baseline][test][metric] for seed in seeds)
                typer.echo(f"ours ahead of {baseline} on {test} {metric}: {ahead} of {len(summary['seeds'])} seeds")


def _mean(records: list[Any]) -> Any:
    """Mean of equal-shaped records, number by number; None where any is missing."""
    # records of records are averaged entry by entry, over the entries that all have
    if isinstance(records[0], Mapping):
        shared = [key for key in records[0] if all(key in record for record in records)]
        return {key: _mean([record[key] for record in records]) for key in shared}
    if any(not isinstance(record, int | float) for record in records):
        return records[0] if all(record == records[0] for record in records) else None
    return round(sum(records) / len(records), 4)


def _headlines(figures: Mapping[str, Any]) -> dict[str, Any]:
    wanted = ("emr", "cosim", "absent_rate", "attention_iou", "judge")
    return {
        test: {name: scores[name] for name in wanted} for test, scores in figures.items() if test != "train_seconds"
    }


def _read_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    folder = options.out / f"seed{seed}"
    names = [*options.methods, "discovery", "ceiling"]
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in names}


def _report(stage: str) -> Callable[[int, int], None]:
    return progress_callback(stage)


def _setting(text: str) -> tuple[str, Any]:
    """A recipe's key and its value: a number, or text."""
    key, value = text.split("=", 1)
    try:
        return key, float(value)
    except ValueError:
        return key, value


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, default=140)
    parser.add_argument("--kinds", type=int, default=14)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", type=_setting, nargs="+", default=[])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--judged", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--base", default="demo")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--store", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
