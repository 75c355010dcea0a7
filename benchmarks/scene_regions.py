"""Two creatures in one picture of the embedded model: a prompt for each one's region against one prompt for both.

Random pairs of creatures stand side by side on canvases of 256 x 128, in layouts of two boxes or of the solver; the judge of
attributes looks at each layout's boxes. Uniform guessing is right in .10 of colours, .20 of patterns and .20 of shapes. Pictures are
made as `bestiary compose --region` makes them, or as Scene Regions does in a graph (`--way graph`, needs ComfyUI).

    python benchmarks/scene_regions.py --out results [--pairs 24] [--seeds 0 1 2] [--layouts boxes]
    COMFYUI_PATH=... python benchmarks/scene_regions.py --out results --way graph

Every pair is kept as soon as it is judged; a stopped run goes on where it was.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import find_bestiary  # noqa: F401 - before the first import of bestiary
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
from bestiary.scenes.layout_measures import turned_box
from bestiary.scenes.layout_request import LayoutRequest
from bestiary.scenes.layout_solver import solve_in_one_row
from bestiary.scenes.scene_captions import subject_list
from bestiary.scenes.scene_layout import Placement, SceneLayout
from bestiary.scenes.subject import Subject
from bestiary.trainer.composing.picture_making import PictureOrder, SamplingChoice, make_pictures
from bestiary.trainer.composing.prompt_regions import PromptRegion
from bestiary.trainer.model.backbones import load_denoiser
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


Way = Callable[[Pair, str, int], Tensor]
"""A pair, an arm and the pair's number -> pictures `(S, H, W, 3)` in 0..1, one for each seed; both arms start from the same noise."""


def main() -> None:
    """Draw and judge every pair in both ways, and print the shares."""
    options = _parse()
    torch.set_num_threads(1)
    make = in_graph(options) if options.way == "graph" else by_compose(options)
    judge, pairs = AttributeJudge.load(), make_pairs(options.pairs, options.layouts)
    called = f"scene_regions_{options.way}_{options.layouts}"
    kept = KeptPairs(options.out / f"{called}.jsonl", _settings(options))
    with torch.inference_mode():
        for number, pair in enumerate(pairs):
            if number in kept.rows:
                continue
            row: dict[str, Any] = {"pair": number}
            began = time.process_time()
            for arm in ARMS:
                pictures = make(pair, arm, number)
                right = judged(judge, pictures, pair)  # (S * 2, parts, attributes)
                row[arm] = [round(float(share), 4) for share in right.float().mean((0, 1))]
            kept.add({**row, "cpu_seconds": round(time.process_time() - began, 1)})
            typer.echo(f"{number + 1} of {len(pairs)}: {_shares(kept.rows)}", err=True)
            if number < 4:
                _keep(pictures, options.out / f"{called}_{number}.png")
    rows = {number: kept.rows[number] for number in range(len(pairs))}
    seconds = round(sum(row["cpu_seconds"] for row in rows.values()), 1)
    summary = {"pairs": len(pairs), **_settings(options), "cpu_seconds": seconds, "right": _shares(rows)}
    write_text(options.out / f"{called}.json", json.dumps(summary, indent=1) + "\n")
    for arm, shares in _shares(rows).items():
        typer.echo(f"{arm:<12}" + "".join(f"{name} {share:.3f}  " for name, share in shares.items()))


class KeptPairs:
    """Judged pairs in a file of one line each, behind one with the settings they were made with."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Read what is there; lines of other settings start anew."""
        self._path, self._head, self.rows = path, json.dumps(settings), dict[int, dict[str, Any]]()
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        if lines and lines[0] == self._head:
            self.rows = {row["pair"]: row for row in map(json.loads, lines[1:])}

    def add(self, row: dict[str, Any]) -> None:
        """Keep one pair."""
        self.rows[row["pair"]] = row
        lines = [self._head, *(json.dumps(self.rows[number]) for number in sorted(self.rows))]
        write_text(self._path, "\n".join(lines) + "\n")


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    chosen = {name: getattr(options, name) for name in ("way", "layouts", "seeds", "feather", "strength", "guidance")}
    return {"made_by": "benchmarks/scene_regions.py", "steps": STEPS, **chosen}


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


def prompts_of(pair: Pair) -> tuple[str, list[str]]:
    """The prompt for both, and that of each region in the order of the layout."""
    said = [pair.called[one.subject] for one in pair.layout.placements]
    each = [TEXT.format(subject=subject_list([("", words)]), place=pair.place) for words in said]
    return TEXT.format(subject=subject_list([("", words) for words in said]), place=pair.place), each


def by_compose(options: argparse.Namespace) -> Way:
    """Pictures as `bestiary compose` makes them."""
    denoiser = load_denoiser("demo", device="cpu")
    choice = SamplingChoice(STEPS, options.guidance, (HEIGHT, WIDTH), "ddim", options.feather)

    def make(pair: Pair, arm: str, number: int) -> Tensor:
        both, each = prompts_of(pair)
        boxes = [turned_box(one) for one in pair.layout.placements]
        shares = [(left / WIDTH, top / HEIGHT, right / WIDTH, bottom / HEIGHT) for left, top, right, bottom in boxes]
        regions = [PromptRegion(box, prompt) for box, prompt in zip(shares, each, strict=True)]
        orders = [PictureOrder(both, 1000 * number + seed) for seed in options.seeds]
        made = make_pictures(denoiser, {}, orders, choice, regions=regions if arm == "regions" else ())
        return torch.stack([picture.image.permute(1, 2, 0) for picture in made])

    return make


def in_graph(options: argparse.Namespace) -> Way:
    """Pictures as ComfyUI makes them of Scene Regions."""
    import_comfyui()
    from bestiary.nodes.demo.demo_model import load_demo_model
    from bestiary.nodes.host.socket_types import SceneLayouts
    from bestiary.nodes.scenes.region_prompts import region_conditioning

    loaded = load_demo_model()
    clip = loaded[1]

    def make(pair: Pair, arm: str, number: int) -> Tensor:
        if arm == "regions":
            layouts = SceneLayouts((pair.layout,), pair.called, pair.place)
            positive = region_conditioning(clip, layouts, TEXT, "", options.feather, options.strength)
        else:
            positive = clip.encode_from_tokens_scheduled(clip.tokenize(prompts_of(pair)[0]))
        return sample(loaded, positive, options.seeds, number, options.guidance)

    return make


def sample(loaded: Any, positive: list, seeds: list[int], number: int, guidance: float) -> Tensor:
    """Pictures `(S, H, W, 3)` in 0..1 of a conditioning, by ComfyUI's sampler."""
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


def _shares(rows: dict[int, dict[str, Any]]) -> dict[str, dict[str, float]]:
    means = {arm: np.mean([row[arm] for row in rows.values()], 0) for arm in ARMS}
    return {
        arm: {name: round(float(share), 3) for name, share in zip(ATTRIBUTES, mean, strict=True)}
        for arm, mean in means.items()
    }


def _keep(pictures: Tensor, path: Path) -> None:
    from PIL import Image

    rows = (torch.cat(list(pictures)) * 255).round().clamp(0, 255).to(torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rows.numpy()).save(path)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--way", choices=("compose", "graph"), default="compose")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--layouts", choices=("boxes", "solver"), default="boxes")
    parser.add_argument("--feather", type=float, default=8.0)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--strength", type=float, default=1.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
