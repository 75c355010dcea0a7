"""How well parts and kinds are found without labels, on drawn creatures and on any folder with a `labels.csv`.

    python benchmarks/discovery_quality.py --drawings 400
    python benchmarks/discovery_quality.py --drawings 0 --folder birds --source descriptor --source diffusion

On drawings of held-out species: foreground IoU (mean over pictures), and the mean IoU of the five drawn parts, each
matched one to one with a discovered part, over all patches of all pictures. A patch is foreground where at least half of
it is drawn, and belongs to the part that fills most of it. On a folder: normalised mutual information (arithmetic mean)
between the labels of every column and the kinds of the discovered part that was matched with it one to one.
With --views, figures without labels on that many of a folder's pictures: each is labelled again as a window of 60 to 90 %
of its edge alone, mirrored, darker or lighter, as JPEG of quality 60, and from a quarter of its pixels along an edge; the
share of patches, foreground in both, that have the same part. Folders with masks (`NAME_mask.png` beside `NAME.jpg`)
named with --masked are labelled by every folder's codebook: foreground IoU on the patch grid.
Everything is seeded; the labels are read only after the discovery has ended.
"""

import csv
import io
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from bestiary.concepts.features.patch_features import FeatureSource, PatchGrid
from bestiary.concepts.part_map.part_codebook import PartCodebook
from bestiary.concepts.part_map.part_discovery import fit_kinds, fit_parts
from bestiary.concepts.part_map.part_map import PartMaps
from bestiary.concepts.part_map.sample_views import look_again, viewed_pictures
from bestiary.demo.creatures import PARTS, held_out_set
from bestiary.trainer.discovery.feature_sources import build_feature_source
from bestiary.trainer.learning.pictures.image_files import fit_square, image_to_tensor, read_image
from bestiary.trainer.model.backbones import load_denoiser
from PIL import Image
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
    pieces = [source(torch.stack(images[start : start + BATCH])).rounded() for start in range(0, len(images), BATCH)]
    grid = PatchGrid.joined(pieces)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:SAMPLE]
    sample = grid.rows(chosen)
    views = None
    if sample.detail is not None:
        views = look_again([(row, images[chosen[row]]) for row in viewed_pictures(len(chosen))], source, seed=seed)
    codebook = fit_parts(sample, spec=source.spec, num_parts=parts, seed=seed, views=views)
    labels = codebook.label(grid)
    means, counts = codebook.part_means(grid, labels)
    codebook = fit_kinds(codebook, means, counts, num_kinds=kinds, seed=seed)
    return codebook, PartMaps(labels, codebook.kind_of(means, counts))


def view_agreement(source: FeatureSource, codebook: PartCodebook, images: list[Tensor], seed: int) -> dict[str, float]:
    """Share of patches, foreground in both, that keep their part in other views of images `(3, S, S)` in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    size = images[0].shape[1]
    windows = [_window(size, generator) for _ in images]
    labels = _labels(source, codebook, images)  # (n, h, w)
    # every view with the labels it should get: those of the patches that its own patches lie on
    views: dict[str, tuple[list[Tensor], Tensor]] = {
        "crop": (
            [
                _resized(image[:, y : y + edge, x : x + edge], size)
                for image, (y, x, edge) in zip(images, windows, strict=True)
            ],
            torch.stack([_in_window(label, window, size) for label, window in zip(labels, windows, strict=True)]),
        ),
        "mirrored": ([image.flip(-1) for image in images], labels.flip(-1)),
        "darker": ([image * 0.7 for image in images], labels),
        "lighter": ([(image * 1.3).clamp(0, 1) for image in images], labels),
        "jpeg60": ([_as_jpeg(image) for image in images], labels),
        "quarter": ([_resized(_resized(image, size // 4), size) for image in images], labels),
    }
    figures = {}
    for name, (pictures, expected) in views.items():
        seen = torch.cat([_labels(source, codebook, [picture]) for picture in pictures])
        both = (seen != codebook.background) & (expected != codebook.background)
        figures[name] = float((seen == expected)[both].float().mean())
    return figures


def _labels(source: FeatureSource, codebook: PartCodebook, images: list[Tensor]) -> Tensor:
    pieces = [source(torch.stack(images[start : start + BATCH])).rounded() for start in range(0, len(images), BATCH)]
    return torch.cat([codebook.label(piece) for piece in pieces])


def _window(size: int, generator: torch.Generator) -> tuple[int, int, int]:
    """Top, left and edge in pixels of a square window of 60 to 90 % of the edge."""
    share, y, x = torch.rand(3, generator=generator).tolist()
    edge = round(size * (0.6 + 0.3 * share))
    return round(y * (size - edge)), round(x * (size - edge)), edge


def _in_window(labels: Tensor, window: tuple[int, int, int], size: int) -> Tensor:
    """Labels `(h, w)` of the whole picture at the middles of the window's own patches."""
    top, left, edge = window
    h, w = labels.shape
    rows = ((top + edge * (torch.arange(h) + 0.5) / h) * h / size).long().clamp(0, h - 1)
    columns = ((left + edge * (torch.arange(w) + 0.5) / w) * w / size).long().clamp(0, w - 1)
    return labels[rows][:, columns]


def _resized(image: Tensor, size: int) -> Tensor:
    """An image `(3, H, W)` at another size."""
    return F.interpolate(image[None], size=(size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)


def _as_jpeg(image: Tensor, quality: int = 60) -> Tensor:
    """An image `(3, H, W)` as a JPEG file would hold it."""
    file = io.BytesIO()
    Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(file, "JPEG", quality=quality)
    return image_to_tensor(Image.open(file).convert("RGB"))


def masked_iou(source: FeatureSource, codebook: PartCodebook, folder: Path) -> dict[str, float]:
    """Foreground IoU of every picture of a folder that has a mask beside it, `NAME.jpg` and `NAME_mask.png`."""
    figures = {}
    for file in sorted(folder.glob("*_mask.png")):
        photo = file.with_name(file.name.replace("_mask.png", ".jpg"))
        labels = _labels(source, codebook, [image_to_tensor(fit_square(read_image(photo), source.image_size))])
        mask = image_to_tensor(fit_square(read_image(file), source.image_size)).mean(dim=0)  # (S, S)
        theirs = F.adaptive_avg_pool2d(mask[None], tuple(labels.shape[1:])) >= 0.5
        figures[photo.stem] = foreground_iou(labels != codebook.background, theirs)
    return figures


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


def judge_folder(
    source: FeatureSource,
    folder: Path,
    parts: int | None,
    kinds: int | None,
    seed: int,
    views: int = 0,
    masked: Path | None = None,
) -> Quality:
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
    figures = {**information, "mean": float(np.mean(list(information.values())))}
    if views:
        picked = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed + 1))[:views].tolist()
        figures |= view_agreement(source, codebook, [images[index] for index in picked], seed)
    details = {"part": names, **_summary(codebook)}
    if masked is not None:
        details["masked_iou"] = masked_iou(source, codebook, masked)
    return Quality(f"{folder.name}, {len(rows)}", str(source.spec), figures, details, seconds)


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
    views: int = 0,
    masked: Path | None = None,
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
        results += [judge_folder(built, path, parts, kinds, seed, views, masked) for path in folder or []]
    for result in results:
        figures = "  ".join(f"{name} {value:.3f}" for name, value in result.figures.items())
        typer.echo(f"{result.pictures}  {result.source}\n  {figures}  ({result.seconds:.0f} CPU s)\n  {result.details}")
    if out is not None:
        out.write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
