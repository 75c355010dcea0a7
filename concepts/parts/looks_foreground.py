"""Which patches show the thing, told by looks alone: no place of the picture is nearer to being foreground than another.

For sources that say how patches look (`PatchGrid.detail`). Seeds are the source's own evidence of things where it has
any (class activation maps, Zhou et al. 2016), else the pictures' centres. They cover only what is most telling of a
thing, a face for example, so a linear classifier learns from them as from positive and unlabelled examples (Elkan and
Noto 2008): its threshold lies half-way between the surest patches and the least likely ones. Edges come from the picture itself, by a
small discriminant of its own thing against its own surroundings.

Letters: N pictures, (h, w) patch grid, d channels.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..linear_classifiers import fit_logistic
from .foreground import center_guess, foreground_margin, smooth_within_pictures

_GAIN = 3.0
"""Embedded looks are of about unit length over all channels: this brings single channels to about 0.4."""
_ROUNDS = 4
_SURE_SHARE = 0.1  # of the answers, at either end, that counts as sure
_MOST_CERTAIN = 4.0  # log-odds beyond which the classifier does not overrule the picture's own edges any further
_OWN_EDGES = 4.0  # log-odds of a patch that looks quite like its own picture's thing
_OWN_ROUNDS = 2
_OWN_RIDGE = 0.3  # of the mean variance: a picture has few patches for as many channels
_SMOOTHING = 2.0
_CHUNK_PICTURES = 64


@dataclass(frozen=True)
class LooksForeground:
    """A linear classifier of embedded looks, sharpened by each picture's own."""

    weight: Tensor
    """`(d,)`."""
    bias: Tensor
    """`()`."""
    margin: float = 0.0
    """Share of foreground in the central quarter less that on the border, over the set it was fitted on."""
    flipped: bool = False
    """True where the user asked for the other side."""

    def probability(self, looks: Tensor) -> Tensor:
        """Foreground probability `(N, h, w)` of embedded looks `(N, h, w, d)`; each picture by itself."""
        pieces = [self._some(some) for some in looks.split(_CHUNK_PICTURES)]
        probability = torch.cat(pieces) if pieces else looks.new_zeros(looks.shape[:3])
        return 1 - probability if self.flipped else probability

    def _some(self, looks: Tensor) -> Tensor:
        odds = _GAIN * looks @ self.weight + self.bias  # (N, h, w)
        return smooth_within_pictures(with_own_edges(odds, looks), looks, _SMOOTHING)

    def tensors(self) -> dict[str, Tensor]:
        """What a file must hold: the weight `(d,)` and the bias `()`."""
        return {"weight": self.weight, "bias": self.bias}

    def settings(self) -> dict[str, object]:
        """What a file's header must hold."""
        return {"form": "looks", "margin": self.margin, "flipped": self.flipped}


def fit_looks_foreground(looks: Tensor, saliency: Tensor | None, *, flip: bool = False) -> LooksForeground:
    """Learn the foreground of embedded looks `(N, h, w, d)`, from evidence `(N, h, w)` of any scale where there is any."""
    rows = _GAIN * looks.flatten(0, 2)  # (N * h * w, d)
    labels = _seeds(looks, saliency).flatten()  # (N * h * w,)
    for _ in range(_ROUNDS):
        weight, bias = fit_logistic(rows, labels)
        answer = torch.sigmoid(rows @ weight + bias)
        # seeds miss much of the thing: what is half as likely as the surest patches is the thing too
        ordered = answer.sort().values
        tenth = max(1, int(_SURE_SHARE * len(ordered)))
        threshold = torch.logit(((ordered[:tenth].mean() + ordered[-tenth:].mean()) / 2).clamp(1e-3, 1 - 1e-3))
        labels = (answer > torch.sigmoid(threshold)).float()
    return _judged(LooksForeground(_half(weight), _half(bias - threshold), flipped=flip), looks)


def looks_foreground_from_masks(looks: Tensor, masks: Tensor) -> LooksForeground:
    """Learn a foreground that somebody has marked: masks `(N, h, w)` 0..1 of embedded looks `(N, h, w, d)`."""
    weight, bias = fit_logistic(_GAIN * looks.flatten(0, 2), masks.flatten().float())
    return replace(_judged(LooksForeground(_half(weight), _half(bias)), looks), margin=foreground_margin(masks > 0.5))


def with_own_edges(odds: Tensor, looks: Tensor) -> Tensor:
    """Log-odds `(N, h, w)` moved by how alike a patch is to its own picture's thing, and to its own surroundings.

    A ridge discriminant of each picture's looks `(N, h, w, d)`, learned from the picture's own answers.
    """
    rows = looks.flatten(1, 2)  # (N, n, d)
    prior = odds.flatten(1).clamp(-_MOST_CERTAIN, _MOST_CERTAIN)  # (N, n)
    moved = prior
    for _ in range(_OWN_ROUNDS):
        moved = prior + _OWN_EDGES * _own_discriminant(rows, torch.sigmoid(moved))
    return moved.unflatten(1, odds.shape[1:])


def _own_discriminant(rows: Tensor, answer: Tensor) -> Tensor:
    """Ridge regression of 1 for the thing and -1 for its surroundings on rows (N, n, d), as it answers (N, n)."""
    target = 2 * answer - 1
    share = answer.mean(dim=1, keepdim=True)
    weight = answer * (1 - share) + (1 - answer) * share + 1e-6  # both sides count alike
    weight = weight / weight.sum(dim=1, keepdim=True)  # (N, n)
    middle = weight.unsqueeze(1) @ rows  # (N, 1, d)
    level = (weight * target).sum(dim=1, keepdim=True)  # (N, 1)
    centered = rows - middle
    weighted = centered * weight.unsqueeze(2)
    spread = weighted.transpose(1, 2) @ centered  # (N, d, d)
    ridge = _OWN_RIDGE * spread.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-9)  # (N,)
    spread = spread + ridge.view(-1, 1, 1) * torch.eye(rows.shape[2]).to(rows)
    towards = weighted.transpose(1, 2) @ (target - level).unsqueeze(2)  # (N, d, 1)
    return (centered @ torch.linalg.solve(spread, towards)).squeeze(2) + level


def _seeds(looks: Tensor, saliency: Tensor | None) -> Tensor:
    """First soft labels (N, h, w): more evidence than the picture's mean, or near its centre."""
    if saliency is None:
        return center_guess(*looks.shape[1:3]).to(looks).expand(looks.shape[:3])
    centered = saliency - saliency.mean(dim=(1, 2), keepdim=True)
    return torch.sigmoid(3 * centered / saliency.std(dim=(1, 2), keepdim=True).clamp_min(1e-6))


def _judged(model: LooksForeground, looks: Tensor) -> LooksForeground:
    return replace(model, margin=foreground_margin(model.probability(looks) > 0.5))


def _half(tensor: Tensor) -> Tensor:
    """Values of any shape as a file holds them: in half precision."""
    return tensor.half().float()
