"""Figures of the demo: measured with the codebook, and independently with the ground truth of the drawings."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...concepts.files.atomic_file import write_text
from ...concepts.files.pack import ROOT
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ...demo.attribute_judge import ATTRIBUTES, AttributeJudge, species_classes
from ...demo.creatures import PARTS
from ..composing.picture_making import SamplingChoice
from ..evaluation.cases import TestCase
from ..evaluation.evaluate import PartsEvaluator, reencoded
from ..learning.discovery.discovery_folder import Discovery
from ..model.sampling import SamplingDenoiser
from .drawn_masks import DiscoveryScore, DrawnTruth, load_truth, score_discovery

STORED_EVALUATION = ROOT / "demo" / "stored_evaluation.json"
JUDGED = "judged.json"
CHOICE = SamplingChoice(steps=20, guidance=4.0)
"""Sampling settings of the demo."""


def judge_demo(
    out: Path,
    discovery: Discovery,
    dictionary: PartDictionary,
    denoiser: SamplingDenoiser,
    *,
    count: int,
    seed: int,
    report: Callable[[str], Callable[[int, int], None]],
) -> None:
    """Measure discovery, reconstructions and mixes of four sources; write `judged.json` to the demo's folder."""
    # the discovery orders pictures by path: bring the ground truth into the same order
    names = [path.name for path in discovery.image_paths]
    truth = load_truth(out).ordered_like(names)
    score = score_drawn_discovery(discovery, truth)
    tests = ("reconstruction", "mix4")
    evaluator = PartsEvaluator(discovery, denoiser, count=count, seed=seed, choice=CHOICE, tests=tests)
    ceiling = evaluator.ceiling()
    attributes = AttributeJudge.load()
    # images (N, 3, H, W) are judged twice, by the codebook and by the independent classifier
    figures: dict[str, Any] = {"discovery": discovery_figures(discovery, score)}
    for test, result in evaluator.run("creatures", dictionary, report).items():
        images = torch.stack([picture.image for picture in result.pictures])
        figures[test] = result.scores | {"judge": judge_looks(attributes, images, result.cases, truth, score)}
    # the drawings themselves: the upper bound of every score
    cases = evaluator.tests["reconstruction"]
    sources = [discovery.image_paths[case.pictures[0]] for case in cases]
    images = evaluator.judge.read(sources, denoiser.backbone.image_size)
    ceiling["real"]["judge"] = judge_looks(attributes, images, cases, truth, score)
    ceiling["reencoded"]["judge"] = judge_looks(attributes, reencoded(denoiser, images), cases, truth, score)
    write_text(out / JUDGED, json.dumps({**figures, "ceiling": ceiling, **stored_figures()}, indent=1) + "\n")


def score_drawn_discovery(discovery: Discovery, truth: DrawnTruth) -> DiscoveryScore:
    """Agreement of the discovered parts with the drawn ones."""
    return score_discovery(discovery.maps.labels.numpy(), discovery.codebook.background, truth.labels)


def discovery_figures(discovery: Discovery, score: DiscoveryScore) -> dict[str, Any]:
    """Figures of a discovery for metrics.json."""
    names = discovery.codebook.part_names
    return {
        "images": len(discovery.image_paths),
        "foreground_iou": score.foreground_iou,
        "part_miou": score.part_miou,
        "part_iou": score.ious,
        "matched": {names[part]: drawn for part, drawn in score.matched.items()},
    }


def judge_looks(
    judge: AttributeJudge, images: Tensor, cases: Sequence[TestCase], truth: DrawnTruth, score: DiscoveryScore
) -> dict[str, float]:
    """Share of parts that look like those of their source species, by a classifier of drawings.

    A drawn part is judged if a discovered part is matched to it and was requested. Independent of the codebook.

    Returns:
        Shares 0..1 of color, pattern, shape and all_three over `parts` judged parts.
    """
    seen = judge.classes(images).cpu()  # (N, 5, 3)
    # drawn part -> matched discovered part
    drawn = {PARTS.index(name): part for part, name in score.matched.items()}
    wanted = species_classes(truth.species)  # (pictures, 5, 3)
    right = []
    for row, case in enumerate(cases):
        # requested parts with a drawn counterpart -> source picture; a source of -1 means not requested
        sources = {number: case.sources[part] for number, part in drawn.items() if case.sources[part] >= 0}
        right += [seen[row, number] == wanted[source, number] for number, source in sources.items()]
    if not right:
        return {"parts": 0}
    hits = torch.stack(right).float()  # (judged parts, 3)
    shares = dict(zip(ATTRIBUTES, hits.mean(0).tolist(), strict=True))
    return {"parts": len(right), **shares, "all_three": float(hits.all(1).float().mean())}


def stored_figures() -> dict[str, Any]:
    """Figures of the baselines from the included evaluation; empty if none is stored.

    They were measured once over several seeds (`benchmarks/part_evaluation.py`), not by this demo.
    """
    if not STORED_EVALUATION.is_file():
        return {}
    stored = json.loads(STORED_EVALUATION.read_text(encoding="utf-8"))
    means = stored["means"]
    baselines = {name: means[name] for name in ("no_attention_loss", "textual_inversion") if name in means}
    return {**baselines, "stored_evaluation": stored}
