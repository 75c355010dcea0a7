"""What layouts of scenes keep and cost, beside a re-creation of the rule they replace.

    python benchmarks/bench_scene_layouts.py [--count 10000]

Random problems of 1 to 8 subjects, aspects 0.35 to 2.8, on five canvas shapes; 80 % of the subjects on the ground, 10 % in the sky, 10 %
on another. Goals: nothing outside, nothing hidden beyond the limit, feet in the band, at most 2 ms a layout and 10 ms at the 99th percentile.

The rule beside it is that of Gen4Gen (louisYen/Gen4Gen @ 04f8964, stage 2): every box becomes the largest one's box times the
subject's ratio around its own middle, boxes under a least area are enlarged by the ratio of the areas, what reaches over the canvas is
cut off, and a cut-out fills min(width, height) of its box from the top left corner. The boxes that it gets from a language model are stood in
for by the best it can ask for: a box per subject, none overlapping.
"""

import argparse
import random
import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import typer
from bestiary.scenes.layout_measures import Box, box_coverage, box_occlusion, is_inside, worst_occlusion
from bestiary.scenes.layout_request import LayoutRequest
from bestiary.scenes.layout_solver import solve_in_one_row, solve_layout
from bestiary.scenes.subject import Subject

CANVASES = [(768, 768), (1024, 576), (576, 1024), (512, 256), (640, 480)]
LIMIT, COVERAGE, LOW, HIGH = 0.15, 0.22, 0.62, 0.97


class Kept(NamedTuple):
    """What one layout kept."""

    outside: bool
    hidden: float
    ratio_error: float
    """Largest difference of a longest side to what was asked, in pixels; without perspective."""
    feet: bool
    """Of all subjects on the ground, in the band."""
    coverage: float


def problem(chance: random.Random, number: int) -> tuple[list[Subject], LayoutRequest]:
    """Opaque rectangles with sizes and supports."""
    subjects: list[Subject] = []
    for index in range(1 + number % 8):
        draw, aspect = chance.random(), 0.35 * 8 ** chance.random()
        support = "ground" if draw < 0.8 else "sky" if draw < 0.9 or not subjects else f"on:s{chance.randrange(index)}"
        shape = (round(60 * min(1, 1 / aspect)), round(60 * min(1, aspect)), 4)
        size = 0.4 + 0.6 * chance.random()
        subjects.append(Subject(f"s{index}", np.full(shape, 255, np.uint8), size=size, support=support))
    return subjects, LayoutRequest(*chance.choice(CANVASES), number, COVERAGE, LIMIT, (LOW, HIGH))


def judged(boxes: list[Box], painted: list[Box], subjects: list[Subject], request: LayoutRequest) -> Kept:
    """Boxes in the order of the subjects, and from back to front."""
    longest = [max(right - left, bottom - top) for left, top, right, bottom in boxes]
    largest = max(range(len(subjects)), key=lambda index: subjects[index].size)
    unit = longest[largest] / subjects[largest].size
    feet = [
        box[3] / request.height for box, subject in zip(boxes, subjects, strict=True) if subject.support == "ground"
    ]
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    return Kept(
        any(
            box[0] < -1e-6 or box[1] < -1e-6 or box[2] > request.width + 1e-6 or box[3] > request.height + 1e-6
            for box in boxes
        ),
        worst_occlusion(painted),
        max(abs(side - unit * subject.size) for side, subject in zip(longest, subjects, strict=True)),
        all(LOW - 1e-6 <= foot <= HIGH + 1e-6 for foot in feet),
        area / (request.width * request.height),
    )


def ours(subjects: list[Subject], request: LayoutRequest) -> Kept:
    """With perspective, but for the ratios."""
    layout = solve_layout(subjects, request)
    flat = solve_layout(subjects, replace(request, perspective=0))
    boxes = [(one.x, one.y, one.x + one.width, one.y + one.height) for one in flat.placements]
    order = sorted(range(len(boxes)), key=lambda index: flat.placements[index].z)
    ratios = judged(boxes, [boxes[index] for index in order], subjects, request).ratio_error
    feet = [
        one.foot / request.height
        for one, subject in zip(layout.placements, subjects, strict=True)
        if subject.support == "ground"
    ]
    return Kept(
        not is_inside(layout),
        box_occlusion(layout),
        ratios,
        all(LOW - 1e-6 <= foot <= HIGH + 1e-6 for foot in feet),
        box_coverage(layout),
    )


def theirs(subjects: list[Subject], request: LayoutRequest) -> Kept:
    """The rule of the reference on boxes without overlaps."""
    wide, high = request.width, request.height
    asked = solve_in_one_row(subjects, replace(request, perspective=0))
    boxes = [(one.x, one.y, one.width, one.height) for one in asked.placements]
    anchor = boxes[max(range(len(boxes)), key=lambda index: boxes[index][2] * boxes[index][3])]
    share = 5 if len(subjects) <= 3 else 6 if len(subjects) == 4 else 8
    least = (wide / share) * (high / share)
    placed: list[Box] = []
    for subject, (x, y, width, height) in zip(subjects, boxes, strict=True):
        middle = x + width / 2, y + height / 2
        width, height = anchor[2] * subject.size, anchor[3] * subject.size
        if width * height < least:
            factor = least / (width * height)
            width, height = width * factor, height * factor
        left, top = max(0.0, middle[0] - width / 2), max(0.0, middle[1] - height / 2)
        right, bottom = min(wide, middle[0] + width / 2), min(high, middle[1] + height / 2)
        longest = min(right - left, bottom - top)
        placed.append((left, top, left + longest * min(1, subject.aspect), top + longest * min(1, 1 / subject.aspect)))
    overlaps = [sum(overlap(box, other) for other in placed if other is not box) for box in placed]
    order = sorted(range(len(placed)), key=lambda index: -overlaps[index])
    return judged(placed, [placed[index] for index in order], subjects, request)


def overlap(box: Box, other: Box) -> float:
    """Intersection over union."""
    across = min(box[2], other[2]) - max(box[0], other[0])
    down = min(box[3], other[3]) - max(box[1], other[1])
    if across <= 0 or down <= 0:
        return 0.0
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (box, other)]
    return across * down / (sum(areas) - across * down)


def printed(name: str, kept: list[Kept]) -> list[float]:
    """One row of the table."""
    shares = [
        float(np.mean([one.outside for one in kept])),
        float(np.mean([one.hidden > LIMIT + 1e-6 for one in kept])),
        float(np.mean([one.ratio_error > 1 for one in kept])),
        float(np.mean([not one.feet for one in kept])),
    ]
    coverage = np.array([one.coverage for one in kept])
    typer.echo(
        f"{name}: outside {shares[0]:.4f}, over the limit {shares[1]:.4f} (worst {max(one.hidden for one in kept):.3f}),"
        f" ratios off by more than 1 px {shares[2]:.4f} (worst {max(one.ratio_error for one in kept):.3g} px),"
        f" feet out of the band {shares[3]:.4f}, coverage {coverage.mean():.3f} (1st percentile {np.percentile(coverage, 1):.3f})"
    )
    return shares


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--count", type=int, default=10_000)
    count = arguments.parse_args().count
    chance = random.Random(0)
    problems = [problem(chance, number) for number in range(count)]
    seconds, texts = [], []
    for subjects, request in problems:
        begun = time.process_time()
        layout = solve_layout(subjects, request)
        seconds.append(time.process_time() - begun)
        texts.append(layout.to_json())
    again = sum(solve_layout(*one).to_json() != text for one, text in zip(problems, texts, strict=True))
    times = np.array(seconds) * 1e3
    typer.echo(f"{count} problems; solved again with another result: {again}")
    typer.echo(
        f"ms of CPU: mean {times.mean():.2f}, 99th percentile {np.percentile(times, 99):.2f}, worst {times.max():.2f}"
    )
    own = printed("ours", [ours(*one) for one in problems])
    reference = printed("the reference's rule", [theirs(*one) for one in problems])
    names = ("outside", "over the limit", "ratios", "feet")
    for name, mine, other in zip(names, own, reference, strict=True):
        typer.echo(f"layouts with that fault, theirs to ours, {name}: {other * count:.0f} : {mine * count:.0f}")


if __name__ == "__main__":
    main()
