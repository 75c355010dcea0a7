"""Two creatures in one picture of the embedded model: a prompt for each one's region (Scene Regions) against one prompt for both.

Random pairs of creatures stand side by side on canvases of 256 x 128, in layouts of two boxes or of the solver; the judge of
attributes looks at each layout's boxes. Uniform guessing is right in .10 of colours, .20 of patterns and .20 of shapes.

    COMFYUI_PATH=... python benchmarks/scene_regions.py --out results [--pairs 24] [--seeds 0 1 2] [--layouts boxes]
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from bench_attention_capture import import_comfyui
from bestiary.concepts.files.atomic_file import write_text
from bestiary.demo.attribute_judge import ATTRIBUTES, AttributeJudge, species_classes
from bestiary.demo.captions import look_words
from bestiary.demo.creatures import draw_creature
from bestiary.demo.species import PARTS, PLACES, Species, random_species
from bestiary.scenes.cutout import AS_GIVEN, make_subject
from bestiary.scenes.layout_request import LayoutRequest
from bestiary.scenes.layout_solver import solve_in_one_row
from bestiary.scenes.scene_layout import Placement, SceneLayout
from bestiary.scenes.subject import Subject
from torch import Tensor

WIDTH, HEIGHT, EDGE = 256, 128, 128
STEPS = 20
TEXT = "a photo of {subject} , {place}"
ARMS = ("one prompt", "regions")


@dataclass(frozen=True)
class Pair:
    """Two creatures, how they are called, and where they stand."""

    species: tuple[Species, Species]
    called: dict[str, str]
    place: str
    layout: SceneLayout


def main() -> None:
    """Draw and judge every pair in both ways, and print the shares."""
    options = _parse()
    import_comfyui()
    from bestiary.nodes.demo.demo_model import load_demo_model

    model, clip, vae = load_demo_model()
    judge, pairs = AttributeJudge.load(), make_pairs(options.pairs, options.layouts)
    right: dict[str, list[Tensor]] = {arm: [] for arm in ARMS}
    began = time.process_time()
    with torch.inference_mode():
        for number, pair in enumerate(pairs):
            for arm in ARMS:
                positive = conditioning(clip, pair, arm, options)
                pictures = sample((model, clip, vae), positive, options.seeds, number, options.guidance)
                right[arm].append(judged(judge, pictures, pair))
            typer.echo(f"{number + 1} of {len(pairs)}: {_shares(right)}", err=True)
            if number < 4:
                _keep(pictures, options.out / f"scene_regions_{options.layouts}_{number}.png")
    summary = {
        "made_by": "benchmarks/scene_regions.py",
        "pairs": len(pairs),
        "seeds": options.seeds,
        "layouts": options.layouts,
        "feather": options.feather,
        "strength": options.strength,
        "guidance": options.guidance,
        "cpu_seconds": round(time.process_time() - began, 1),
        "right": _shares(right),
    }
    write_text(options.out / f"scene_regions_{options.layouts}.json", json.dumps(summary, indent=1) + "\n")
    for arm, shares in summary["right"].items():
        typer.echo(f"{arm:<12}" + "".join(f"{name} {share:.3f}  " for name, share in shares.items()))


def make_pairs(count: int, layouts: str) -> list[Pair]:
    """Random pairs, the same in every run."""
    rng = np.random.default_rng(24)
    pairs = []
    for number in range(count):
        species = (random_species(rng), random_species(rng))
        subjects = [_subject(name, one, rng) for name, one in zip(("left", "right"), species, strict=True)]
        place = str(rng.choice(PLACES))
        article = "the" if place in ("snow", "mountains") else "a"
        called = {subject.name: subject.words for subject in subjects}
        pairs.append(
            Pair(species, called, f"in {article} {place} , at day , facing right", _layout(subjects, layouts, number))
        )
    return pairs


def _subject(name: str, species: Species, rng: np.random.Generator) -> Subject:
    drawing = draw_creature(species, rng)
    words = "creature with " + " , ".join(look_words(part, species.look(part)) for part in PARTS)
    return make_subject(name, drawing.image, drawing.labels > 0, AS_GIVEN, words=words, size="medium")


def _layout(subjects: list[Subject], layouts: str, seed: int) -> SceneLayout:
    if layouts == "boxes":
        placed = tuple(Placement(one.name, x, 0, EDGE, EDGE) for one, x in zip(subjects, (0, EDGE), strict=True))
        return SceneLayout(WIDTH, HEIGHT, placed, seed, "boxes")
    request = LayoutRequest(WIDTH, HEIGHT, seed, coverage=1.0, ground=(0.9, 0.98), perspective=0.0, flip=False)
    return solve_in_one_row(subjects, request)


def conditioning(clip: Any, pair: Pair, arm: str, options: argparse.Namespace) -> list:
    """The prompts of an arm as the nodes make them."""
    from bestiary.nodes.host.socket_types import SceneLayouts
    from bestiary.nodes.scenes.region_prompts import filled, region_conditioning
    from bestiary.scenes.scene_captions import subject_list

    layouts = SceneLayouts((pair.layout,), pair.called, pair.place)
    if arm == "regions":
        return region_conditioning(clip, layouts, TEXT, "", options.feather, options.strength)
    said = subject_list([("", pair.called[one.subject]) for one in pair.layout.placements])
    return clip.encode_from_tokens_scheduled(clip.tokenize(filled(TEXT, said, pair.place)))


def sample(loaded: tuple[Any, Any, Any], positive: list, seeds: list[int], number: int, guidance: float) -> Tensor:
    """Pictures `(S, H, W, 3)` in 0..1, one for each seed; both arms start from the same noise."""
    import comfy.sample

    model, clip, vae = loaded
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, HEIGHT // 8, WIDTH // 8))
    noise = torch.cat([comfy.sample.prepare_noise(empty, 1000 * number + seed) for seed in seeds])
    method = ("ddim", "normal", positive, negative, empty.expand(len(seeds), -1, -1, -1))
    sampled = comfy.sample.sample(model, noise, STEPS, guidance, *method, disable_pbar=True, seed=number)
    return vae.decode(sampled)


def judged(judge: AttributeJudge, pictures: Tensor, pair: Pair) -> Tensor:
    """`(S * 2, parts, attributes)` true where the picture shows in a creature's box what it was asked for."""
    rows = []
    for picture in pictures:
        for name, species in zip(("left", "right"), pair.species, strict=True):
            one = pair.layout.placed(name)
            side = min(HEIGHT, round(max(one.width, one.height) * 1.15))
            left = round(min(max(0, one.x + one.width / 2 - side / 2), WIDTH - side))
            top = round(min(max(0, one.y + one.height / 2 - side / 2), HEIGHT - side))
            window = picture[top : top + side, left : left + side].permute(2, 0, 1)[None]  # (1, 3, s, s)
            rows.append(judge.classes(window)[0] == species_classes([species])[0])
    return torch.stack(rows)


def _shares(right: dict[str, list[Tensor]]) -> dict[str, dict[str, float]]:
    return {
        arm: {
            name: round(float(torch.cat(rows).float().mean((0, 1))[place]), 3) for place, name in enumerate(ATTRIBUTES)
        }
        for arm, rows in right.items()
        if rows
    }


def _keep(pictures: Tensor, path: Path) -> None:
    from PIL import Image

    rows = (torch.cat(list(pictures)) * 255).round().clamp(0, 255).to(torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rows.numpy()).save(path)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--layouts", choices=("boxes", "solver"), default="boxes")
    parser.add_argument("--feather", type=float, default=8.0)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--strength", type=float, default=1.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
