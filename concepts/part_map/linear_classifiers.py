"""Linear classifiers in closed form or a few Newton steps: deterministic without a seed.

Letters: n rows, d channels, C classes.
"""

import torch
from torch import Tensor

_NEWTON_STEPS = 6
_RIDGE = 1e-3
_SHRINKAGE = 0.05
"""Share of the mean variance that is added to the covariance within classes in every direction."""


def fit_logistic(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge logistic regression by Newton's method.

    Args:
        rows: `(n, d)`, channels of about unit variance or less.
        labels: `(n,)` 0..1, certain or soft.

    Returns:
        weight `(d,)` and bias `()`: log-odds are `rows @ weight + bias`.
    """
    width = rows.shape[1]
    weight, bias = rows.new_zeros(width), rows.new_zeros(())
    ridge = _RIDGE * torch.eye(width + 1).to(rows)
    ridge[-1, -1] = 1e-6  # the bias is free
    for _ in range(_NEWTON_STEPS):
        answer = torch.sigmoid(rows @ weight + bias)
        excess, certainty = answer - labels, (answer * (1 - answer)).clamp_min(1e-4)  # (n,)
        # gradient and curvature of the mean loss, the bias last
        gradient = torch.cat([rows.T @ excess, excess.sum().view(1)]) / len(rows)
        gradient += ridge @ torch.cat([weight, bias.view(1)])
        weighted = rows * certainty.unsqueeze(1)  # (n, d)
        across = weighted.sum(dim=0)
        curvature = torch.empty(width + 1, width + 1).to(rows)
        curvature[:-1, :-1] = weighted.T @ rows
        curvature[-1, :-1] = curvature[:-1, -1] = across
        curvature[-1, -1] = certainty.sum()
        step = torch.linalg.solve(curvature / len(rows) + ridge, gradient)
        weight, bias = weight - step[:-1], bias - step[-1]
    return weight, bias


def fit_discriminant(rows: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Linear discriminant for equal class priors (Fisher 1936) with a shrunk covariance (Friedman 1989).

    Args:
        rows: `(n, d)`.
        labels: `(n,)` long, 0 to C - 1; a class without rows is never the answer.

    Returns:
        weight `(d, C)` and bias `(C,)`: log posteriors are `rows @ weight + bias`, up to a constant per row.
    """
    members = torch.nn.functional.one_hot(labels, classes).to(rows.dtype)  # (n, C)
    counts = members.sum(dim=0)  # (C,)
    means = members.T @ rows / counts.clamp_min(1).unsqueeze(1)  # (C, d)
    # spread within classes: what is left of the rows' second moments
    within = (rows.T @ rows - (means * counts.unsqueeze(1)).T @ means) / len(rows)
    within = within + _SHRINKAGE * within.diagonal().mean().clamp_min(1e-9) * torch.eye(rows.shape[1]).to(rows)
    weight = torch.linalg.solve(within, means.T)  # (d, C)
    bias = -0.5 * (means.T * weight).sum(dim=0)
    return weight, torch.where(counts > 0, bias, -1e4)
