"""How well parts and kinds are found without labels, on drawn creatures and on any folder with a `labels.csv`.

    python benchmarks/discovery_quality.py --drawings 400
    python benchmarks/discovery_quality.py --drawings 0 --folder birds --source descriptor --source diffusion

On drawings of held-out species: foreground IoU (mean over pictures), and the mean IoU of the five drawn parts, each
matched one to one with a discovered part, over all patches of all pictures. A patch is foreground where at least half of
it is drawn, and belongs to the part that fills most of it. On a folder: normalised mutual information (arithmetic mean)
between the labels of every column and the kinds of the discovered part that was matched with it one to one.
Everything is seeded; the labels are read only after the discovery has ended.
"""

import csv
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from bestiary.concepts.parts.part_codebook import PartCodebook
from bestiary.concepts.parts.part_discovery import fit_kinds, fit_parts
from bestiary.concepts.parts.part_map import PartMaps
from bestiary.concepts.patch_features import FeatureSource, PatchGrid
from bestiary.demo.creatures import PARTS, held_out_set
from bestiary.trainer.backbones import load_denoiser
from bestiary.trainer.feature_sources import build_feature_source
from bestiary.trainer.image_files import fit_square, image_to_tensor, read_image
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

SAMPLE = 256
"""Pictures from which foreground and parts are fitted."""
BATCH = 32


@dataclass(frozen=True)
class Quality:
    """Figures of one feature source on one set of pictures."""

    pictures: str
    source: str
    figures: dict[str, float]
    details: dict[str, object] = field(default_factory=dict)
    seconds: float = 0.0


def patch_truth(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pixel labels `(N, H, W)`, 0 background -> patch labels `(N, h, w)` of the same meaning."""
    parts = int(labels.max())
    # share of every label in every patch, the background's first
    shares = F.one_hot(labels.long(), parts + 1).permute(0, 3, 1, 2).float()  # (N, parts + 1, H, W)
    shares = F.adaptive_avg_pool2d(shares, grid)
    drawn = shares[:, 1:].sum(dim=1) >= 0.5
    return torch.where(drawn, shares[:, 1:].argmax(dim=1) + 1, 0)


def foreground_iou(ours: Tensor, theirs: Tensor) -> float:
    """Mean over pictures of the intersection over union of two masks `(N, h, w)`."""
    both, either = (ours & theirs).flatten(1).sum(dim=1), (ours | theirs).flatten(1).sum(dim=1)
    return float((both / either.clamp_min(1)).mean())


def matched_iou(ours: Tensor, theirs: Tensor, found: int, drawn: int) -> list[float]:
    """IoU of every drawn part with the discovered part matched to it; patch labels `(N, h, w)`, theirs counted from 1."""
    table = np.zeros((drawn, found))
    # every drawn part against every discovered one, then the best one-to-one matching
    for row in range(drawn):
        for column in range(found):
            first, second = theirs == row + 1, ours == column
            table[row, column] = float((first & second).sum() / (first | second).sum().clamp_min(1))
    rows, columns = linear_sum_assignment(-table)
    matched = dict(zip(rows.tolist(), table[rows, columns].tolist(), strict=True))
    return [matched.get(row, 0.0) for row in range(drawn)]


def matched_information(codes: Tensor, columns: dict[str, list[str]]) -> tuple[dict[str, float], dict[str, int]]:
    """NMI of every label column with the kinds `(N, M)` of the part matched to it, and which part that is."""
    names = list(columns)
    # every column of labels against the kinds of every part
    table = np.array(
        [[normalized_mutual_info_score(columns[name], kinds) for kinds in codes.T.tolist()] for name in names]
    )
    rows, parts = linear_sum_assignment(-table)
    matched = {names[row]: (float(table[row, part]), int(part)) for row, part in zip(rows, parts, strict=True)}
    return {name: value for name, (value, _) in matched.items()}, {name: part for name, (_, part) in matched.items()}


def discover(
    source: FeatureSource, images: list[Tensor], parts: int | None, kinds: int | None, seed: int
) -> tuple[PartCodebook, PartMaps]:
    """Discovery as the command does it: fit on a sample, then stream all pictures; images are `(3, S, S)` in 0..1."""
    # features of all pictures in batches, then as the command: fit on some, label all
    pieces = [source(torch.stack(images[start : start + BATCH])) for start in range(0, len(images), BATCH)]
    features = torch.cat([piece.features for piece in pieces])  # (N, h, w, D)
    saliency = None if pieces[0].saliency is None else torch.cat([piece.saliency for piece in pieces])
    grid = PatchGrid(features, saliency)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:SAMPLE]
    sample = PatchGrid(features[chosen], None if saliency is None else saliency[chosen])
    codebook = fit_parts(sample, spec=source.spec, num_parts=parts, seed=seed)
    labels = codebook.label(grid)
    means, counts = codebook.part_means(grid, labels)
    codebook = fit_kinds(codebook, means, counts, num_kinds=kinds, seed=seed)
    return codebook, PartMaps(labels, codebook.kind_of(means, counts))


def judge_drawings(
    source: FeatureSource, count: int, parts: int | None, kinds: int | None, seed: int, scale: int = 128
) -> Quality:
    """Figures on `count` drawings of held-out species."""
    drawings = list(held_out_set(count, seed))
    images = [torch.from_numpy(drawing.image.copy()).permute(2, 0, 1).float() / 255 for drawing in drawings]
    if source.image_size != scale:
        size = (source.image_size, source.image_size)
        images = [F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0] for image in images]
    # only the discovery is timed, not drawing and judging
    started = time.process_time()
    codebook, maps = discover(source, images, parts, kinds, seed)
    seconds = time.process_time() - started
    # the truth is looked at only now
    theirs = patch_truth(torch.from_numpy(np.stack([drawing.labels for drawing in drawings])), codebook.grid)
    ours = maps.labels.long()
    ious = matched_iou(ours, theirs, codebook.background, len(PARTS))
    species = {part: [str(drawing.species.look(part)) for drawing in drawings] for part in PARTS}
    # kinds of every discovered part against the looks that were drawn
    information, _ = matched_information(maps.codes[:, : codebook.background], species)
    figures = {
        "foreground_iou": foreground_iou(ours != codebook.background, theirs > 0),
        "part_miou": float(np.mean(ious)),
    }
    details = {"part_iou": dict(zip(PARTS, ious, strict=True)), "kind_nmi": information, **_summary(codebook)}
    return Quality(f"{count} drawings", str(source.spec), figures, details, seconds)


def judge_folder(source: FeatureSource, folder: Path, parts: int | None, kinds: int | None, seed: int) -> Quality:
    """Figures on a folder with `labels.csv`: a column `file`, and a column of kinds for every labelled part."""
    # a table of labels, one line per picture
    with open(folder / "labels.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "file"}
    images = [image_to_tensor(fit_square(read_image(folder / row["file"]), source.image_size)) for row in rows]
    started = time.process_time()
    codebook, maps = discover(source, images, parts, kinds, seed)
    seconds = time.process_time() - started
    information, matches = matched_information(maps.codes, columns)
    names = {column: codebook.part_names[part] for column, part in matches.items()}
    return Quality(
        f"{folder.name}, {len(rows)}", str(source.spec), information, {"part": names, **_summary(codebook)}, seconds
    )


def _summary(codebook: PartCodebook) -> dict[str, object]:
    return {"kinds": list(codebook.num_kinds), **codebook.statistics}


def main(
    drawings: int = 400,
    folder: Annotated[list[Path] | None, typer.Option()] = None,
    source: Annotated[list[str] | None, typer.Option()] = None,
    base: str = "demo",
    image_size: int | None = None,
    parts: int | None = None,
    kinds: int | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Print a table, and with --out write the figures as JSON."""
    results: list[Quality] = []
    # every source on the drawings, then on every folder
    for name in source or ["descriptor"]:
        spec = {"name": name} if image_size is None else {"name": name, "image_size": image_size}
        built = build_feature_source(spec, load_denoiser(base) if name == "diffusion" else None)
        if drawings:
            results.append(judge_drawings(built, drawings, parts, kinds, seed))
        results += [judge_folder(built, path, parts, kinds, seed) for path in folder or []]
    for result in results:
        figures = "  ".join(f"{name} {value:.3f}" for name, value in result.figures.items())
        typer.echo(f"{result.pictures}  {result.source}\n  {figures}  ({result.seconds:.0f} CPU s)\n  {result.details}")
    if out is not None:
        out.write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
