"""Ground truth of the demo: drawn pictures with known species and exact part masks, hidden from the method."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...concepts.files.atomic_file import replacing, write_text
from ...demo.creatures import HELD_OUT_SPECIES, PARTS, Species, held_out_set

PICTURES = "pictures"
TRUTH = "truth"


@dataclass(frozen=True)
class DrawnTruth:
    """Ground truth of N drawn pictures; used to score the method, never by the method itself."""

    names: tuple[str, ...]
    """File name of every picture."""
    species: tuple[Species, ...]
    """Species of every picture."""
    labels: np.ndarray
    """`(N, H, W)` uint8: 0 background, i + 1 for `PARTS[i]`."""

    def ordered_like(self, names: Sequence[str]) -> "DrawnTruth":
        """The ground truth of these pictures, in this order."""
        place = {name: number for number, name in enumerate(self.names)}
        rows = [place[name] for name in names]
        return DrawnTruth(tuple(names), tuple(self.species[row] for row in rows), self.labels[rows])


@dataclass(frozen=True)
class DiscoveryScore:
    """Agreement of discovered and drawn parts on the patch grid."""

    foreground_iou: float
    part_miou: float
    """Mean over the drawn parts of the IoU with the matched discovered part; 0 for an unmatched part."""
    ious: dict[str, float]
    """IoU by drawn part."""
    matched: dict[int, str]
    """Discovered part -> matched drawn part; the one-to-one matching with the largest sum of IoU."""


def draw_pictures(folder: Path, count: int, seed: int) -> DrawnTruth:
    """Draw held-out species into `folder/pictures` and their ground truth into `folder/truth`; existing files are kept.

    The species alternate; everything else (pose, scale, flip, light, scene) is drawn from the seed.
    """
    # ground truth goes to a separate folder, so that the method cannot read it
    names: list[str] = []
    species: list[Species] = []
    labels: list[np.ndarray] = []
    for number, drawing in enumerate(held_out_set(count, seed)):
        name = f"{number:04d}.png"
        _write_png(folder / PICTURES / name, drawing.image)
        _write_png(folder / TRUTH / name, drawing.labels)
        names.append(name)
        species.append(drawing.species)
        labels.append(drawing.labels)
    record = {name: drawn.name for name, drawn in zip(names, species, strict=True)}
    write_text(folder / TRUTH / "species.json", json.dumps(record, indent=1))
    # the same as a table, for baselines that are trained with species labels
    lines = ["path,class", *(f"{name},{drawn}" for name, drawn in record.items())]
    write_text(folder / TRUTH / "labels.csv", "\n".join(lines) + "\n")
    return DrawnTruth(tuple(names), tuple(species), np.stack(labels))


def load_truth(folder: Path) -> DrawnTruth:
    """The ground truth written by `draw_pictures`."""
    known = {species.name: species for species in HELD_OUT_SPECIES}
    record = json.loads((folder / TRUTH / "species.json").read_text(encoding="utf-8"))
    labels = np.stack([np.asarray(Image.open(folder / TRUTH / name)) for name in record])  # (N, H, W)
    return DrawnTruth(tuple(record), tuple(known[name] for name in record.values()), labels)


def score_discovery(labels: np.ndarray, background: int, truth: np.ndarray) -> DiscoveryScore:
    """Score discovered part labels against drawn ones.

    Args:
        labels: `(N, h, w)` discovered part of every patch; background: its index among them.
        truth: `(N, H, W)` drawn labels, H and W multiples of h and w; a patch belongs to its most frequent label.
    """
    from scipy.optimize import linear_sum_assignment

    drawn = patch_majority(truth, (labels.shape[1], labels.shape[2]))  # (N, h, w)
    foreground_iou = _iou(labels != background, drawn > 0)
    # every discovered part against every drawn one, then the best one-to-one matching
    discovered = [part for part in np.unique(labels).tolist() if part != background]
    table = np.array(
        [[_iou(labels == part, drawn == number + 1) for number in range(len(PARTS))] for part in discovered]
    )
    rows, columns = linear_sum_assignment(-table) if len(discovered) else ([], [])
    # unmatched drawn parts count as IoU 0 in the mean
    ious: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    matched = {}
    for row, column in zip(rows, columns, strict=True):
        if table[row, column] > 0:
            ious[PARTS[column]] = float(table[row, column])
            matched[discovered[row]] = PARTS[column]
    return DiscoveryScore(foreground_iou, sum(ious.values()) / len(PARTS), ious, matched)


def patch_majority(truth: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Most frequent label `(N, h, w)` in every patch of `(N, H, W)`; ties go to the lower label."""
    n, height, width = truth.shape
    h, w = grid
    patches = truth.reshape(n, h, height // h, w, width // w)  # (N, h, patch, w, patch)
    counts = np.stack([(patches == label).sum((2, 4)) for label in range(len(PARTS) + 1)])  # (labels, N, h, w)
    return counts.argmax(0)


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    # masks (N, h, w)
    union = int((one | other).sum())
    return float((one & other).sum()) / union if union else 0.0


def _write_png(path: Path, pixels: np.ndarray) -> None:
    # pixels (H, W) or (H, W, 3); a picture drawn before is the same
    if path.exists():
        return
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG")
