"""Trains the attribute judge on drawings of all looks, held-out ones included: `python -m bestiary.trainer.base_model.train_judge`.

The judge measures generated pictures and is not part of the model, so it must know every look that can be requested.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from ...concepts.files.atomic_file import replacing
from ...demo.attribute_judge import ATTRIBUTES, JUDGE_FILE, AttributeJudge, species_classes
from ...demo.creatures import draw_creature
from ...demo.species import COLORS, PARTS, PATTERNS, SHAPES, PartLook, Species
from .training_state import rate_share

logger = logging.getLogger(__name__)

VISIBLE_PIXELS = 60
"""Parts with fewer visible pixels (cut off by the edge, hidden) are excluded from training and from the figures."""
FRESH_DRAWINGS = 2_000
"""Drawings that a trained judge's accuracy is measured on."""


@dataclass(frozen=True)
class JudgeLessons:
    """Drawings with their ground truth."""

    images: Tensor
    """(N, 3, 128, 128) uint8."""
    classes: Tensor
    """(N, parts, 3) long."""
    shares: Tensor
    """(N, parts, 16, 16) float16: share of each cell that a part covers."""
    visible: Tensor
    """(N, parts) bool."""


def any_species(rng: np.random.Generator) -> Species:
    """A creature with uniformly drawn looks, including held-out pairs."""
    looks = [
        PartLook(str(rng.choice(SHAPES[part])), str(rng.choice(list(COLORS))), str(rng.choice(PATTERNS)))
        for part in PARTS
    ]
    return Species("creature", tuple(looks))


def draw_lessons(count: int, seed: int) -> JudgeLessons:
    """`count` drawings of creatures of any look."""
    rng = np.random.default_rng((seed, 31))
    images, kinds, shares = np.empty((count, 3, 128, 128), np.uint8), [], []
    numbers = np.arange(1, len(PARTS) + 1)[:, None, None]
    for row in range(count):
        drawing = draw_creature(any_species(rng), rng)
        images[row] = drawing.image.transpose(2, 0, 1)
        kinds.append(drawing.species)
        # share of every cell (16, 16) that each part covers: 8 x 8 pixels a cell
        cells = (drawing.labels[None] == numbers).reshape(len(PARTS), 16, 8, 16, 8)
        shares.append(cells.mean(axis=(2, 4), dtype=np.float32).astype(np.float16))  # (P, 16, 16)
    # parts that are cut off or hidden have no reliable label
    covered = torch.from_numpy(np.stack(shares))
    visible = covered.float().sum(dim=(2, 3)) * 64 >= VISIBLE_PIXELS  # (N, P)
    return JudgeLessons(torch.from_numpy(images), species_classes(kinds), covered, visible)


def judge_loss(judge: AttributeJudge, images: Tensor, classes: Tensor, shares: Tensor, visible: Tensor) -> Tensor:
    """Cross-entropy of every attribute of visible parts, and of the part maps against the true cell coverage."""
    logits, maps = judge(images)
    loss = torch.zeros((), device=images.device)
    # one loss per attribute, averaged over the visible parts
    for number, name in enumerate(ATTRIBUTES):
        each = functional.cross_entropy(logits[name].flatten(0, 1), classes[..., number].flatten(), reduction="none")
        loss = loss + (each * visible.flatten()).sum() / visible.sum()
    # the target of a part map is the part's share of each cell, normalised to sum 1
    target = shares.flatten(2) / shares.flatten(2).sum(dim=-1, keepdim=True).clamp_min(1e-6)  # (B, P, 256)
    cross = -(target * maps.flatten(2).log_softmax(dim=-1)).sum(dim=-1)  # (B, P)
    return loss + 0.3 * (cross * visible).sum() / visible.sum()


def _blurred(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the batch slightly blurred and all of it slightly noisy, like generated pictures; (B, 3, H, W) in 0..1."""
    soft = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.rand((len(images), 1, 1, 1), generator=generator) * (
        torch.rand((len(images), 1, 1, 1), generator=generator) < 0.5
    )
    noise = torch.randn(images.shape, generator=generator) * 0.03
    return (images + share * (soft - images) + noise).clamp(0, 1)


def train_judge(out: Path, *, seed: int, pictures: int, steps: int, batch: int = 64) -> dict[str, float]:
    """Trains a judge on images `(N, 3, 128, 128)`, writes fp16 weights to `out`, returns the accuracy on fresh ones."""
    torch.manual_seed(seed)
    judge = AttributeJudge().to(memory_format=torch.channels_last)
    lessons = draw_lessons(pictures, seed)
    logger.info("%d drawings made", pictures)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    generator = torch.Generator().manual_seed(seed)
    judge.train()
    # draw, loss, backward, step, log
    for step in range(steps):
        picked = torch.randint(pictures, (batch,), generator=generator)
        images = _blurred(lessons.images[picked].float() / 255, generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            loss = judge_loss(
                judge, images, lessons.classes[picked], lessons.shares[picked].float(), lessons.visible[picked]
            )
        optimizer.param_groups[0]["lr"] = 2e-3 * rate_share(step, steps, warmup=50, decay_from=0.4)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            logger.info("step %d loss %.3f", step, float(loss.detach()))
    # stored in half precision, loaded as float32
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in judge.state_dict().items()}
    with replacing(out) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)
        temporary.chmod(0o644)
    # measure the weights read back from the file, since half precision is what is shipped
    accuracy = judge_accuracy(AttributeJudge.load(out), draw_lessons(FRESH_DRAWINGS, seed + 1))
    return accuracy


def judge_accuracy(judge: AttributeJudge, lessons: JudgeLessons) -> dict[str, float]:
    """Share of visible parts judged right, by attribute."""
    right = judge.classes(lessons.images.float() / 255) == lessons.classes  # (N, P, 3)
    seen = right[lessons.visible].float().mean(dim=0)  # (3,)
    return {name: round(float(seen[number]), 4) for number, name in enumerate(ATTRIBUTES)}


def main(arguments: list[str] | None = None) -> None:
    """Trains the shipped judge and reports its accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=JUDGE_FILE)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=12_000)
    parser.add_argument("--steps", type=int, default=1_000)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    accuracy = train_judge(given.out, seed=given.seed, pictures=given.pictures, steps=given.steps)
    logger.info("accuracy on fresh drawings: %s", json.dumps(accuracy))


if __name__ == "__main__":
    main()
