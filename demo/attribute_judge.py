"""A small classifier of the colour, pattern and shape of every part of a drawn creature, trained on drawings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from ..concepts.errors import BestiaryError
from .species import COLORS, PARTS, PATTERNS, SHAPES, Species

ATTRIBUTES: tuple[str, ...] = ("color", "pattern", "shape")
JUDGE_FILE = Path(__file__).parent / "attribute_judge.safetensors"
_CLASSES = {"color": len(COLORS), "pattern": len(PATTERNS), "shape": 5}
_IMAGE_SIZE = 128


@dataclass(frozen=True)
class AttributeScores:
    """Shares, 0..1, of parts whose predicted attribute matches the species; `by_part` gives them per part."""

    color: float
    pattern: float
    shape: float
    by_part: dict[str, dict[str, float]]
    """part -> attribute -> share."""
    all_three: float
    """Share of parts with colour, pattern and shape all correct."""


def words_of(part: str, attribute: str) -> tuple[str, ...]:
    """The words of an attribute in the order of its class numbers, such as the shapes of a part."""
    return {"color": tuple(COLORS), "pattern": PATTERNS, "shape": SHAPES[part]}[attribute]


def species_classes(species: Sequence[Species]) -> Tensor:
    """Class numbers of the looks of B species -> (B, parts, 3) long, attributes in the order of ATTRIBUTES."""
    rows = [
        [[words_of(part, a).index(getattr(kind.look(part), a)) for a in ATTRIBUTES] for part in PARTS]
        for kind in species
    ]
    return torch.tensor(rows, dtype=torch.long).reshape(len(rows), len(PARTS), len(ATTRIBUTES))  # (B, 5, 3)


class AttributeJudge(nn.Module):
    """Convolutions to a 16x16 grid, one attention map per part, and linear heads on the pooled features of a part."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 96)) -> None:
        """`widths`: channels of the four levels, from `(B, 3, 128, 128)` down to features `(B, widths[3], 16, 16)`."""
        super().__init__()
        first, second, third, fourth = widths
        # three halvings, from 128 pixels to a grid of 16 x 16
        self.stages = nn.Sequential(
            _block(3, first, 2), _block(first, second, 2), _block(second, second, 1),
            _block(second, third, 2), _block(third, fourth, 1), _block(fourth, fourth, 1),
        )  # fmt: skip
        self.part_maps = nn.Conv2d(fourth, len(PARTS), 1)
        outputs = sum(_CLASSES.values())
        self.heads = nn.Parameter(torch.randn(len(PARTS), 2 * fourth, outputs) * 0.02)
        self.biases = nn.Parameter(torch.zeros(len(PARTS), outputs))

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Images (B, 3, 128, 128) in 0..1 -> logits by attribute, each (B, parts, classes), and part maps (B, parts, 16, 16)."""
        # attention pooling: mean and standard deviation of the features, weighted by each part's map
        features = self.stages(images * 2 - 1)  # (B, C, 16, 16)
        maps = self.part_maps(features)  # (B, P, 16, 16)
        weights = maps.flatten(2).softmax(dim=-1)  # (B, P, 256)
        flat = features.flatten(2)  # (B, C, 256)
        mean = torch.einsum("bpn,bcn->bpc", weights, flat)
        square = torch.einsum("bpn,bcn->bpc", weights, flat.square())
        spread = (square - mean.square()).clamp_min(1e-5).sqrt()
        # every part has its own head for all attributes at once
        pooled = torch.cat([mean, spread], dim=-1)  # (B, P, 2 * C)
        logits = torch.einsum("bpc,pck->bpk", pooled, self.heads) + self.biases  # (B, P, K)
        pieces = logits.split(tuple(_CLASSES.values()), dim=-1)
        return dict(zip(_CLASSES, pieces, strict=True)), maps

    @classmethod
    def load(cls, path: Path = JUDGE_FILE) -> AttributeJudge:
        """The shipped judge in fp32, in eval mode; raises BestiaryError if its file is missing or not a judge."""
        if not path.exists():
            raise BestiaryError(
                f"no judge at {path}; train one with `python -m bestiary.trainer.base_model.train_judge`"
            )
        judge = cls()
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        # another version of the judge has different tensors; load_state_dict would not name the remedy
        strange = set(tensors) ^ set(judge.state_dict())
        if strange:
            raise BestiaryError(f"{path} is not a judge of this version: tensors {sorted(strange)[:4]} do not match")
        judge.load_state_dict(tensors)
        return judge.eval()

    @torch.no_grad()
    def judge(self, images: Tensor) -> dict[str, dict[str, Tensor]]:
        """Images (B, 3, 128, 128) float in 0..1 -> part -> attribute -> class numbers (B,) long."""
        classes = self.classes(images)  # (B, P, 3)
        return {
            part: {name: classes[:, p, a] for a, name in enumerate(ATTRIBUTES)} for p, part in enumerate(PARTS)
        }  # fmt: skip

    @torch.no_grad()
    def classes(self, images: Tensor) -> Tensor:
        """Images (B, 3, 128, 128) float in 0..1 -> class numbers (B, parts, 3) long; other sizes are resized."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise BestiaryError(f"the judge takes images (B, 3, 128, 128), got shape {tuple(images.shape)}")
        if images.shape[-2:] != (_IMAGE_SIZE, _IMAGE_SIZE):
            images = functional.interpolate(images, (_IMAGE_SIZE, _IMAGE_SIZE), mode="bilinear", antialias=True)
        self.eval()
        # batches of 64: activations of many pictures at once would fill the memory
        portions = [self.forward(some)[0] for some in images.float().split(64)]
        picked = [torch.cat([p[name] for p in portions]).argmax(dim=-1) for name in ATTRIBUTES]  # (B, P) each
        return torch.stack(picked, dim=-1)  # (B, P, 3)

    def score_against_species(self, images: Tensor, species: Sequence[Species]) -> AttributeScores:
        """Shares of images (B, 3, 128, 128) in 0..1 that match the looks of their B species."""
        if len(images) != len(species):
            raise BestiaryError(f"{len(images)} images cannot be scored against {len(species)} species; give one each")
        right = self.classes(images).cpu() == species_classes(species)  # (B, P, 3)
        shares = right.float().mean(dim=0)  # (P, 3)
        by_part = {
            part: {name: float(shares[p, a]) for a, name in enumerate(ATTRIBUTES)} for p, part in enumerate(PARTS)
        }  # fmt: skip
        color, pattern, shape = shares.mean(dim=0).tolist()
        return AttributeScores(color, pattern, shape, by_part, float(right.all(dim=-1).float().mean()))


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A 3 x 3 convolution, norm and SiLU: `(B, inputs, h, w)` -> `(B, outputs, h / stride, w / stride)`."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU())
