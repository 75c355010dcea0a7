"""Foreground by appearance alone: the position of a patch in its picture has no influence.

For feature sources with details (`PatchGrid.detail`). Seeds are the object evidence of the source if it has any (class
activation maps, Zhou et al. 2016), otherwise the centres of the pictures. They cover only the most characteristic part of an
object, a face for example, so a linear classifier treats them as positive and unlabelled examples (Elkan and Noto 2008), with
a threshold between the most and the least certain patches. Edges come from the picture itself: similar patches get the same
label, object or background.

Letters: N pictures, (h, w) patch grid, d channels.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .foreground import center_guess, foreground_margin, smooth_within_pictures
from .linear_classifiers import fit_logistic

_GAIN = 3.0
"""Embedded features have about unit norm: this scales single channels to about 0.4."""
_ROUNDS = 4
_SURE_SHARE = 0.1  # of the answers, at either end, that counts as sure
_THRESHOLD = 0.4  # of the way from the least likely answers to the surest
_MOST_CERTAIN = 3.0  # log-odds beyond which the classifier does not overrule the picture's own edges any further
_OWN_EDGES = 1.5  # how much patches of the picture that look alike count, beside the classifier's log-odds
_OWN_ROUNDS = 3
_ALIKE = 0.25  # of the root mean square distance between a picture's patches
_LEAST_SHARE = 0.02
_SMOOTHING = 2.0
_CHUNK_PICTURES = 64


@dataclass(frozen=True)
class LooksForeground:
    """A linear classifier of embedded details, refined by the similarities within each picture."""

    weight: Tensor
    """`(d,)`."""
    bias: Tensor
    """`()`."""
    margin: float = 0.0
    """Share of foreground in the central quarter less that on the border, over the set it was fitted on."""
    flipped: bool = False
    """True if the user inverted the foreground."""

    def probability(self, looks: Tensor) -> Tensor:
        """Foreground probability `(N, h, w)` of embedded details `(N, h, w, d)`, independently per picture."""
        pieces = [self._some(some) for some in looks.split(_CHUNK_PICTURES)]
        probability = torch.cat(pieces) if pieces else looks.new_zeros(looks.shape[:3])
        return 1 - probability if self.flipped else probability

    def _some(self, looks: Tensor) -> Tensor:
        odds = _GAIN * looks @ self.weight + self.bias  # (N, h, w)
        return smooth_within_pictures(with_own_edges(odds, looks), looks, _SMOOTHING)

    def tensors(self) -> dict[str, Tensor]:
        """Tensors for a file: the weight `(d,)` and the bias `()`."""
        return {"weight": self.weight, "bias": self.bias}

    def settings(self) -> dict[str, object]:
        """Settings for the header of a file."""
        return {"form": "looks", "margin": self.margin, "flipped": self.flipped}


def fit_looks_foreground(looks: Tensor, saliency: Tensor | None, *, flip: bool = False) -> LooksForeground:
    """Learn the foreground of embedded looks `(N, h, w, d)`, from evidence `(N, h, w)` of any scale where there is any."""
    rows = _GAIN * looks.flatten(0, 2)  # (N * h * w, d)
    labels = _seeds(looks, saliency).flatten()  # (N * h * w,)
    weight, bias = rows.new_zeros(rows.shape[1]), rows.new_zeros(())
    for _ in range(_ROUNDS):
        weight, bias = fit_logistic(rows, labels)
        answer = torch.sigmoid(rows @ weight + bias)
        # seeds miss much of the object: patches about half as likely as the most certain ones belong to it, too
        ordered = answer.sort().values
        tenth = max(1, int(_SURE_SHARE * len(ordered)))
        level = (1 - _THRESHOLD) * ordered[:tenth].mean() + _THRESHOLD * ordered[-tenth:].mean()
        bias = bias - torch.logit(level.clamp(1e-3, 1 - 1e-3))
        # alternate classifier and edges, so that the classifier does not learn a seam around the object
        odds = (rows @ weight + bias).view(looks.shape[:3])
        chunks = zip(odds.split(_CHUNK_PICTURES), looks.split(_CHUNK_PICTURES), strict=True)
        labels = torch.cat([with_own_edges(*chunk) > 0 for chunk in chunks]).flatten().float()
    return _judged(LooksForeground(_half(weight), _half(bias), flipped=flip), looks)


def looks_foreground_from_masks(looks: Tensor, masks: Tensor) -> LooksForeground:
    """Learn the foreground from the user's masks `(N, h, w)` 0..1 and embedded details `(N, h, w, d)`."""
    weight, bias = fit_logistic(_GAIN * looks.flatten(0, 2), masks.flatten().float())
    return replace(_judged(LooksForeground(_half(weight), _half(bias)), looks), margin=foreground_margin(masks > 0.5))


def with_own_edges(odds: Tensor, looks: Tensor) -> Tensor:
    """Log-odds `(N, h, w)` moved towards those of similar patches of the same picture, at any position.

    Details are `(N, h, w, d)`; near the outline this separates the object from background that occurs elsewhere in the picture.
    """
    rows = looks.flatten(1, 2)  # (N, n, d)
    distance = torch.cdist(rows, rows).square()  # (N, n, n)
    scale = distance.mean(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    alike = torch.exp(-distance / (2 * _ALIKE**2 * scale))
    alike = alike * (1 - torch.eye(rows.shape[1]).to(rows))  # a patch must not confirm itself
    alike = alike / alike.sum(dim=2, keepdim=True).clamp_min(1e-9)
    prior = odds.flatten(1).clamp(-_MOST_CERTAIN, _MOST_CERTAIN)  # (N, n)
    moved = prior
    for _ in range(_OWN_ROUNDS):
        others = (alike @ torch.sigmoid(moved).unsqueeze(2)).squeeze(2)  # (N, n)
        moved = prior + _OWN_EDGES * torch.logit(others.clamp(_LEAST_SHARE, 1 - _LEAST_SHARE))
    return moved.unflatten(1, odds.shape[1:])


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
