"""The page of an evaluation: pictures first, then the figures of every dictionary side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..learning.discovery.discovery_folder import Discovery
from ..learning.pictures.image_files import fit_square, read_image
from ..pages import pages
from .cases import TestCase
from .results import Evaluation, TestResult

_EXAMPLES = 6
_METRICS = ("emr", "cosim", "absent_rate", "attention_iou", "part_likeness", "image_similarity")
_MEANING = (
    "EMR: share of the prompted parts that the codebook sees as exactly the kind asked for. CoSim: cosine between the kind "
    "seen and the kind asked for. Absent rate: prompted parts that cannot be seen at all. Attention IoU: how well the place "
    "a token looked at agrees with the place its part is seen. Part likeness and image similarity: cosine of features with "
    "the part, or the picture, that was asked for."
)


def write_evaluation_page(path: Path, evaluation: Evaluation) -> Path:
    """Write the page and return its path."""
    first = next(iter(evaluation.results))
    # pictures first: figures mean little before one has seen what they judge
    body = [
        pages.paragraph(
            "Pictures made from part tokens, and what the codebook that found the parts sees in them.", "lead"
        ),
        pages.section(f"Mixed creatures: {first}", *_mix_rows(evaluation, first)),
        pages.section("Rebuilt from their own parts", _reconstruction(evaluation)),
        pages.section(
            "Figures", pages.paragraph(_MEANING), figures_table(evaluation.figures()), _per_part(evaluation, first)
        ),
    ]
    return pages.write_page(path, "Evaluation of parts", "".join(body))


def figures_table(figures: Mapping[str, Any]) -> str:
    """The headline figures of every dictionary and test, with what real pictures score."""
    rows = []
    for method, tests in figures["methods"].items():
        for test, scores in tests.items():
            error = scores.get("emr_standard_error")
            emr = f"{scores['emr']:.3f} ± {error:.3f}" if error is not None else scores["emr"]
            rows.append([method, test_title(test), scores["pictures"], emr, *(scores[name] for name in _METRICS[1:])])
    # what real pictures score is the most that any dictionary could reach
    for name, title in (("real", "real pictures"), ("reencoded", "real pictures through the autoencoder")):
        if name in figures.get("ceiling", {}):
            scores = figures["ceiling"][name]
            rows.append([title, "the best to be had", scores["pictures"], *(scores[metric] for metric in _METRICS)])
    header = [
        "dictionary",
        "test",
        "pictures",
        "EMR",
        "CoSim",
        "absent rate",
        "attention IoU",
        "part likeness",
        "image similarity",
    ]
    return pages.table(header, rows)


def test_title(test: str) -> str:
    """A test's name as a person says it."""
    if test == "reconstruction":
        return "reconstruction"
    count = test.removeprefix("mix")
    return f"mix of {count} source{'' if count == '1' else 's'}"


def source_crop(discovery: Discovery, picture: int, parts: Sequence[int], size: int = 128) -> Image.Image:
    """A picture learned from with everything but some parts faded."""
    image = fit_square(read_image(discovery.image_paths[picture]), size)
    labels = discovery.maps.labels[picture].long()  # (h, w)
    # in colour where these parts are
    inside = torch.isin(labels, torch.tensor(list(parts)))
    mask = Image.fromarray((inside.byte() * 255).numpy()).resize(image.size, Image.Resampling.BICUBIC)
    # the rest of the picture turns grey and pale
    faded = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, (250, 247, 240)), 0.72)
    return Image.composite(image, faded, mask)


def recipe_row(evaluation: Evaluation, case: TestCase, results: Mapping[str, Image.Image], note: str = "") -> str:
    """`head of this + wings of that = creature`, with the sources' other parts faded."""
    codebook = evaluation.discovery.codebook
    sources = []
    # one crop per picture, with all parts it gave
    for picture in case.pictures:
        parts = [part for part, source in enumerate(case.sources) if source == picture and part != codebook.background]
        if not parts:
            continue
        names = " and ".join(codebook.part_names[part] for part in parts)
        uri = pages.data_uri(source_crop(evaluation.discovery, picture, parts))
        sources.append(f'<div class="source">{pages.image(uri, names)}{pages.escaped(names)}</div>')
    # one picture per dictionary, all from the same parts
    made = "".join(pages.figure(pages.data_uri(image), title) for title, image in results.items())
    joined = '<div class="plus">+</div>'.join(sources)
    prompt = f'<p class="prompt">{pages.escaped(note)}</p>' if note else ""
    return (
        f'<div class="recipe"><div class="sources">{joined}</div><div class="equals">=</div>'
        f'<div class="result">{made}</div>{prompt}</div>'
    )


def _mix_rows(evaluation: Evaluation, method: str) -> list[str]:
    tests = evaluation.results[method]
    name = max((test for test in tests if test.startswith("mix")), key=lambda test: int(test[3:]), default=None)
    if name is None:
        return [pages.paragraph("No mixes were tested.")]
    rows = []
    for place, case in enumerate(tests[name].cases[:_EXAMPLES]):
        made = {other: results[name].pictures[place].to_image() for other, results in evaluation.results.items()}
        # one dictionary alone needs no name on its pictures
        single = {"": made[method]} if len(made) == 1 else made
        rows.append(recipe_row(evaluation, case, single, tests[name].pictures[place].order.prompt))
    return rows


def _reconstruction(evaluation: Evaluation) -> str:
    tiles = []
    some: TestResult = next(iter(evaluation.results.values()))["reconstruction"]
    for place, case in enumerate(some.cases[:_EXAMPLES]):
        # the picture learned from, then what each dictionary makes of its parts
        real = fit_square(read_image(evaluation.discovery.image_paths[case.pictures[0]]), 160)
        tiles.append(
            pages.figure(pages.data_uri(real), "learned from", evaluation.discovery.image_paths[case.pictures[0]].stem)
        )
        for method, tests in evaluation.results.items():
            tiles.append(pages.figure(pages.data_uri(tests["reconstruction"].pictures[place].to_image()), method))
    group = 1 + len(evaluation.results)
    return pages.strip(tiles, group * max(1, 6 // group))


def _per_part(evaluation: Evaluation, method: str) -> str:
    metrics = _METRICS[:-1]
    rows = []
    for test, result in evaluation.results[method].items():
        for part, scores in result.scores["parts"].items():
            rows.append([test_title(test), part, *(scores[metric] for metric in metrics)])
    header = ["test", "part", "EMR", "CoSim", "absent rate", "attention IoU", "part likeness"]
    return pages.details(f"By part: {method}", pages.table(header, rows))
