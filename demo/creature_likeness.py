"""How like drawn creatures are to each other: the share of their parts' colours, patterns and shapes that are the same.

The judge of attributes reads one creature in a picture, so pictures of several are cut into windows first.
Letters: K pictures, R pictures of one subject, C subjects, P parts, A attributes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .attribute_judge import AttributeJudge

EDGE = 128
"""Side in pixels of the pictures that the judge reads."""
RECOGNISED = 0.6
"""Share of attributes from which on a creature counts as the one that was asked for; another of the held-out species shares .12 on average."""


def creature_likeness(judge: AttributeJudge, pictures: Tensor, looks: Sequence[Tensor]) -> NDArray[np.float32]:
    """Likeness `(K, C)`, 0 to 1, of pictures of one creature each and subjects.

    Args:
        pictures: `(K, 3, 128, 128)` in 0..1.
        looks: of each subject `(R, P, A)`, the class numbers of its pictures, as `AttributeJudge.classes` and `species_classes` give them.
    """
    seen = judge.classes(pictures).cpu()  # (K, P, A)
    columns = [(seen[:, None] == known[None]).float().mean(dim=(1, 2, 3)) for known in looks]  # (K,) each
    return torch.stack(columns, dim=1).numpy()


def cut_boxes(picture: Tensor, boxes: NDArray[np.floating]) -> Tensor:
    """What boxes show, each as a square `(K, 3, 128, 128)`.

    Args:
        picture: `(3, H, W)` in 0..1.
        boxes: `(K, 4)` left, top, width and height in pixels; they become squares about their middle, moved into the picture.
    """
    height, width = picture.shape[1:]
    cut = []
    for left, top, across, down in boxes.tolist():
        side = max(1, min(round(max(across, down)), height, width))
        x = min(max(0, round(left + across / 2 - side / 2)), width - side)
        y = min(max(0, round(top + down / 2 - side / 2)), height - side)
        square = picture[None, :, y : y + side, x : x + side].float()
        cut.append(functional.interpolate(square, (EDGE, EDGE), mode="bilinear", antialias=True)[0])
    return torch.stack(cut)  # (K, 3, 128, 128)
