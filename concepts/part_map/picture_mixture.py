"""Mixture model per picture: a few parts and a few pieces of background, each with one appearance in this picture.

A mixture is fitted to each picture separately: the appearance of a part differs between pictures, its distribution of
positions is common to all. So the edges of parts follow the edges of the picture, and their identity comes from the common
positions. Expectation maximisation with a mean-field term for the agreement of neighbours.
Letters: B pictures, (h, w) patch grid, n = h * w patches, D channels, M parts, G pieces of background.
"""

import torch
from torch import Tensor

from .foreground import average_over_neighbours, neighbour_affinity

_HORIZONTAL_BANDS = 4
_VERTICAL_BANDS = 3
BACKGROUND_BANDS = _HORIZONTAL_BANDS + _VERTICAL_BANDS
_STEPS = 6
_TEMPERATURE = 0.08
"""Squared distances are divided by twice this share of the variance of the picture."""
_SMOOTHING = 2.0
_PRIOR_PATCHES = 3.0
"""Patches with the mean features of the picture that are added to every component."""
_MOST_CERTAIN = 0.75
"""Foreground probabilities are clamped by this value, so that the mixture can overrule the classifier."""
_PLACE_TRUST = 0.5
"""Exponent of the foreground odds at a position."""


def explain_pictures(
    features: Tensor, foreground: Tensor, place_share: Tensor, affinity: Tensor | None = None
) -> Tensor:
    """Share of every part in every patch, that of the background last.

    Args:
        features: `(B, h, w, D)`.
        foreground: `(B, h, w)` probability.
        place_share: `(B, h, w, M + 1)`: how often each part, and last the background, lies at the patch's place.
        affinity: `(B, 8, h, w)` of `neighbour_affinity`, where it is at hand.

    Returns:
        `(B, h, w, M + 1)`, summing to 1.
    """
    shape, parts = foreground.shape, place_share.shape[-1] - 1
    affinity = neighbour_affinity(features) if affinity is None else affinity
    x = features.flatten(1, 2)  # (B, n, D)
    prior = _log_prior(foreground, place_share)  # (B, n, M + G)
    mean = x.mean(dim=1, keepdim=True)
    variance = (x - mean).square().sum(dim=-1).mean(dim=1).clamp_min(1e-12)  # (B,)
    share = torch.softmax(prior, dim=-1)  # (B, n, M + G)
    for _ in range(_STEPS):
        # M-step: the mean look of every component, drawn towards the picture's mean where it has few patches
        patches = share.sum(dim=1).unsqueeze(-1)  # (B, M + G, 1)
        looks = (share.transpose(1, 2) @ x + _PRIOR_PATCHES * mean) / (patches + _PRIOR_PATCHES)  # (B, M + G, D)
        # E-step: how well a component's look and place explain a patch, and whether its neighbours agree
        score = prior - torch.cdist(x, looks).square() / (2 * _TEMPERATURE * variance.view(-1, 1, 1))
        guess = _join_background(torch.softmax(score, dim=-1), parts)  # (B, n, M + 1)
        around = average_over_neighbours(guess.unflatten(1, shape[1:]), affinity).flatten(1, 2)
        share = torch.softmax(score + _SMOOTHING * _split_background(around, parts), dim=-1)
    return _join_background(share, parts).unflatten(1, shape[1:])


def _log_prior(foreground: Tensor, place_share: Tensor) -> Tensor:
    """Log prior (B, n, M + G) of parts and of bands of background."""
    h, w = foreground.shape[1:]
    certain = foreground.clamp(1 - _MOST_CERTAIN, _MOST_CERTAIN)  # (B, h, w)
    background_here = place_share[..., -1].clamp(1e-4, 1 - 1e-4)
    odds = torch.logit(certain) - _PLACE_TRUST * torch.logit(background_here)  # (B, h, w)
    parts = place_share[..., :-1] / (1 - place_share[..., -1:]).clamp_min(1e-6)  # (B, h, w, M)
    # foreground and background share the probability of a patch by their odds
    log_parts = torch.nn.functional.logsigmoid(odds).unsqueeze(-1) + parts.clamp_min(1e-4).log()
    bands = _bands(h, w).to(foreground).clamp_min(1e-4).log()  # (h, w, G)
    log_background = torch.nn.functional.logsigmoid(-odds).unsqueeze(-1) + bands
    return torch.cat([log_parts, log_background], dim=-1).flatten(1, 2)  # (B, n, M + G)


def _bands(h: int, w: int) -> Tensor:
    """Soft bands (h, w, G): sky, distance and ground lie one above the other, trunks and walls side by side."""
    # each kind of band divides the whole picture by itself; the two are weighted by their numbers of bands
    across = _soft_bands(h, _HORIZONTAL_BANDS).unsqueeze(1).expand(h, w, _HORIZONTAL_BANDS)
    upright = _soft_bands(w, _VERTICAL_BANDS).unsqueeze(0).expand(h, w, _VERTICAL_BANDS)
    return torch.cat([across * _HORIZONTAL_BANDS, upright * _VERTICAL_BANDS], dim=-1) / BACKGROUND_BANDS


def _soft_bands(length: int, bands: int) -> Tensor:
    place = (torch.arange(length) + 0.5) / length  # (length,)
    middle = (torch.arange(bands) + 0.5) / bands
    return torch.softmax(-(place.unsqueeze(1) - middle).square() / (2 * (0.6 / bands) ** 2), dim=1)  # (length, bands)


def _join_background(share: Tensor, parts: int) -> Tensor:
    """Shares `(B, n, M+G)` with the pieces of background as one, `(B, n, M+1)`."""
    return torch.cat([share[..., :parts], share[..., parts:].sum(dim=-1, keepdim=True)], dim=-1)


def _split_background(agreement: Tensor, parts: int) -> Tensor:
    """Agreement `(B, n, M+1)` with the background's repeated for each of its pieces, `(B, n, M+G)`."""
    background = agreement[..., parts:].expand(*agreement.shape[:-1], BACKGROUND_BANDS)
    return torch.cat([agreement[..., :parts], background], dim=-1)
