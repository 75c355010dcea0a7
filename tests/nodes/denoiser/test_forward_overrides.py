"""Replaced forward functions: in force while they hang there, gone without a trace afterwards, others' kept."""

import pytest
import torch
from torch import Tensor, nn


def _doubled(forward: object) -> object:
    return lambda x: 2 * forward(x)


def test_a_forward_is_replaced_and_put_back() -> None:
    from bestiary.nodes.denoiser.forward_overrides import ForwardOverrides

    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    plain, overrides = layer(x), ForwardOverrides()
    overrides.put(layer, _doubled)
    assert torch.equal(layer(x), 2 * plain)
    overrides.put(layer, _doubled)  # once is enough
    assert torch.equal(layer(x), 2 * plain)
    overrides.take_off()
    assert torch.equal(layer(x), plain) and "forward" not in layer.__dict__
    overrides.take_off()


def test_another_extensions_function_is_called_and_kept() -> None:
    from bestiary.nodes.denoiser.forward_overrides import ForwardOverrides

    layer, x = nn.Linear(3, 2), torch.randn(4, 3)

    def theirs(value: Tensor) -> Tensor:
        return value + 1

    layer.forward = theirs
    overrides = ForwardOverrides()
    overrides.put(layer, _doubled)
    assert torch.equal(layer(x), 2 * (x + 1))
    overrides.take_off()
    assert layer.forward is theirs


def test_all_are_put_back_after_a_fault() -> None:
    from bestiary.nodes.denoiser.forward_overrides import ForwardOverrides

    layers, overrides = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), ForwardOverrides()

    def broken(forward: object) -> object:
        raise ValueError("cannot be built")

    overrides.put(layers[0], _doubled)
    with pytest.raises(ValueError, match="cannot be built"):
        overrides.put(layers[1], broken)
    overrides.take_off()
    assert not any("forward" in layer.__dict__ for layer in layers)
