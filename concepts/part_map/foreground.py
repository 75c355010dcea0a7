"""Separation of the object's patches from the background, learned from a set of pictures without labels.

A two-way clustering of patches finds the largest difference, night and day for example. This method finds what keeps away
from the borders of the pictures instead. A small classifier predicts from the appearance of a patch alone whether the patch
is at a position of the object (initially: near the centre); appearances that also occur at the borders become background. Its
predictions, corrected for how often each position is covered and smoothed within each picture, are the labels of the next
round (self-training; learning from positive and unlabelled examples, Elkan and Noto 2008).

Letters: N pictures, (h, w) patch grid, D channels, H hidden units.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BestiaryError
from .kmeans import assign

log = logging.getLogger(__name__)

LOW_MARGIN = 0.3
"""A foreground that covers the centre by less than this more than the borders is doubtful."""
_HIDDEN = 64
FOREGROUND_ROUNDS = 8
_TRAINING_STEPS = 300
_BATCH_ROWS = 2048
_RATE = 5e-3
_CENTER_WIDTH = 0.5  # of half the picture: standard deviation of the first guess
_AFFINITY_SCALE = 0.7
_SMOOTHING_STEPS = 5


class ForegroundSettings(TypedDict, total=False):
    """What a codebook's header says of its foreground model; which of these depends on the form."""

    form: str
    smoothing: float
    margin: float
    flipped: bool
    index: int


@dataclass(frozen=True)
class LearnedForeground:
    """A classifier of patches, how often each place of the picture is covered, and the smoothing within a picture."""

    hidden_weight: Tensor
    """`(H, D)`, or `(H, D + 1)` where the source gives saliency."""
    hidden_bias: Tensor
    """`(H,)`."""
    output_weight: Tensor
    """`(H,)`."""
    place_logit: Tensor
    """`(h, w)`: log-odds of foreground by place, less its mean over the set, plus the classifier's bias."""
    smoothing: float = 2.0
    """Weight of the neighbours' agreement."""
    margin: float = 0.0
    """Share of foreground in the central quarter less that on the border, over the set it was fitted on."""
    flipped: bool = False
    """True where the user asked for the other side."""

    def probability(self, features: Tensor, saliency: Tensor | None = None) -> Tensor:
        """Foreground probability `(N, h, w)` of features `(N, h, w, D)`; each picture by itself."""
        # saliency counts where the classifier was fitted with it, and is left out elsewhere
        cues = _with_saliency(features, saliency if self.hidden_weight.shape[1] > features.shape[-1] else None)
        if cues.shape[-1] != self.hidden_weight.shape[1]:
            raise BestiaryError(
                f"the patches have {cues.shape[-1]} channels, but the foreground model was fitted on {self.hidden_weight.shape[1]}: "
                "use the feature source of the codebook"
            )
        logit = _evaluate(cues, self.hidden_weight, self.hidden_bias, self.output_weight)  # (N, h, w)
        # the place's log-odds fit any grid: they are resized to that of the features
        logit = logit + _resized(self.place_logit, (features.shape[1], features.shape[2]))
        probability = smooth_within_pictures(logit, features, self.smoothing)
        return 1 - probability if self.flipped else probability

    def tensors(self) -> dict[str, Tensor]:
        """What a file must hold: the weights, `(H, D)`, `(H,)` and `(H,)`, and the place's log-odds `(h, w)`."""
        names = ("hidden_weight", "hidden_bias", "output_weight", "place_logit")
        return {name: getattr(self, name) for name in names}

    def settings(self) -> ForegroundSettings:
        """What a file's header must hold."""
        return {"form": "learned", "smoothing": self.smoothing, "margin": self.margin, "flipped": self.flipped}


@dataclass(frozen=True)
class CentroidForeground:
    """Nearest of two centroids, the form of the PartCraft files (kamwoh/partcraft @ dfe64e1, kmeans_segmentation.py)."""

    centroids: Tensor
    """`(2, D)`."""
    index: int
    """Which of them is the foreground."""
    margin: float = 0.0

    def probability(self, features: Tensor, saliency: Tensor | None = None) -> Tensor:
        """Foreground `(N, h, w)`, 0 or 1, of features `(N, h, w, D)`."""
        labels, _ = assign(features.flatten(0, 2), self.centroids)
        return (labels == self.index).unflatten(0, features.shape[:3]).float()  # (N, h, w)

    def tensors(self) -> dict[str, Tensor]:
        """What a file must hold: the two centroids `(2, D)`."""
        return {"centroids": self.centroids}

    def settings(self) -> ForegroundSettings:
        """What a file's header must hold."""
        return {"form": "centroids", "index": self.index, "margin": self.margin}


Foreground = LearnedForeground | CentroidForeground
ForegroundForm = Literal["learned", "centroids"]


def foreground_from_file(tensors: Mapping[str, Tensor], settings: ForegroundSettings) -> Foreground:
    """Rebuild a foreground model from what `tensors()`, of any shape, and `settings()` gave."""
    floats = {name: tensor.float() for name, tensor in tensors.items()}
    margin = settings.get("margin", 0.0)
    if "index" in settings:  # of the form of centroids alone
        return CentroidForeground(**floats, index=settings["index"], margin=margin)
    smoothing = settings.get("smoothing", LearnedForeground.smoothing)
    return LearnedForeground(**floats, smoothing=smoothing, margin=margin, flipped=settings.get("flipped", False))


def fit_foreground(
    features: Tensor,
    saliency: Tensor | None = None,
    *,
    seed: int,
    flip: bool = False,
    rounds: int = FOREGROUND_ROUNDS,
    on_round: Callable[[], None] = lambda: None,
) -> LearnedForeground:
    """Learn the foreground of a set of pictures.

    Args:
        features: `(N, h, w, D)`, about unit length on average.
        saliency: `(N, h, w)`, the source's own opinion, any scale.
        flip: take the complement.
        rounds: of self-training.
        on_round: called before each of them.

    Raises:
        BestiaryError: the grid is too small to have a border and a centre.
    """
    h, w = features.shape[1:3]
    if min(h, w) < 4:
        raise BestiaryError(f"a grid of {h} x {w} patches has no centre apart from its border: use at least 4 x 4")
    cues = _with_saliency(features, saliency)
    rows = cues.flatten(0, 2)  # (N * h * w, D)
    # first labels: near the centre is foreground, whatever it looks like
    place = center_guess(h, w)
    labels = place.expand(len(features), h, w)

    def trained(step: int) -> tuple[LearnedForeground, Tensor, Tensor]:
        on_round()
        model = _train_model(rows, labels, place, seed + step)
        answers = _in_chunks(model, features, saliency)  # (N, h, w)
        return model, answers, _covered_places(answers)

    # self-training: the predictions of one round are the labels of the next
    model, labels, place = trained(0)
    for step in range(1, rounds):
        model, labels, place = trained(step)
    # objects are usually framed in the centre: warn if the foreground is not, it may be the background
    margin = foreground_margin((labels > 0.5) ^ flip)
    if margin < LOW_MARGIN:
        log.warning(
            "the foreground is doubtful: it covers the centre only %.2f more than the borders (at least %.2f expected); "
            "look at the part maps, and try --flip-foreground or another feature source",
            margin,
            LOW_MARGIN,
        )
    return replace(model, margin=margin, flipped=flip)


def refit_foreground(
    model: LearnedForeground, features: Tensor, saliency: Tensor | None, mask: Tensor, *, seed: int
) -> LearnedForeground:
    """Train the classifier again on a better mask `(N, h, w)` of the pictures it was fitted on, such as that of their parts.

    `mask` is the expected output of the model; the classifier of a flipped model learns its complement.
    """
    trained = foreground_from_masks(features, saliency, mask ^ model.flipped, seed=seed)
    return replace(trained, smoothing=model.smoothing, margin=foreground_margin(mask), flipped=model.flipped)


def foreground_from_masks(features: Tensor, saliency: Tensor | None, masks: Tensor, *, seed: int) -> LearnedForeground:
    """Learn a foreground that somebody has marked: `masks` `(N, h, w)` bool, or the share 0..1 of each patch."""
    labels = masks.float()
    trained = _train_model(_with_saliency(features, saliency).flatten(0, 2), labels, _covered_places(labels), seed)
    return replace(trained, margin=foreground_margin(labels > 0.5))


def foreground_margin(mask: Tensor) -> float:
    """Share of a mask `(N, h, w)` in the central quarter less its share on the border patches, -1..1."""
    h, w = mask.shape[1:]
    share = mask.float().mean(dim=0)  # (h, w)
    center = share[h // 4 : h - h // 4, w // 4 : w - w // 4].mean()
    return float(center - share[border_patches(h, w)].mean())


def choose_foreground_cluster(labels: Tensor, clusters: int = 2) -> tuple[int, float]:
    """The cluster of labels `(N, h, w)` with the largest margin between centre and border, and that margin."""
    margins = [foreground_margin(labels == cluster) for cluster in range(clusters)]
    best = max(range(clusters), key=margins.__getitem__)
    return best, margins[best]


def border_patches(h: int, w: int) -> Tensor:
    """Mask `(h, w)` bool of the outermost ring."""
    mask = torch.ones(h, w, dtype=torch.bool)
    mask[1:-1, 1:-1] = False
    return mask


def smooth_within_pictures(logit: Tensor, features: Tensor, weight: float, steps: int = _SMOOTHING_STEPS) -> Tensor:
    """Probabilities after mean-field smoothing of log-odds `(N, h, w)` over similar neighbours (Krähenbühl and Koltun 2011)."""
    affinity = neighbour_affinity(features)  # (N, 8, h, w)
    probability = torch.sigmoid(logit)  # (N, h, w)
    for _ in range(steps):
        agreement = average_over_neighbours(2 * probability.unsqueeze(-1) - 1, affinity).squeeze(-1)
        probability = torch.sigmoid(logit + weight * agreement)
    return probability


def neighbour_affinity(features: Tensor) -> Tensor:
    """Similarity `(N, 8, h, w)` of each patch to its neighbours, each picture scaled by its own mean distance; sums to 1."""
    around, inside = _neighbours(features)  # (N, 8, h, w, D), (8, h, w)
    distance = (around - features.unsqueeze(1)).square().sum(dim=-1)  # (N, 8, h, w)
    # of neighbours inside the picture alone, and per picture, so that contrast does not matter
    scale = (distance * inside).sum(dim=(1, 2, 3)) / inside.sum()
    affinity = torch.exp(-distance / (2 * _AFFINITY_SCALE**2 * scale.clamp_min(1e-12).view(-1, 1, 1, 1))) * inside
    return affinity / affinity.sum(dim=1, keepdim=True).clamp_min(1e-9)


def average_over_neighbours(maps: Tensor, affinity: Tensor) -> Tensor:
    """Mean of maps `(N, h, w, C)` over the neighbours, by affinity `(N, 8, h, w)`."""
    around, _ = _neighbours(maps)
    return (around * affinity.unsqueeze(-1)).sum(dim=1)


def _neighbours(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The 8 neighbours of every patch (N, 8, h, w, C), and which of them lie inside the picture (8, h, w)."""
    h, w = maps.shape[1:3]
    padded = F.pad(maps, (0, 0, 1, 1, 1, 1))  # (N, h + 2, w + 2, C)
    inside = F.pad(torch.ones(h, w, device=maps.device), (1, 1, 1, 1))
    # all offsets but the middle one, in reading order
    shifts = [(dy, dx) for dy in range(3) for dx in range(3) if (dy, dx) != (1, 1)]
    around = torch.stack([padded[:, dy : dy + h, dx : dx + w] for dy, dx in shifts], dim=1)
    return around, torch.stack([inside[dy : dy + h, dx : dx + w] for dy, dx in shifts])


def _with_saliency(features: Tensor, saliency: Tensor | None) -> Tensor:
    """Features `(N, h, w, D)`, with saliency `(N, h, w)` as one more channel, centred and scaled within each
    picture."""
    if saliency is None:
        return features
    centered = saliency - saliency.mean(dim=(1, 2), keepdim=True)
    scaled = centered / saliency.std(dim=(1, 2), keepdim=True).clamp_min(1e-6)
    return torch.cat([features, 0.5 * scaled.unsqueeze(-1)], dim=-1)  # (N, h, w, D + 1)


def center_guess(h: int, w: int) -> Tensor:
    """First guess of how often each place is covered `(h, w)`: a bell at the centre, almost nothing at the border."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    guess = torch.exp(-(y.square() + x.square()) / (2 * _CENTER_WIDTH**2))  # (h, w)
    return guess.masked_fill(border_patches(h, w), 0.0).clamp(0.03, 0.9)


def _train_model(rows: Tensor, labels: Tensor, place: Tensor, seed: int) -> LearnedForeground:
    """A model from patches (N * h * w, D), soft labels (N, h, w) and how often each place is covered (h, w)."""
    hidden_weight, hidden_bias, output_weight, bias = _train_classifier(rows, labels.flatten(), seed)
    place_logit = torch.logit(place) - torch.logit(labels.mean().clamp(1e-4, 1 - 1e-4)) + bias
    return LearnedForeground(hidden_weight, hidden_bias, output_weight, place_logit)


def _covered_places(labels: Tensor) -> Tensor:
    """Mean of labels `(N, h, w)` at each place `(h, w)`, blurred twice, never quite 0 or 1."""
    return _blurred(_blurred(labels.mean(dim=0))).clamp(0.01, 0.99)


def _train_classifier(rows: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fit one hidden layer to soft labels (n,) of rows (n, D); returns its weights and the output bias."""
    generator = torch.Generator().manual_seed(seed)
    width = rows.shape[1]
    bound = width**-0.5
    # uniform starts scaled by fan-in; the output bias starts at 0
    weights = [
        ((torch.rand(_HIDDEN, width, generator=generator) * 2 - 1) * bound),
        ((torch.rand(_HIDDEN, generator=generator) * 2 - 1) * bound),
        ((torch.rand(_HIDDEN, generator=generator) * 2 - 1) * _HIDDEN**-0.5),
        torch.zeros(()),
    ]
    weights = [weight.to(rows.device).requires_grad_() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=_RATE, weight_decay=1e-3)
    with torch.enable_grad():
        for step in range(_TRAINING_STEPS):
            # the rate falls to zero over the steps, so that the end does not depend on the last batches
            optimizer.param_groups[0]["lr"] = _RATE * (1 - step / _TRAINING_STEPS)
            picked = torch.randint(len(rows), (_BATCH_ROWS,), generator=generator).to(rows.device)
            logit = _evaluate(rows[picked], *weights[:3]) + weights[3]  # (batch,)
            loss = F.binary_cross_entropy_with_logits(logit, labels[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    hidden_weight, hidden_bias, output_weight, bias = (weight.detach() for weight in weights)
    return hidden_weight, hidden_bias, output_weight, bias


def _evaluate(cues: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, output_weight: Tensor) -> Tensor:
    """Log-odds `(...)` of cues `(..., D)` by one hidden layer of weights `(H, D)`, `(H,)` and `(H,)`."""
    return F.silu(F.linear(2 * cues, hidden_weight, hidden_bias)) @ output_weight


def _in_chunks(model: LearnedForeground, features: Tensor, saliency: Tensor | None, size: int = 256) -> Tensor:
    """Probabilities `(N, h, w)` of features `(N, h, w, D)`, `size` pictures at a time."""
    pieces = []
    for start in range(0, len(features), size):
        part = slice(start, start + size)
        pieces.append(model.probability(features[part], None if saliency is None else saliency[part]))
    return torch.cat(pieces)


def _resized(place_logit: Tensor, size: tuple[int, int]) -> Tensor:
    """A map `(h, w)` brought to another grid."""
    if tuple(place_logit.shape) == tuple(size):
        return place_logit
    return F.interpolate(place_logit[None, None], size=tuple(size), mode="bilinear", align_corners=False)[0, 0]


def _blurred(place: Tensor) -> Tensor:
    """Mean of a map `(h, w)` over 3 x 3 places; the border repeats itself."""
    return F.avg_pool2d(F.pad(place[None, None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0, 0]
