"""Training in the graph against the command line, by what the dictionaries draw, on the drawn world.

For every seed: the drawings and the discovery of part_evaluation.py; then a dictionary is trained on ComfyUI's own MODEL, CLIP
and VAE by what Train Parts runs, with the settings of the demo's recipe, and judged as `ours` was there. The command line's
figures are read from demo/stored_evaluation.json, or its training is run again beside it with `--both`.

    COMFYUI_PATH=... python benchmarks/graph_part_evaluation.py --out results --seeds 0 1 2
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from bench_attention_capture import import_comfyui
from bestiary.concepts.files.atomic_file import write_text
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.trainer.demo.drawn_masks import PICTURES, draw_pictures
from bestiary.trainer.demo.judging import CHOICE, STORED_EVALUATION
from bestiary.trainer.discovery.discover import DiscoverSettings, discover
from bestiary.trainer.evaluation.evaluate import PartsEvaluator
from bestiary.trainer.learning.discovery.discovery_folder import Discovery
from bestiary.trainer.learning.parts.settings import load_recipe
from bestiary.trainer.learning.run.progress_report import progress_callback
from bestiary.trainer.learning.run.run_folder import RunFolder
from bestiary.trainer.model.backbones import load_denoiser
from part_evaluation import train_method
from PIL import Image

TESTS = ("reconstruction", "mix1", "mix2", "mix3", "mix4")


def main() -> None:
    """Train and judge what has no result yet, then print both ways side by side."""
    options = _parse()
    stored = json.loads(STORED_EVALUATION.read_text(encoding="utf-8"))
    steps = stored["steps"]
    results = {seed: run_seed(options, seed, steps) for seed in options.seeds}
    if not options.both:
        for seed, result in results.items():
            figures = stored["by_seed"][str(seed)]["ours"]
            result["command_line"] = {test: figures[test]["emr"] for test in TESTS}
    summary = {"made_by": "benchmarks/graph_part_evaluation.py", "steps": steps, "emr": results}
    write_text(options.out / "graph_part_evaluation.json", json.dumps(summary, indent=1) + "\n")
    typer.echo("EMR" + " " * 18 + "".join(f"{test:>16}" for test in TESTS))
    for seed, result in results.items():
        for way, figures in result.items():
            typer.echo(f"seed {seed} {way:<14}" + "".join(f"{figures[test]:16.3f}" for test in TESTS))


def run_seed(options: argparse.Namespace, seed: int, steps: int) -> dict[str, dict[str, float]]:
    """EMR by way and test of one seed."""
    folder = options.out / f"seed{seed}"
    ways = ("graph", "command_line") if options.both else ("graph",)
    missing = [way for way in ways if not (folder / f"{way}.json").is_file()]
    if missing:
        draw_pictures(folder, options.pictures, seed)
        denoiser = load_denoiser("demo", device="cpu")
        found = {"images": folder / PICTURES, "out": folder / "discovery", "source": "diffusion", "base": "demo"}
        discover(DiscoverSettings(**found, kinds=options.kinds, seed=seed), denoiser=denoiser)
        discovery = Discovery.load(folder / "discovery")
        evaluator = PartsEvaluator(discovery, denoiser, count=options.judged, seed=seed, choice=CHOICE)
    for way in missing:
        started = time.monotonic()
        if way == "graph":
            dictionary = train_in_comfyui(folder, discovery, seed, steps)
        else:
            dictionary = train_method(folder, "ours", {}, options, seed)
        seconds = time.monotonic() - started
        tests = evaluator.run(way, dictionary, progress_callback)
        figures: dict[str, Any] = {test: result.scores["emr"] for test, result in tests.items()}
        write_text(folder / f"{way}.json", json.dumps({"emr": figures, "train_seconds": seconds}, indent=1) + "\n")
    return {way: json.loads((folder / f"{way}.json").read_text(encoding="utf-8"))["emr"] for way in ways}


def train_in_comfyui(folder: Path, discovery: Discovery, seed: int, steps: int) -> PartDictionary:
    """What Training Images and Train Parts do, on the model as ComfyUI loads it."""
    import_comfyui()
    from bestiary.nodes.demo.demo_model import load_demo_model
    from bestiary.nodes.host.graph_progress import GraphProgress
    from bestiary.nodes.host.socket_types import NamedCodebook
    from bestiary.nodes.part_map.picture_encoding import AREA
    from bestiary.nodes.part_map.seen_parts import SeenParts
    from bestiary.nodes.training.graph_fit import GraphModel, train_in_graph
    from bestiary.nodes.training.graph_training import PartsInGraph
    from bestiary.nodes.training.training_set import TrainingSetChoice, build_training_set

    model = GraphModel(*load_demo_model())
    pictures = [np.asarray(Image.open(path).convert("RGB"), np.float32) / 255 for path in discovery.image_paths]
    images = torch.from_numpy(np.stack(pictures))  # (N, H, W, 3)
    codebook = discovery.codebook
    seen = SeenParts(codebook.part_names, codebook.background, discovery.maps, (128, 128), AREA)
    named = NamedCodebook("creatures", codebook)
    training_set = build_training_set(
        [images], named, model.vae, TrainingSetChoice(), GraphProgress(None), part_maps=[seen]
    )
    values = {"base.path": "graph", "run.seed": seed, "run.log_every": 1, "run.tensorboard": False}
    values |= {"optimizer.steps": steps, "optimizer.warmup": min(20, steps // 10), "images.size": 128}
    settings = load_recipe("demo", values)
    run = RunFolder.create(folder / "train-graph")
    return train_in_graph(model, PartsInGraph(training_set, settings), run).concept


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, default=140)
    parser.add_argument("--kinds", type=int, default=14)
    parser.add_argument("--steps", type=int, help="of the command line's training with --both; left out: the recipe's")
    parser.add_argument("--judged", type=int, default=64)
    parser.add_argument("--both", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
