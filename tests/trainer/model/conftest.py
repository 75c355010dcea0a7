"""Checks that hold for every transformer against the same one of diffusers."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def check_gradients() -> Callable[..., None]:
    """`check_gradients(context, updates, other, merged)`: ours of texts and adapters, theirs of texts and of the weights that hold the adapters."""

    def check(context: Tensor, updates: Mapping[str, object], other: Tensor, merged: nn.Module) -> None:
        assert _relative(context.grad, other.grad) < 1e-5
        pairs = []
        for name, update in updates.items():
            weight = merged.get_submodule(name).weight.grad
            pairs += [(update.up.grad, update.scale * weight @ update.down.T)]
            pairs += [(update.down.grad, update.scale * update.up.T @ weight)]
        # some layers have gradients a thousand times smaller than others: each by itself is rounded more than all together
        assert all(_relative(own, other) < 1e-4 for own, other in pairs)
        assert _relative(*(torch.cat([one.flatten() for one in side]) for side in zip(*pairs, strict=True))) < 1e-5

    return check


def _relative(ours: Tensor, other: Tensor) -> float:
    return float((ours - other).detach().norm() / other.detach().norm().clamp_min(1e-9))
