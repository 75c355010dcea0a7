"""Faults of training sets of scenes, ours beside re-created rules of Gen4Gen (louisYen/Gen4Gen @ 04f8964), as ratios.

    python benchmarks/scene_defects.py [--cases 500] [--repaint]

Re-created: boxes of a language model belong to the objects by position, whatever names the answer gives (stage 2, compose); an answer
with fewer boxes gives a picture without the rest, whose folder still names them; a box becomes the largest one's box times the ratio
around its own middle, cut off at the canvas; a cut-out is stored multiplied by its mask and multiplied again when it is pasted; a
repainted picture is kept as the model gives it. `--repaint` measures the last with the embedded model, which takes minutes.
"""

import argparse
import json
import random
import sys
import time

import find_bestiary  # noqa: F401  # isort: skip

import numpy as np
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.collage import CollageOptions, compose
from bestiary.scenes.layout_request import LayoutRequest
from bestiary.scenes.layout_solver import solve_layout
from bestiary.scenes.layout_text import layout_from_text
from bestiary.scenes.scene_gate import judge_scene
from bestiary.scenes.scene_layout import Placement, SceneLayout
from bestiary.scenes.soft_edges import put_back
from bestiary.scenes.subject import Subject

SIDE = 512
NAMES = ("ant", "bear", "cat", "dog", "eel", "fox")


def disc(edge: int = 96, alpha: int = 255) -> np.ndarray:
    """RGBA disc in one colour on the canvas `(edge, edge, 4)`."""
    rows, columns = np.mgrid[:edge, :edge] - (edge - 1) / 2
    inside = rows**2 + columns**2 < (edge / 2) ** 2
    return np.dstack([np.full((edge, edge, 3), 200, np.uint8), np.where(inside, alpha, 0).astype(np.uint8)])


def answers(chance: random.Random, count: int) -> tuple[list[Subject], dict[str, list[int]], str, int]:
    """Objects on the command line, the boxes meant for them, an answer in an order of its own, and how many boxes it forgets."""
    names = chance.sample(NAMES, count)
    boxes = {name: [20 + 160 * place, 300, 130, 130] for place, name in enumerate(names)}
    told = sorted(names)  # the question lists them by the alphabet, and so does the answer
    forgotten = chance.random() < 0.1
    kept = told[: count - 1] if forgotten else told
    text = json.dumps({"objects": [{"id": name, "box": boxes[name]} for name in kept]})
    return [Subject(name, disc()) for name in names], boxes, text, int(forgotten)


def swaps(cases: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Pictures in which an object stands in another's box, and pictures that lack one they name: (theirs, ours) each."""
    chance = random.Random(0)
    swapped, lacking = [0, 0], [0, 0]
    for number in range(cases):
        subjects, boxes, text, _ = answers(chance, 2 + number % 2)
        told = [entry["box"] for entry in json.loads(text)["objects"]]
        by_position = dict(zip((subject.name for subject in subjects), told, strict=False))
        swapped[0] += any(box != boxes[name] for name, box in by_position.items())
        lacking[0] += len(by_position) < len(subjects)
        # ours reads the names, and the solver finds a place for whom the answer forgets
        layout = layout_from_text(text, subjects, LayoutRequest(SIDE, SIDE, number)).layout
        middles = {one.subject: one.x + one.width / 2 for one in layout.placements}
        named = {entry["id"]: entry["box"] for entry in json.loads(text)["objects"]}
        order = sorted(named, key=lambda name: named[name][0])
        swapped[1] += order != sorted(named, key=middles.__getitem__)
        lacking[1] += len(middles) < len(subjects)
    return (swapped[0], swapped[1]), (lacking[0], lacking[1])


def ratios(cases: int) -> tuple[float, float]:
    """Mean longest side of an object of size 0.8 beside one of size 1 whose box is large: (theirs, ours)."""
    chance = random.Random(1)
    theirs, ours = [], []
    for number in range(cases):
        anchor = SIDE * chance.uniform(0.55, 0.8)
        middle = [chance.uniform(0.1, 0.9) * SIDE for _ in range(2)]
        side = anchor * 0.8
        sides = [min(SIDE, place + side / 2) - max(0.0, place - side / 2) for place in middle]
        theirs.append(min(sides) / anchor)
        pair = [Subject("big", disc(), size=1.0), Subject("small", disc(), size=0.8)]
        layout = solve_layout(pair, LayoutRequest(SIDE, SIDE, number, 0.6, perspective=0))
        longest = {one.subject: max(one.width, one.height) for one in layout.placements}
        ours.append(longest["small"] / longest["big"])
    return float(np.mean(theirs)), float(np.mean(ours))


def edge_levels() -> tuple[float, float]:
    """Grey of a half transparent pixel of a subject of grey 200 on black, which should be 100: (theirs, ours)."""
    cutout = disc(alpha=128)
    stored = cutout[..., :3].astype(np.float32) * (128 / 255)
    theirs = stored[48, 48, 0] * (128 / 255)
    layout = SceneLayout(128, 128, (Placement("a", 16, 16, 96, 96),))
    black = np.zeros((128, 128, 3), np.uint8)
    scene = compose([Subject("a", cutout)], layout, black, CollageOptions(shadow=0))
    return float(theirs), float(scene.picture[64, 64, 0])


def seconds_a_scene(count: int = 20) -> float:
    """CPU seconds of layout and collage of three subjects of 400 px on 768 x 768."""
    pictures = [Subject(name, disc(400), size=0.6 + 0.2 * place) for place, name in enumerate(NAMES[:3])]
    place = np.random.default_rng(0).integers(0, 256, (768, 768, 3), np.uint8)
    begun = time.process_time()
    for seed in range(count):
        compose(pictures, solve_layout(pictures, LayoutRequest(768, 768, seed)), place)
    return (time.process_time() - begun) / count


def repainted(scenes: int = 3) -> tuple[float, float]:
    """PSNR in dB inside drawn creatures after a repaint at strength 0.6: as the model gives it, and put back."""
    import torch
    from bestiary.demo.creatures import held_out_set
    from bestiary.trainer.scenes.painters import ModelPainter
    from bestiary.trainer.scenes.scene_settings import RepaintSettings

    torch.manual_seed(0)
    painter, figures = ModelPainter(RepaintSettings(mode="model", steps=20)), []
    drawings = list(held_out_set(2 * scenes, 0))
    for number in range(scenes):
        pair = []
        for name, drawing in zip(("left", "right"), drawings[2 * number : 2 * number + 2], strict=True):
            labels, pixels = np.asarray(drawing.labels), np.asarray(drawing.image)
            ground = np.bincount(labels.ravel()).argmax()
            pair.append(Subject(name, np.dstack([pixels, np.where(labels == ground, 0, 255).astype(np.uint8)])))
        place = np.full((128, 256, 3), (120, 190, 110), np.uint8)
        scene = compose(pair, solve_layout(pair, LayoutRequest(256, 128, number)), place)
        painted = painter.paint(scene.picture, scene.repaint, "a photo of a meadow", number)
        theirs, canvas = (np.divide(one, 255, dtype=np.float32) for one in (painted, scene.picture))
        ours = put_back(theirs, canvas, scene.union, feather=2)
        figures.append([judge_scene(one, canvas, scene.union).fidelity for one in (theirs, ours)])
    theirs, ours = np.mean(figures, axis=0)
    return float(theirs), float(ours)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--repaint", action="store_true")
    arguments = parser.parse_args()
    swapped, lacking = swaps(arguments.cases)
    wanted, level = ratios(arguments.cases), edge_levels()
    rows = [
        f"pictures with two objects in each other's box, of {arguments.cases}: {swapped[0]} : {swapped[1]}",
        f"pictures without an object that they name, of {arguments.cases}: {lacking[0]} : {lacking[1]}",
        f"size of an object asked for 0.8 of another with a large box: {wanted[0]:.3f} : {wanted[1]:.3f}",
        f"grey of a half transparent edge, 100 is right: {level[0]:.0f} : {level[1]:.0f}",
        f"CPU seconds a scene of three subjects, 768 x 768, ours: {seconds_a_scene():.2f}",
    ]
    if arguments.repaint:
        theirs, ours = repainted()
        rows.append(f"PSNR inside subjects after a repaint, dB, 99 is equal: {theirs:.1f} : {ours:.1f}")
    sys.stdout.write("reference's rule : ours\n" + "\n".join(rows) + "\n")


if __name__ == "__main__":
    try:
        main()
    except BestiaryError as fault:
        sys.exit(f"scene_defects: {fault}")
