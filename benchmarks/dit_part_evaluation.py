"""Parts on the miniature transformer: the method beside its baselines and beside the UNet, forms of columns, insertions, blocks.

For every seed, on the same drawings: `part_evaluation.py` on the transformer (ours, no attention loss, textual inversion), then ours with what
only a transformer has: maps of joint probability and of outputs in place of shares of text, vectors in the place of what the text encoder
says, and the attention loss not in the block that the training's own probe finds but in the usual one, in the one where plain words ground best
and in the one where they ground worst. Before that, how well plain words ground in each block, in each of the three forms: IoU with the
drawn parts. The UNet's figures come from demo/stored_evaluation.json.

    python benchmarks/dit_part_evaluation.py --out results --seeds 0 1 2
    python benchmarks/dit_part_evaluation.py --out results --seeds 0 --base FOLDER --steps 2 --pictures 16 --judged 4

Every training with its pictures is a unit; finished ones are not done again, so a run may be cut anywhere.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import find_bestiary  # noqa: F401
import numpy as np
import part_evaluation
import torch
import typer
from bestiary.concepts.denoiser.denoiser import AttentionRequest, ColumnForm, Denoiser, PromptPiece
from bestiary.concepts.files.atomic_file import write_text
from bestiary.demo.creatures import PARTS
from bestiary.trainer.demo.drawn_masks import PICTURES, DrawnTruth, draw_pictures, load_truth, patch_majority
from bestiary.trainer.demo.judging import STORED_EVALUATION
from bestiary.trainer.model.backbones import load_denoiser
from PIL import Image
from torch import Tensor

FORMS: tuple[ColumnForm, ...] = get_args(ColumnForm)
TIMES = (0.2, 0.4, 0.6, 0.8)
"""Times at which plain words are read."""
READ_AT_ONCE = 16
"""Pictures of one evaluation."""
VARIANTS: dict[str, dict[str, Any]] = {
    "joint_maps": {"attention_loss.maps": "joint"},
    "output_maps": {"attention_loss.maps": "output"},
    "output_insertion": {"method.insertion": "output"},
    "middle_block": {"attention_loss.layers": []},
    "best_block": {},
    "worst_block": {},
}
"""Ours, whose block the probe of the training finds, with one thing changed; the last two are those of the seed's own reading by drawn labels."""


def main() -> None:
    """Do what is left of every seed, then print the tables and write them."""
    options = _parse()
    # the variants are methods like others: trained, sampled and judged by the same functions
    part_evaluation.METHODS.update(VARIANTS)
    for seed in options.seeds:
        read = read_words(options, seed)
        ranked = rank_blocks(read)
        blocks = {"best_block": ranked[0], "worst_block": ranked[-1]}
        part_evaluation.METHODS.update({name: {"attention_loss.layers": [block]} for name, block in blocks.items()})
        part_evaluation.run_seed(options, seed)
    results = {seed: part_evaluation._read_seed(options, seed) for seed in options.seeds}
    summary = part_evaluation.summarise(results, options)
    words = {seed: read_words(options, seed) for seed in options.seeds}
    summary |= {"made_by": "benchmarks/dit_part_evaluation.py", "base": options.base, "recipe": options.recipe}
    summary["plain_words"] = part_evaluation._mean(list(words.values()))
    summary["blocks"] = {str(seed): rank_blocks(read) for seed, read in words.items()}
    summary["unet"] = json.loads(STORED_EVALUATION.read_text(encoding="utf-8"))["means"]
    write_text(options.out / "dit_part_evaluation.json", json.dumps(summary, indent=1) + "\n")
    part_evaluation.print_summary(summary)
    print_beside(summary)


def read_words(options: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """IoU of plain part words with the drawn parts, form -> attention layer -> mean over the parts; computed once per seed."""
    folder = options.out / f"seed{seed}"
    path = folder / "plain_words.json"
    if not path.is_file():
        draw_pictures(folder, options.pictures, seed)
        denoiser = load_denoiser(options.base, device=options.device)
        # at least 16 pictures, so that every part shows
        ious = words_by_block(denoiser, load_truth(folder), folder, max(16, options.judged), seed)
        write_text(path, json.dumps(ious, indent=1) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))


def rank_blocks(read: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Attention layers, from the one where plain words ground best to the worst, by shares of text."""
    return sorted(read["text"], key=lambda layer: -read["text"][layer])


@torch.no_grad()
def words_by_block(
    denoiser: Denoiser, truth: DrawnTruth, folder: Path, count: int, seed: int
) -> dict[str, dict[str, float]]:
    """Where the words of the parts look in noised pictures, by form and layer, against the drawn labels.

    A place belongs to the word that looks there most, each word's map being divided by its own mean; background is left out.
    """
    names = truth.names[:count]
    read = [np.asarray(Image.open(folder / PICTURES / name).convert("RGB")) for name in names]
    images = torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2).float() / 255  # (N, 3, H, W)
    prompt = denoiser.text.tokenize([PromptPiece("a photo of a creature"), *[PromptPiece(None)] * len(PARTS)], chunks=1)
    vectors = {name: [] for name in denoiser.text.word_vectors(PARTS[0])}
    for word in PARTS:
        for name, rows in denoiser.text.word_vectors(word).items():
            vectors[name].append(rows.mean(0))
    words = {name: torch.stack(rows).float() for name, rows in vectors.items()}  # (W, D) each
    size = denoiser.images.shape((images.shape[2], images.shape[3]))[1:]
    grids = denoiser.network.attention_grids(cast("tuple[int, int]", size))
    generator = torch.Generator().manual_seed(seed)
    maps: dict[tuple[str, str], list[Tensor]] = {(form, layer): [] for form in FORMS for layer in grids}
    for some in images.split(READ_AT_ONCE):
        latents = denoiser.images.from_cache(denoiser.images.to_cache(some))  # (B, C, h, w)
        rows = {name: own.expand(len(some), -1, -1) for name, own in words.items()}
        text = denoiser.text.encode([prompt] * len(some), rows)
        assert text.columns is not None, "the words of the drawn world have places in the text"
        total = {key: torch.zeros(()) for key in maps}
        for time in TIMES:
            times = torch.full((len(some),), time, device=latents.device)
            noise = torch.randn(latents.shape, generator=generator).to(latents.device)
            noised = denoiser.process.noised(latents, noise, times)
            for form in FORMS:
                request = AttentionRequest(text.columns, tuple(grids), form=form)
                seen = denoiser.network.predict(noised, times, text, request).attention
                for layer, shown in seen.items():
                    total[form, layer] = total[form, layer] + shown.cpu()  # (B, W, h, w)
        for key, shown in total.items():
            maps[key].append(shown)
    return {
        form: {layer: _iou_of(torch.cat(maps[form, layer]), truth.labels[: len(names)]) for layer in grids}
        for form in FORMS
    }


def _iou_of(maps: Tensor, labels: np.ndarray) -> float:
    """Mean IoU over the parts of maps `(N, parts, h, w)` with drawn labels `(N, H, W)`."""
    maps = maps / maps.mean((0, 2, 3), keepdim=True).clamp_min(1e-9)
    drawn = torch.from_numpy(patch_majority(labels, (maps.shape[2], maps.shape[3])))  # (N, h, w)
    chosen, inside = maps.argmax(1) + 1, drawn > 0
    ious = []
    for number in range(1, len(PARTS) + 1):
        ours, theirs = (chosen == number) & inside, drawn == number
        ious.append(float((ours & theirs).sum() / (ours | theirs).sum().clamp_min(1)))
    return round(sum(ious) / len(ious), 4)


def print_beside(summary: Mapping[str, Any]) -> None:
    """The transformer beside the UNet, plain words by block, and the variants."""
    typer.echo(f"\n{'':<20}{'':<16}{'EMR':>16}{'attention IoU':>16}{'colour':>16}{'pattern':>16}{'shape':>16}")
    for method in ("ours", "no_attention_loss", "textual_inversion"):
        for test in ("reconstruction", "mix4"):
            pairs = [summary["means"].get(method, {}).get(test, {}), summary["unet"].get(method, {}).get(test, {})]
            row = [_pair(pairs, name) for name in ("emr", "attention_iou")]
            row += [_pair([pair.get("judge", {}) for pair in pairs], name) for name in ("color", "pattern", "shape")]
            typer.echo(f"{method:<20}{test:<16}" + "".join(f"{text:>16}" for text in row))
    typer.echo("(transformer / UNet)\n\nplain words, IoU with the drawn parts")
    for layer in summary["plain_words"]["text"]:
        shown = "".join(f"{form} {summary['plain_words'][form][layer]:.3f}  " for form in FORMS)
        typer.echo(f"{layer:<32}{shown}")


def _pair(records: list[Mapping[str, Any]], name: str) -> str:
    values = [record.get(name) for record in records]
    return " / ".join("-" if value is None else f"{value:.3f}" for value in values)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--base", default="demo-dit")
    parser.add_argument("--recipe", default="demo_dit")
    parser.add_argument("--pictures", type=int, default=140)
    parser.add_argument("--kinds", type=int, default=14)
    known = [*part_evaluation.METHODS, *VARIANTS]
    parser.add_argument("--methods", nargs="+", choices=known, default=known)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--judged", type=int, default=64)
    parser.add_argument("--device", default="auto")
    return parser.parse_args(namespace=argparse.Namespace(overrides=[]))


if __name__ == "__main__":
    main()
